"""Models of the Hugging Face Hub, downloaded from a server on loopback that speaks its file API."""

from __future__ import annotations

import errno
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu import hub
from llamagpu.cli import run_command
from llamagpu.errors import HubError, UsageError
from llamagpu.llm import model_path
from tests.hub_server import Hub, hub_server
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes

constants: Any = pytest.importorskip("huggingface_hub.constants", reason='downloads need: pip install "llamagpu[hub]"')
SHAPE = Shape()
STORIES, TOKENIZER = v0_bytes(SHAPE, random_weights(SHAPE)), tokenizer_bin()
FOLDER = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{} ",
    "pytorch_model.bin": b"copy",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, and an empty cache, for this process and those that it starts."""
    home = tmp_path / "home"
    with hub_server() as running:
        for name, value in {
            "HF_ENDPOINT": running.url,
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1,localhost",
        }.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        yield running


@pytest.fixture
def stories(server: Hub) -> Hub:
    server.add("o/stories", {"stories.bin": STORIES, "tokenizer.bin": TOKENIZER, "README.md": b"a model"})
    return server


def test_a_model_is_downloaded_once_and_runs(stories: Hub, small_model: Path) -> None:
    loaded = llamagpu.load("hf:o/stories", device="cpu")
    assert stories.downloads() == ["stories.bin", "tokenizer.bin"]
    assert loaded.tokenizer.encode("on the") == llamagpu.load(small_model).tokenizer.encode("on the")
    np.testing.assert_array_equal(loaded.logits([1, 2, 3]), llamagpu.load(small_model, device="cpu").logits([1, 2, 3]))
    stories.requests.clear()
    assert model_path("hf:o/stories") == loaded.checkpoint.path
    assert stories.requests == ["GET /api/models/o/stories/revision/main"]  # whether there is a newer one


def test_only_the_files_of_the_model_are_downloaded(server: Hub) -> None:
    server.add("o/folder", {**FOLDER, "onnx/model.onnx": b"copy", "x.msgpack": b"copy"})
    folder = hub.fetch("hf:o/folder")
    assert server.downloads() == ["config.json", "model.safetensors", "tokenizer.json"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: data for name, data in FOLDER.items() if name != "pytorch_model.bin"
    }


def test_shards_are_those_of_the_index(server: Hub) -> None:
    index = b'{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}'
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        "m-1.safetensors": b"1",
        "m-2.safetensors": b"2",
    }
    server.add("o/shards", {**files, "consolidated.safetensors": b"copy", "m-3.safetensors": b"3"})
    assert {path.name for path in hub.fetch("hf:o/shards").iterdir()} == set(files)
    assert server.downloads() == sorted(files)
    server.add(
        "o/lacks", {**files, "m-2.safetensors": b"", "model.safetensors.index.json": index.replace(b"m-2", b"m-9")}
    )
    with pytest.raises(UsageError, match=r"hf:o/lacks is not complete: it does not have m-9\.safetensors"):
        hub.fetch("hf:o/lacks")


def test_one_gguf_of_several(server: Hub) -> None:
    server.add("o/gguf", {"a-Q4_0.gguf": b"4", "a-Q8_0.gguf": b"8", "b/c-00001-of-00002.gguf": b"1",
                          "b/c-00002-of-00002.gguf": b"2"})  # fmt: skip
    assert hub.fetch("hf:o/gguf:q8_0").read_bytes() == b"8"
    assert server.downloads() == ["a-Q8_0.gguf"]
    assert hub.fetch("o/gguf:b/c-00001-of-00002.gguf").read_bytes() == b"1"
    assert hub.fetch("hf:o/gguf:b").with_name("c-00002-of-00002.gguf").read_bytes() == b"2"
    with pytest.raises(
        UsageError, match=r"holds 3 models, give one as hf:o/gguf:FILE: a-Q4_0\.gguf, a-Q8_0\.gguf, b/c"
    ):
        hub.fetch("hf:o/gguf")


@pytest.mark.parametrize("large", [1000, 1 << 40], ids=["weights in LFS", "all in git"])
def test_a_newer_commit_brings_what_changed(large: int, server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.large = large
    repository = server.add("o/folder", FOLDER)
    old = hub.fetch("hf:o/folder")
    server.requests.clear()
    repository.push({**FOLDER, "config.json": b"{ }"})
    new = hub.fetch("hf:o/folder")
    assert [line for line in server.requests if line.startswith("GET")][1:] == [
        f"GET /o/folder/resolve/{new.name}/config.json"
    ]
    assert [line.partition(", to ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "llamagpu: downloading hf:o/folder: 3 files, 6.8 KiB", "llamagpu: downloading hf:o/folder: 1 file, 3 B",
    ]  # fmt: skip
    assert (new / "config.json").read_bytes() == b"{ }"
    assert (new / "model.safetensors").samefile(old / "model.safetensors")
    repository.push({**FOLDER, "config.json": b"tag"}, branch="v1.0")
    assert (hub.fetch("hf:o/folder@v1.0") / "config.json").read_bytes() == b"tag"
    assert hub.fetch(f"hf:o/folder@{old.name}:model.safetensors") == old / "model.safetensors"
    assert hub.fetch("hf:o/folder") == new


def test_without_a_network_the_cache_serves(
    stories: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = hub.fetch("hf:o/stories")
    capsys.readouterr()
    stories.status = 503
    assert hub.fetch("hf:o/stories") == there
    message = f"hf:o/stories: {stories.url} answers with status 503: try again later; using the copy in the cache"
    assert capsys.readouterr().err == f"llamagpu: {message}\n"
    stories.requests.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch("hf:o/stories") == there
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch("hf:o/stories:stories.bin") == there
    assert capsys.readouterr().err == ""  # as it was asked for
    assert stories.requests == []
    with pytest.raises(
        HubError, match=r"^hf:o/other: HF_HUB_OFFLINE is set, so nothing is downloaded; the cache does not"
    ):
        hub.fetch("hf:o/other")
    with pytest.raises(HubError, match=r"nothing is downloaded; in the cache, hf:o/stories does not have a file 'q8'"):
        hub.fetch("hf:o/stories:q8")


def test_a_broken_download_is_never_taken_for_a_model(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = server.add("o/folder", FOLDER)
    old = hub.fetch("hf:o/folder")
    repository.push({**FOLDER, "config.json": b"{ }", "model.safetensors": b"new"})
    get = hub.get

    def full(library: Any, name: hub.Name, commit: str, file: str) -> Path:
        if file == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", "blob")
        return get(library, name, commit, file)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "get", full)
        with pytest.raises(HubError, match=r"^hf:o/folder: the disk of .*home/hub is full: make room, or set HF_HOME"):
            hub.fetch("hf:o/folder")
    server.status = 500
    assert hub.fetch("hf:o/folder") == old
    server.status = 0
    server.requests.clear()
    assert (hub.fetch("hf:o/folder") / "model.safetensors").read_bytes() == b"new"
    assert server.downloads() == ["model.safetensors"]  # the rest was there


def test_a_broken_connection_is_taken_up_where_it_broke(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(50_000)
    server.add("o/gguf", {"a.gguf": data})
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.cut = 20_500
    with suppress(HubError):  # huggingface_hub before 2.0 gives up, and goes on when it is asked again
        hub.fetch("hf:o/gguf")
    assert hub.fetch("hf:o/gguf").read_bytes() == data
    assert server.downloads() == ["a.gguf", "a.gguf"]
    assert len(server.ranges) == 1
    assert 0 < int(server.ranges[0][6:-1]) <= 20_500


def test_a_hub_that_goes_away_between_two_files(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("o/folder", FOLDER)
    announce = hub.announce

    def goes_away(*arguments: Any) -> None:
        announce(*arguments)
        server.status = 500

    monkeypatch.setattr(hub, "announce", goes_away)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(HubError, match=rf"^hf:o/folder: {server.url} answers with status 500: try again later$"):
        hub.fetch("hf:o/folder")


def test_a_disk_that_is_too_small_is_told_before(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("o/folder", FOLDER)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(
        HubError, match=r"^hf:o/folder needs 6\.8 KiB, and the disk of .*hub has 1\.0 MiB free: make room"
    ):
        hub.fetch("hf:o/folder")
    assert server.downloads() == []


def test_a_cache_that_cannot_be_written(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("o/folder", FOLDER)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(HubError, match=r"^hf:o/folder: the cache cannot be written: Not a directory: .*file"):
        hub.fetch("hf:o/folder")


def test_each_refusal_says_what_to_do(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("o/gated", FOLDER).gated = True
    server.add("o/folder", FOLDER)
    url = server.url

    def fails(name: str) -> str:
        with pytest.raises(HubError) as caught:
            hub.fetch(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    asking = f"ask for it at {url}/o/gated, then set HF_TOKEN or run `hf auth login`"
    assert fails("hf:o/gated") == f"hf:o/gated: access is granted on request: {asking}"
    unknown = f"{url} does not have this model, or it is private: check the name, or set HF_TOKEN"
    assert fails("hf:o/none") == f"hf:o/none: {unknown}; the cache does not hold it"
    revision = "it does not have a revision 'v2': give a branch, a tag or a commit"
    assert fails("hf:o/folder@v2") == f"hf:o/folder@v2: {revision}; the cache does not hold it"
    server.status = 403
    assert f"{url} refuses access (status 403): check HF_TOKEN" in fails("hf:o/folder")
    server.status = 429
    assert f"{url} answers with status 429: try again later" in fails("hf:o/folder")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached, or the connection broke (Connect" in fails("hf:o/folder")


@pytest.mark.parametrize(
    "name", ["hf:", "hf:name", "hf:a/b/c", "hf:../b", "hf:a/b@../c", "hf:a/b:", "hf:a/b@", "hf:a b/c"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="is not a name of the Hugging Face Hub: give hf:owner/name"):
        model_path(name)


def test_a_name_of_the_hub_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("o/name", "o/name:Q4_K_M", "TheBloke/Llama-2-7B-GGUF"):
        with pytest.raises(UsageError, match=f"no file or folder '{name}': to download it .*, give hf:{name}$"):
            model_path(name)
    for name in ("models/mine", "o/name.gguf", "name", "/o/name", "./name", "a/b/c"):  # more likely a wrong path
        with pytest.raises(UsageError, match=r"no file or folder '[^']*': MODEL comes first"):
            model_path(name)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UsageError, match=r'^models of the Hugging Face Hub need another package: pip install "llamagpu\[hub\]"$'
    ):
        hub.fetch("hf:o/name")


def test_pull_prints_where_the_model_is(stories: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["pull", "o/stories"]) == 0
    out, err = capsys.readouterr()
    assert Path(out.rstrip("\n")).read_bytes() == STORIES
    assert err.startswith("llamagpu: downloading hf:o/stories: 2 files, ")
    assert err.count("\n") == 1  # no bar, since it is not a terminal
    assert run_command(["pull", "o/none"]) == 1
    assert run_command(["pull", "none"]) == 2


def test_progress_is_shown_on_a_terminal(server: Hub) -> None:
    server.add("o/gguf", {"a.gguf": bytes(1 << 20)})
    main, of_child = pty.openpty()
    with open(main, "rb", buffering=0) as terminal:
        termios.tcsetwinsize(of_child, (24, 100))
        command = [sys.executable, "-m", "llamagpu", "pull", "hf:o/gguf"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=of_child, timeout=60, check=True)
        os.close(of_child)
        shown = b""
        with suppress(OSError):  # how Linux says that nobody writes there any more
            while part := terminal.read(1 << 16):
                shown += part
    assert b"a.gguf: 100%" in shown
    assert done.stdout.endswith(b"a.gguf\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_download_that_is_ended_leaves_no_part_of_a_file(number: signal.Signals, server: Hub, tmp_path: Path) -> None:
    server.add("o/gguf", {"a.gguf": bytes(30 << 20)})  # of several parts as huggingface_hub reads them
    server.held = threading.Event()
    blobs = tmp_path / "home" / "hub" / "models--o--gguf" / "blobs"
    process = subprocess.Popen([sys.executable, "-m", "llamagpu", "pull", "hf:o/gguf"], stderr=subprocess.PIPE)
    with process:
        until = time.monotonic() + 60
        while (
            not (blobs.exists() and any(file.stat().st_size for file in blobs.iterdir())) and time.monotonic() < until
        ):
            time.sleep(0.02)
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.read().count(b"\n") == 1  # what is downloaded
    server.held.set()
    assert process.returncode == 128 + number
    # before 2.0 a part has a name that does not change, and the next download goes on with it
    assert [file.name for file in blobs.iterdir() if file.name.count(".") != 1] == []
