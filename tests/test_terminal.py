"""What a vocabulary may send to a terminal, and what a file or a pipe gets."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llamagpu.terminal import say, visible
from tests.test_cli import COMMAND

SET_TITLE = "\x1b]0;PWNED\x07"


def test_controls_become_visible() -> None:
    """C0 but for newline and tab, DEL, C1 and what turns the order of letters around; nothing else."""
    for number in range(0x300):
        letter = chr(number)
        is_control = letter not in "\n\t" and (number < 0x20 or 0x7F <= number <= 0x9F)
        assert visible(letter) == (repr(letter)[1:-1] if is_control else letter)
    assert visible("a\x1b[31mb\r\n\tc") == "a\\x1b[31mb\\r\n\tc"
    assert visible("\u202eabc\u2066") == "\\u202eabc\\u2066"
    assert visible("שלום\u200f, مرحبا 猫 🙂") == "שלום\u200f, مرحبا 猫 🙂"


def test_a_notice_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"a name\n{SET_TITLE}\x9b31m")
    assert capsys.readouterr().err == "llamagpu: a name\\n\\x1b]0;PWNED\\x07\\x9b31m\n"


@pytest.fixture
def hostile_model(small_model: Path) -> Path:
    """Each token beyond the bytes is a command to a terminal, or a half of one."""
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    commands = [SET_TITLE.encode(), b"\x1b", b"[31m", b"\xc2\x9b31m", b"\xc2", b"\x9b", b"\r"]
    pieces += [commands[i % len(commands)] + b"%d" % i * (i % 3) for i in range(300 - len(pieces))]
    data = struct.pack("<I", 100) + b"".join(struct.pack("<fI", 0, len(piece)) + piece for piece in pieces)
    (small_model.parent / "tokenizer.bin").write_bytes(data)
    return small_model


def at_terminal(*arguments: str, stderr_too: bool = False) -> bytes:
    """What the command writes to a terminal that is its stdout, and its stderr if asked for."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=theirs, stderr=theirs if stderr_too else subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = bytearray()
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux says so where the other end is closed
                part = b""
            if not part:
                break
            shown += part
    os.close(ours)
    assert process.returncode == 0, bytes(shown)
    return bytes(shown).replace(b"\r\n", b"\n")  # as terminals show a newline


def controls_in(data: bytes) -> list[str]:
    text = data.decode("utf-8", "replace")
    return [c for c in text if (c not in "\n\t" and not c.isprintable() and c.isascii()) or "\x80" <= c <= "\x9f"]


ARGUMENTS = ("--device", "cpu", "--max_tokens", "30", "--temperature", "5", "--seed", "10", "--top_k", "0")


def test_a_vocabulary_sends_no_commands_to_a_terminal(hostile_model: Path) -> None:
    """Also where a command is put together from several tokens."""
    piped = subprocess.run([*COMMAND, "run", str(hostile_model), "", *ARGUMENTS], capture_output=True, check=True)
    assert len(set(controls_in(piped.stdout))) >= 3  # files and pipes get it as it is
    shown = at_terminal("run", str(hostile_model), "", *ARGUMENTS)
    assert controls_in(shown) == []
    assert shown.decode().removesuffix("\n") == visible(piped.stdout.decode())


def test_a_prompt_that_is_shown_sends_none(hostile_model: Path) -> None:
    prompt = hostile_model.parent / "prompt.txt"
    prompt.write_text(SET_TITLE)
    arguments = ("run", str(hostile_model), "--prompt_file", str(prompt), "--device", "cpu", "--max_tokens", "1")
    shown = at_terminal(*arguments, stderr_too=True)
    assert b"\\x1b]0;PWNED\\x07" in shown
    assert set(controls_in(shown)) <= {"\x1b"}  # of what makes it dim, which is ours
    assert shown.count(b"\x1b") == shown.count(b"\x1b[2m") + shown.count(b"\x1b[0m")
    assert controls_in(at_terminal(*arguments, "--echo")) == []


def test_a_name_that_is_shown_sends_none(small_model: Path) -> None:
    hostile = small_model.rename(small_model.with_name(f"{SET_TITLE}.bin"))
    assert controls_in(at_terminal("info", str(hostile), stderr_too=True)) == []
    process = subprocess.run(
        [sys.executable, "-m", "llamagpu", "info", f"no such {SET_TITLE}"], capture_output=True, check=False
    )
    assert controls_in(process.stderr) == []
