"""llamagpu convert: what it refuses, what it leaves behind, what it takes in memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import llamagpu
from llamagpu.formats import native, open_checkpoint
from llamagpu.quantization import AffineQuant
from tests.float_models import float_model
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v2_bytes

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from measure_convert_memory import peak_of_convert, write_random

SHAPE = Shape(dim=64, hidden_dim=96, n_layers=2)
TEXT = "on the table the one and the other one hat " * 60


def run_command(arguments: list[str]) -> int:
    """Imported late: a GPU machine may lack fire, and collects these tests all the same."""
    from llamagpu.cli import run_command

    return run_command(arguments)


class Place(NamedTuple):
    """model: in floats, its tokenizer beside it. text: for calibration. out: an empty folder."""

    model: Path
    text: Path
    out: Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    model, text, out = tmp_path / "model.bin", tmp_path / "text.txt", tmp_path / "out"
    model.write_bytes(v0_bytes(SHAPE, random_weights(SHAPE)))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    text.write_text(TEXT)
    out.mkdir()
    return Place(model, text, out)


def convert(*arguments: Any) -> int:
    return run_command(["convert", *map(str, arguments)])


class Refused:
    """Runs a command that must fail with one line, and leave nothing behind."""

    def __init__(self, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
        self.place, self.capsys = place, capsys

    def __call__(self, *flags: Any, source: Path | None = None, status: int = 2) -> str:
        assert convert(source or self.place.model, self.place.out / "x", *flags) == status
        captured = self.capsys.readouterr()
        lines = captured.err.splitlines()
        assert captured.out == ""
        assert all(line.startswith(("llamagpu: calibrating", "llamagpu: solving")) for line in lines[:-1])
        assert lines[-1].startswith("llamagpu: error: ")
        assert os.listdir(self.place.out) == []
        return lines[-1]


@pytest.fixture
def refused(place: Place, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(place, capsys)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--quantize q5", "--quantize must be none, q8, q4 or gptq, not 'q5'"),
        ("--format gguf", "--format must be llamagpu or huggingface"),
        ("--quantize q4 --group_size 100", "--group_size must be 16, 32"),
        ("--quantize q4 --group_size 8", "--group_size must be 16, 32"),
        ("--quantize q4 --group_size 0", "--group_size must be 16, 32"),
        ("--quantize q4 --group_size -2", "--group_size must be 16, 32"),
        ("--group_size 32", "--group_size is of no use with --quantize none"),
        ("--head_bits 8", "--head_bits is of no use"),
        ("--quantize q8 --head_bits 5", "--head_bits must be 4, 8 or 16"),
        ("--quantize q8 --head_bits 8 --format huggingface", "--head_bits 8 has no place"),
        ("--quantize gptq", "give --calibration FILE"),
        ("--quantize q4 --calibration x.txt", "--calibration is for --quantize gptq"),
        ("--quantize q8 --act_order", "--act_order is for"),
        ("--calibration_tokens 5", "--calibration_tokens is for"),
        ("--quantize q4 --device cuda", "--device is for"),
        ("--quantize gptq --calibration /nonexistent/x", "--calibration /nonexistent/x: No such file"),
        ("--quantize gptq --calibration /", "directory"),
        ("--quantize gptq --calibration x --calibration_tokens 0", "calibration_tokens must be"),
    ],
)
def test_wrong_flags(flags: str, problem: str, refused: Refused) -> None:
    assert problem in refused(*flags.split())


def test_calibration_that_is_no_text(place: Place, refused: Refused) -> None:
    gptq = ("--quantize", "gptq", "--calibration")
    assert "is no UTF-8 text" in refused(*gptq, place.model)
    (place.text.parent / "short.txt").write_text("on the")
    assert "too few to learn from" in refused(*gptq, place.text.parent / "short.txt")
    (place.text.parent / "empty.txt").write_text("")
    assert "0 tokens, too few" in refused(*gptq, place.text.parent / "empty.txt")
    assert "needs a tokenizer" in refused(*gptq, place.text, "--tokenizer", "none")
    if not llamagpu.devices.why_no_gpu(0):
        pytest.skip("there is a GPU")
    assert "--device cuda cannot be used" in refused(*gptq, place.text, "--device", "cuda", status=1)


def test_a_model_that_is_quantised_already(place: Place, refused: Refused) -> None:
    path = place.model.parent / "q8.bin"
    path.write_bytes(v2_bytes(SHAPE, random_weights(SHAPE), 32))
    assert "is already quantised (tok_embeddings.weight: int8)" in refused("--quantize", "q4", source=path)
    assert "--format out" in refused("--format", "huggingface", source=path)
    assert convert(path, place.out / "copy.bin") == 0
    before, after = open_checkpoint(path).tensors, open_checkpoint(place.out / "copy.bin").tensors
    for name, tensor in before.items():
        for part in ("q", "scales") if hasattr(tensor, "q") else ():
            np.testing.assert_array_equal(getattr(tensor, part), getattr(after[name], part))


def test_a_full_disk(place: Place, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(place.out)._replace(free=1 << 20)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert ", and its disk has 1.0 MiB left" in refused("--quantize", "q4")

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    for format in ("llamagpu", "huggingface"):
        assert "cannot write" in refused("--quantize", "q8", "--format", format)
        assert "No space left" in refused("--format", format)


def test_a_disk_that_fills_while_writing(place: Place) -> None:
    """The system itself refuses to let the file grow."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); " \
        "from llamagpu.cli import run_command; sys.exit(run_command(sys.argv[1:]))"  # fmt: skip
    command = [sys.executable, "-c", limited, "convert", str(place.model), str(place.out / "x"), "--quantize", "q8"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"llamagpu: error: cannot write {place.out / 'x'}: ")
    assert os.listdir(place.out) == []


