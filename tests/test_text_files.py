"""What people's text files hold beside their text: marks of encodings, Windows' line ends, other encodings."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagpu.errors import UsageError
from llamagpu.quality_commands import read_text
from llamagpu.text_files import read_text_file
from tests.test_cli import GREEDY, fails, llamagpu

TEXT = "on the\nhill 猫"
WRITTEN = {
    "plain": TEXT.encode(),
    "mark": TEXT.encode("utf-8-sig"),
    "windows": TEXT.replace("\n", "\r\n").encode(),
    "both": TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
}
OTHERS = {
    "utf-16": (TEXT.encode("utf-16"), "is UTF-16, not UTF-8 text: save it as UTF-8"),
    "utf-16-be": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "is UTF-16, not UTF-8"),
    "utf-32": (TEXT.encode("utf-32"), "is UTF-32, not UTF-8"),
    "no mark": ("on the".encode("utf-16-le"), r"holds a NUL \(byte 1\)"),
    "nul": (b"on\0the", r"holds a NUL \(byte 2\)"),
    "latin-1": (b"caf\xe9", r"is no UTF-8 text \(byte 3\): save it as UTF-8"),
}


@pytest.mark.parametrize("data", WRITTEN.values(), ids=WRITTEN)
def test_every_reader_reads_the_text_that_was_meant(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    assert read_text_file(str(path)) == read_text(str(path)) == TEXT


def test_only_the_first_mark_is_one_and_only_cr_lf_is_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeff\ufeffa\ufeff\rb\r\r\nc".encode())
    assert read_text_file(str(path)) == "\ufeffa\ufeff\rb\r\nc"


def test_the_beginning_of_a_file_ends_before_a_space(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffone\r\ntwo 猫猫 three".encode())
    assert read_text_file(str(path), most=15) == "one\ntwo"
    assert read_text_file(str(path), most=500) == "one\ntwo 猫猫 three"


@pytest.mark.parametrize(("data", "problem"), OTHERS.values(), ids=OTHERS)
def test_other_encodings_are_refused_in_one_line(data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"--document it: {problem}") as caught:
        read_text_file(str(path), "--document it")
    assert str(caught.value).isprintable()


def test_prompts_and_documents(small_model: Path, tmp_path: Path) -> None:
    """The same text whichever way it comes in: a prompt's file, standard input, a document."""
    path = tmp_path / "prompt.txt"
    expected = llamagpu("run", small_model, TEXT, *GREEDY, "--echo").stdout
    assert expected.startswith(TEXT.encode())
    for data in (WRITTEN["mark"], WRITTEN["both"]):
        path.write_bytes(data)
        assert llamagpu("run", small_model, "--prompt_file", path, *GREEDY, "--echo").stdout == expected
    assert llamagpu("run", small_model, "--prompt_file", "-", *GREEDY, "--echo", stdin=data).stdout == expected
    path.write_bytes(OTHERS["utf-16"][0])
    assert f"--document {path}: is UTF-16" in fails("chat", small_model, "--document", path, status=2)
    assert f"--prompt_file {path}: is UTF-16" in fails("run", small_model, "--prompt_file", path, status=2)


def test_the_lines_of_a_chat_through_a_pipe() -> None:
    options = ("--template", "plain", *GREEDY)
    plain = llamagpu("chat", "demo", *options, stdin="A fox.\nAnd é?\n".encode())
    windows = llamagpu("chat", "demo", *options, stdin="\ufeffA fox.\r\nAnd é?\r\n".encode())
    assert plain.returncode == windows.returncode == 0
    assert plain.stdout.count(b"\n") >= 2
    assert windows.stdout == plain.stdout
    latin = llamagpu("chat", "demo", *options, stdin="A fox.\nAnd é?\n".encode("latin-1"))
    assert latin.returncode == 2
    assert "line 2 of standard input: is no UTF-8 text (byte 4)" in latin.stderr.decode()
    assert latin.stdout == plain.stdout[: len(latin.stdout)] != b"", "what was answered before stands"
