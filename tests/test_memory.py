"""--session: saved, killed and resumed as if nothing had happened; whatever is damaged or foreign is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import llamagpu
from llamagpu.backends.cuda.device import Device
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import session_file
from llamagpu.formats.fingerprint import fingerprint
from llamagpu.formats.session_file import SavedSession
from llamagpu.generation import Answer
from llamagpu.llm import LLM
from llamagpu.memory import Memory
from llamagpu.sampling import SamplingParams
from tests.memory_files import WARM, begin
from tests.models.test_architectures_on_cuda import random_model
from tests.models.test_llama_on_cuda import both
from tests.small_files import Shape, random_weights, v0_bytes
from tests.test_cli import fails
from tests.test_cli import llamagpu as command
from tests.test_session import GREEDY, PROMPT, logits_after, new_session

N_KILLS = int(os.environ.get("LLAMAGPU_TEST_KILLS", "25"))  # of test_killed_at_any_moment


@pytest.fixture
def llm(small_model: Path) -> LLM:
    return llamagpu.load(small_model, device="cpu")


@pytest.fixture
def saved(llm: LLM, tmp_path: Path) -> Path:
    path = tmp_path / "a.memory"
    session = new_session(llm)
    "".join(Answer(session, 5, WARM))
    Memory(str(path)).save(session)
    return path


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_resumed_as_if_nothing_had_happened(params: SamplingParams, tmp_path: Path) -> None:
    llm = llamagpu.load("demo", device="cpu")
    whole = begin(llm)
    "".join(Answer(whole, 40, params))
    memory = Memory(str(tmp_path / "a"))
    memory.save(begin(llm))
    for n in (1, 30, 9):
        session, chat = memory.load(llamagpu.load("demo", device="cpu"))
        "".join(Answer(session, n, params))
        memory.save(session, chat)
    again, chat = memory.load(llm)
    assert (again.tokens, again.n_drawn, chat) == (whole.tokens, 40, "")
    assert params == GREEDY or again.seed == params.seed


@pytest.mark.parametrize("kv_bits", [16, 8])
def test_on_both_devices_and_from_one_to_the_other(kv_bits: int, device: Device, tmp_path: Path) -> None:
    models = both(random_model("qwen2", "float32"), device)
    expected = None
    for llm in models:
        llm.kv_bits = kv_bits
    for writer in models:
        session = new_session(writer)
        memory = Memory(str(tmp_path / writer.backend.name))
        session.read(512)
        memory.save(session)
        session.add([4, 5])
        expected = logits_after(session) if expected is None else expected
        for reader in models:
            other, _ = memory.load(reader)
            assert (other.tokens, other.pending) == (PROMPT, PROMPT[-1:])
            other.add([4, 5])
            np.testing.assert_allclose(logits_after(other), expected, atol=1e-4)


def test_run_goes_on(small_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.memory"
    warm = ("--device", "cpu", "--temperature", "1.5", "--seed", "9")
    whole = command("run", small_model, "on the", *warm, "--max_tokens", "20").stdout
    first = command("run", small_model, "on the", *warm, "--max_tokens", "8", "--session", path)
    assert first.returncode == 0
    second = command(
        "run", small_model, "--device", "cpu", "--temperature", "1.5", "--max_tokens", "12", "--session", path
    )
    assert f"went on from {path}: 11 tokens" in second.stderr.decode()
    assert "seed 9" in second.stderr.decode()  # of the file
    assert first.stdout + second.stdout == whole
    third = command("run", small_model, " the on", "--device", "cpu", "--max_tokens", "1", "--session", path)
    assert third.returncode == 0, third.stderr
    session, _ = Memory(str(path)).load(llamagpu.load(small_model))
    text = session.llm.tokenizer.decode(session.tokens)
    assert text.startswith("on the")
    assert " the on" in text.removeprefix("on the")
    assert session.tokens.count(1) == 1  # one start token
    many = fails("run", small_model, "x" * 30, "--device", "cpu", "--session", path)
    assert "the context of 32 tokens is full" in many


def test_nothing_that_was_said_is_not_lost_to_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "a.memory"
    arguments = [sys.executable, "-m", "llamagpu", "run", "demo", "--max_tokens", "100000", "--session", str(path)]
    arguments += ["--device", "cpu", "--context", "256"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    shown = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    shown += process.communicate(timeout=30)[0]
    session, _ = Memory(str(path)).load(llamagpu.load("demo", device="cpu"))
    assert session.llm.tokenizer.decode(session.tokens) == "Once upon a time" + shown.decode()


def refused(path: Path, llm: LLM) -> str:
    """Reading it must fail in one line and leave it as it is; the reason."""
    before = path.read_bytes()
    with pytest.raises(ModelFormatError) as caught:
        Memory(str(path)).load(llm)
    assert path.read_bytes() == before
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_damaged_byte_is_noticed(saved: Path, llm: LLM) -> None:
    whole = saved.read_bytes()
    places = {*range(0, 1200), *range(1200, len(whole), 97), *range(len(whole) - 40, len(whole))}
    rng = random.Random(1)
    for at in sorted(places):
        damaged = bytearray(whole)
        damaged[at] ^= rng.randrange(1, 256)
        saved.write_bytes(damaged)
        refused(saved, llm)
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        refused(saved, llm)
    saved.write_bytes(whole + b"\0")
    refused(saved, llm)
    saved.write_bytes(whole)
    assert Memory(str(saved)).load(llm)[0].length == 10


def test_what_is_foreign_is_refused(saved: Path, llm: LLM, small_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(v0_bytes(Shape(), random_weights(Shape(), seed=1)))
    assert "fingerprint: is of another model" in refused(saved, llamagpu.load(other, device="cpu"))
    save_file({"keys": np.zeros((2, 3), np.float32)}, saved)
    assert "no memory of llamagpu" in refused(saved, llm)
    saved.write_text("once upon a time, a text that is no memory of anything")
    assert "header length" in refused(saved, llm)
    before = saved.read_bytes()
    assert "header length" in fails("run", small_model, "a", "--session", saved, "--device", "cpu", status=1)
    assert saved.read_bytes() == before


def test_a_newer_version_says_so(saved: Path, llm: LLM) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data.replace(b'memory_version":"2"', b'memory_version":"3"'))
    assert "llamagpu.memory_version: is '3'; this version reads 1 and 2" in refused(saved, llm)


def test_a_valid_checksum_over_nonsense(saved: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that someone made by hand."""
    monkeypatch.setattr(session_file, "verify", lambda *arguments: None)
    good = session_file.read(saved, fingerprint(llm.checkpoint))
    bad = {
        "holds arrays": replace(good, arrays={"keys": good.arrays["keys"]}),
        "tokens: are fewer than": replace(good, tokens=good.tokens[:3]),
        "is not of this model": replace(good, tokens=[*good.tokens, 300]),
        "this model has": replace(good, arrays={name: array[:1] for name, array in good.arrays.items()}),
    }
    for reason, session in bad.items():
        session_file.write(saved, fingerprint(llm.checkpoint), session)
        assert reason in refused(saved, llm)
    header_bytes = struct.unpack("<Q", saved.read_bytes()[:8])[0]
    entries = json.loads(saved.read_bytes()[8 : 8 + header_bytes])
    assert entries["__metadata__"]["created_by"] == f"llamagpu {llamagpu.__version__}"