def test_places_that_cannot_be_written(place: Place, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    assert convert(place.model, place.out / "missing" / "x") == 2
    assert "there is no folder" in refused.capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert "may not be written" in refused("--quantize", "q4")


def test_weights_that_are_no_numbers_leave_nothing(place: Place, refused: Refused) -> None:
    weights = random_weights(SHAPE)
    weights["w2"][1, 3, 3] = np.inf
    place.model.write_bytes(v0_bytes(SHAPE, weights))
    problem = "layers.1.feed_forward.w2.weight: has weights that are no numbers"
    for flags in (["--quantize", "q4"], ["--quantize", "gptq", "--calibration", place.text]):
        for format in ("llamagpu", "huggingface"):
            assert problem in refused(*flags, "--format", format, status=1)


@pytest.mark.parametrize("head_bits", [4, 8, 16])
@pytest.mark.parametrize("method", ["q8", "q4", "gptq"])
def test_every_method(method: str, head_bits: int, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    out = place.out / "x.bin"
    flags = ["--calibration", place.text, "--act_order"] if method == "gptq" else []
    flags += ["--quantize", method, "--group_size", "32", "--head_bits", head_bits]
    assert convert(place.model, out, *flags) == 0
    assert "tokenizer inside, in " in capsys.readouterr().err
    opened = open_checkpoint(out)
    wq, table = opened.tensors["layers.1.attention.wq.weight"], opened.tensors["tok_embeddings.weight"]
    assert isinstance(wq, AffineQuant)
    assert (wq.bits, wq.group_size, wq.perm is not None) == (8 if method == "q8" else 4, 32, method == "gptq")
    if head_bits == 16:
        assert isinstance(table, np.ndarray)
        assert table.dtype == np.float16
    else:
        assert isinstance(table, AffineQuant)
        assert table.bits == head_bits
    before, after = (llamagpu.load(path, "cpu").logits([1, 5, 7]) for path in (place.model, out))
    assert np.abs(before - after).mean() < (0.05 if method == "q8" and head_bits > 4 else 0.6)
    assert os.listdir(place.out) == ["x.bin"]


def test_a_folder_is_replaced_only_where_it_is_a_model(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    out = place.out / "folder"
    hugging = ("--format", "huggingface")
    assert convert(place.model, out, *hugging) == 0
    assert "has no file in a Hugging Face folder" in capsys.readouterr().err
    assert sorted(os.listdir(out)) == ["config.json", "generation_config.json", "model.safetensors"]
    assert json.loads((out / "config.json").read_text())["bos_token_id"] == 1
    assert convert(place.model, out, *hugging) == 2
    assert "exists: --force replaces it" in capsys.readouterr().err
    assert convert(place.model, out, *hugging, "--force", "--quantize", "q4", "--group_size", 32) == 0
    assert json.loads((out / "config.json").read_text())["quantization_config"]["group_size"] == 32
    (out / "diary.txt").write_text("mine")
    assert convert(place.model, out, *hugging, "--force") == 2
    assert "holds more than a model, such as 'diary.txt'" in capsys.readouterr().err
    assert convert(place.model, out, "--force") == 2
    assert "is a folder: name the file to write" in capsys.readouterr().err
    assert os.listdir(place.out) == ["folder"]


KILLED = """
import os, random, signal, sys, time
from llamagpu.cli import run_command
source, out, format, seconds = sys.argv[1:5]
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
for i in range(10):
    child = os.fork()
    if not child:
        run_command(["convert", source, f"{out}/{i}", "--quantize", "q4", "--tokenizer", "none", "--format", format])
        os._exit(0)
    time.sleep(random.Random(i).uniform(0, float(seconds)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("format", ["llamagpu", "huggingface"])
def test_killed_at_any_moment_no_part_bears_the_name(format: str, tmp_path: Path) -> None:
    """Twenty times in all. What was killed may leave a file under a temporary name, never under its own."""
    source, out = tmp_path / "source.bin", tmp_path / "out"
    native.write(source, float_model(dim=256, hidden_dim=512, vocab_size=2000, n_layers=3))
    out.mkdir()
    flags = ("--quantize", "q4", "--tokenizer", "none", "--format", format)
    started = time.monotonic()
    assert convert(source, tmp_path / "whole", *flags) == 0
    seconds = time.monotonic() - started
    script = [sys.executable, "-c", KILLED, str(source), str(out), format, str(1.2 * seconds)]
    subprocess.run(script, check=True, timeout=60)
    whole = tmp_path / "whole"
    finished = [path for path in out.iterdir() if not path.name.startswith(".llamagpu-")]
    assert len(finished) < 10
    for path in finished:
        for file in sorted(whole.iterdir()) if whole.is_dir() else [whole]:
            assert (path / file.name if whole.is_dir() else path).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("format", ["llamagpu", "huggingface"])
def test_ended_in_the_middle_nothing_is_left(number: int, status: int, format: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source.bin", tmp_path / "out"
    native.write(source, float_model(dim=512, hidden_dim=2048, n_layers=8))
    out.mkdir()
    command = [
        sys.executable,
        "-m",
        "llamagpu",
        "convert",
        str(source),
        str(out / "x"),
        "--quantize",
        "q4",
        "--format",
        format,
    ]
    process = subprocess.Popen([*command, "--tokenizer", "none"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not os.listdir(out):
        time.sleep(0.01)
    time.sleep(0.1)
    assert process.poll() is None, "it was done too soon to be ended"
    process.send_signal(number)
    _, notices = process.communicate(timeout=30)
    assert process.returncode == status
    assert b"Traceback" not in notices
    assert os.listdir(out) == []


@pytest.mark.parametrize("method", ["q4", "none"])
def test_memory_is_that_of_a_part_of_the_model(method: str, tmp_path: Path) -> None:
    """LLAMAGPU_TEST_LARGE=1: a model of 1 GiB in less than that; else one of 128 MiB in less than that."""
    size = 1 << 30 if os.environ.get("LLAMAGPU_TEST_LARGE") else 128 << 20
    source = tmp_path / "random.bin"
    write_random(source, size, np.dtype(np.float32))
    assert peak_of_convert(source, tmp_path / "out", "--quantize", method) < size
