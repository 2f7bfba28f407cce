"""A model's file that changes while it is in use: one line and exit status 1, and no signal that ends the program."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import llamagpu
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.watched_file import ModelChangedError
from tests.references.rwkv_reference import random_weights as rwkv_weights
from tests.rwkv_files import ggmf_bytes
from tests.simple_llama_files import simple_llama_file
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v2_bytes
from tests.test_cli import llamagpu as command

LARGE = Shape(dim=128, hidden_dim=256, n_kv_heads=4)  # of many pages

# The command in a process of its own, whose third piece of text does something to a file.
PROGRAM = """
import os, sys
from llamagpu import chat_room, commands
from llamagpu.cli import run_command
path, act, name, *arguments = sys.argv[1:]
pieces = []
def write_text(text):
    pieces.append(text)
    if len(pieces) == 3:
        exec(act)
commands.write_text = chat_room.write_text = write_text
status = run_command([name, path, *arguments])
print(len(pieces))
sys.exit(status)
"""
CUT, GROW = "os.truncate(path, 300)", "open(path, 'ab').write(b'more')"
TOUCH = "os.utime(path)"
REPLACE = "open(path + '.new', 'wb').write(b'another'); os.replace(path + '.new', path)"
REMOVE = "os.remove(path)"
ARGUMENTS = ("--device", "cpu", "--max_tokens", "12", "--temperature", "0")


def small_file(kind: str, folder: Path) -> Path:
    """A model of this kind, the tokenizer beside it or inside."""
    (folder / "tokenizer.bin").write_bytes(tokenizer_bin())
    path = folder / "model.bin"
    if kind == "rwkv":
        weights = rwkv_weights(7, dim=64, hidden=128, head_dim=16, rank=8, vocab=256)
        path.write_bytes(ggmf_bytes(weights))
    elif kind == "simple-llama q4":
        path.write_bytes(simple_llama_file(4)[0])
    elif kind == "llama2.c Q8_0":
        path.write_bytes(v2_bytes(LARGE, random_weights(LARGE), 64))
    else:
        path.write_bytes(v0_bytes(LARGE, random_weights(LARGE)))
    if kind == "llamagpu q4":
        converted = command("convert", path, folder / "q4.bin", "--quantize", "q4", "--group_size", "64")
        assert converted.returncode == 0, converted.stderr
        path = folder / "q4.bin"
    old = time.time() - 100
    os.utime(path, (old, old))
    return path


def run_while(act: str, path: Path, *arguments: str, stdin: str = "") -> tuple[int, str, int]:
    """Exit status, stderr, and how many pieces of text came."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), act, *(arguments or ("run", "a", *ARGUMENTS))],
        input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return result.returncode, result.stderr, int(result.stdout or -1)


KINDS = ["float32", "llama2.c Q8_0", "simple-llama q4", "llamagpu q4", "rwkv"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_in_the_middle_of_a_text(kind: str, tmp_path: Path) -> None:
    path = small_file(kind, tmp_path)
    size = path.stat().st_size
    status, stderr, n_pieces = run_while(CUT, path)
    assert (status, n_pieces) == (1, 3), stderr
    lines = [line for line in stderr.splitlines() if "error" in line]
    assert len(lines) == 1
    assert f"model.bin: the file: was {size} bytes when it was opened and is 300 now" in lines[0].replace(
        "q4.", "model."
    )


@pytest.mark.parametrize("act", [GROW, TOUCH])
def test_a_file_that_is_written_to(act: str, tmp_path: Path) -> None:
    status, stderr, n_pieces = run_while(act, small_file("float32", tmp_path))
    assert (status, n_pieces) == (1, 3), stderr
    assert "when it was opened and is" in stderr or "was written to after it was opened" in stderr


@pytest.mark.parametrize("act", [REPLACE, REMOVE])
def test_a_file_that_is_replaced_or_removed_goes_on(act: str, tmp_path: Path) -> None:
    """The system keeps the old one for as long as it is used."""
    path = small_file("float32", tmp_path)
    expected = command("run", path, "a", *ARGUMENTS)
    status, stderr, n_pieces = run_while(act, path)
    assert (status, "error" in stderr) == (0, False), stderr
    assert n_pieces > 3
    assert expected.returncode == 0


def test_a_chat_ends_with_it(tmp_path: Path) -> None:
    """Each further turn would only say the same."""
    path = small_file("float32", tmp_path)
    status, stderr, _ = run_while(CUT, path, "chat", *ARGUMENTS, stdin="hello\nand again\n")
    assert status == 1
    assert stderr.count("error") == 1
    assert "is 300 now" in stderr


def change(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def test_each_way_to_a_step_looks(tmp_path: Path) -> None:
    path = small_file("float32", tmp_path)
    llm = llamagpu.load(path, device="cpu")
    generation = llm.generate("aa", max_tokens=5)
    parts = llm.logits_in_parts([1, 2])
    change(path)
    for step in (lambda: next(generation), lambda: next(parts)):
        with pytest.raises(ModelChangedError):
            step()


def test_changes_while_it_is_loaded(tmp_path: Path) -> None:
    """As each matrix is taken from the file, which on a GPU is the only time."""
    path = small_file("llama2.c Q8_0", tmp_path)
    checkpoint = open_checkpoint(path)
    seen: list[int] = []

    def on_work(title: str, n: int, total: int) -> None:
        seen.append(n)
        if len(seen) == 2:
            change(path)

    with pytest.raises(ModelChangedError):
        LLM(checkpoint, "cpu", on_work=on_work)
    assert len(seen) == 2
    with pytest.raises(ModelChangedError):
        LLM(checkpoint, "cpu")


def test_convert_keeps_nothing_of_a_file_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamagpu import convert_command

    path, out = small_file("float32", tmp_path), tmp_path / "out.bin"
    monkeypatch.setattr(convert_command, "forget_pages", lambda: change(path))
    with pytest.raises(ModelChangedError):
        convert_command.convert(str(path), str(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "tokenizer.bin"]


def test_every_file_of_a_model_is_watched(tmp_path: Path) -> None:
    """Those of a folder too; and the state of a session that was loaded is no part of the model."""
    path, folder = small_file("float32", tmp_path), tmp_path / "folder"
    done = command("convert", path, folder, "--format", "huggingface", "--tokenizer", "none")
    assert done.returncode == 0, done.stderr
    checkpoint = open_checkpoint(folder)
    assert [file.path.name for file in checkpoint.files] == ["model.safetensors"]
    other = open_checkpoint(path)
    both = replace(checkpoint, files=checkpoint.files + other.files)
    both.check_unchanged()
    change(path)
    with pytest.raises(ModelChangedError, match=r"model\.bin"):
        both.check_unchanged()
    checkpoint.check_unchanged()


def test_looking_takes_microseconds(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from another folder than the one that the path was given in."""
    monkeypatch.chdir(small_model.parent)
    checkpoint = open_checkpoint(small_model.name)
    monkeypatch.chdir("/")
    start = time.process_time()
    for _ in range(1000):
        checkpoint.check_unchanged()
    assert (time.process_time() - start) / 1000 < 200e-6
    change(small_model)
    with pytest.raises(ModelChangedError):
        checkpoint.check_unchanged()


def test_nothing_is_kept_open(small_model: Path) -> None:
    files: list[Callable[[], object]] = [file.mapped for file in open_checkpoint(small_model).files]
    assert [file() for file in files] == [None]