def test_the_fingerprint_is_of_the_contents(small_model: Path, tmp_path: Path) -> None:
    first = fingerprint(llamagpu.load(small_model).checkpoint)
    moved = tmp_path / "moved.bin"
    data = bytearray(small_model.read_bytes())
    moved.write_bytes(data)
    assert fingerprint(llamagpu.load(moved).checkpoint) == first
    data[28 + 4 * 300 * 16 + 5] ^= 1  # in the first norm
    moved.write_bytes(data)
    assert fingerprint(llamagpu.load(moved).checkpoint) != first


def test_where_it_cannot_be_written_is_said_before_any_work(small_model: Path, tmp_path: Path) -> None:
    assert "is no folder" in fails("run", small_model, "a", "--session", tmp_path / "no" / "file", status=2)
    assert "is no regular file" in fails("run", small_model, "a", "--session", tmp_path, status=2)
    assert "must be auto, llamagpu or llama2rnn" in fails(
        "run", small_model, "a", "--session", tmp_path / "a", "--session_format", "x", status=2
    )
    foreign = ("--session", tmp_path / "a", "--session_format", "llama2rnn", "--device", "cpu")
    assert "has keys and values and no memory" in fails("run", small_model, "a", *foreign, status=2)


def test_any_array_survives(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "number": np.asarray(3, np.int64),
        "none": np.zeros((2, 0, 3), np.float16),
        "signs": np.arange(-3, 3, dtype=np.int8),
        "columns": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    }
    saved = SavedSession(arrays, 2, [1, 2], 0, 5, (1 << 64) - 1, '{"é": "\u2028"}')
    session_file.write(tmp_path / "a", "f", saved)
    back = session_file.read(tmp_path / "a", "f")
    assert replace(back, arrays=arrays) == saved
    assert back.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(back.arrays[name], array)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL during saves: the file is whole, and as new as the last save that was told of."""
    path, rng = tmp_path / "a.memory", random.Random(N_KILLS)
    llm = llamagpu.load("demo", device="cpu")
    whole = begin(llm)
    "".join(Answer(whole, 185, WARM))
    told = n_kills = 0
    while n_kills < N_KILLS:
        process = subprocess.Popen([sys.executable, "-m", "tests.memory_files", path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        lines = [process.stdout.readline()]  # it has begun
        time.sleep(rng.random() * 0.06)
        process.kill()
        n_kills += process.wait() == -9
        lines += process.stdout.read().splitlines()
        process.stdout.close()
        told = max([told, *(int(line) for line in lines if line.strip())])
        session, _ = Memory(str(path)).load(llm)
        assert session.length in (told, told + 1)
        assert session.tokens == whole.tokens[: session.length]
        if session.length > 170:
            path.unlink()
            told = 0
    assert n_kills == N_KILLS


def test_a_writer_that_fails_leaves_the_old_file(saved: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    session, _ = Memory(str(saved)).load(llm)
    session.add([5])
    with pytest.raises(UsageError, match="No space left"):
        Memory(str(saved)).save(session)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir() if "part" in path.name] == []
