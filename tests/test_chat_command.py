"""llamagpu chat as a user runs it: at a real terminal, and through a pipe."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import llamagpu
from llamagpu.memory import Memory
from tests.formats.gguf_files import small_model as small_gguf
from tests.formats.gguf_files import small_vocabulary
from tests.formats.test_gguf import write
from tests.test_cli import fails
from tests.test_cli import llamagpu as command
from tests.test_template_child import NESTED

COMMAND = [sys.executable, "-m", "llamagpu", "chat"]
GREEDY = ("--temperature", "0", "--device", "cpu")
PROMPT = re.compile(">>> ")


class Terminal:
    """A process whose three streams are a terminal, and what it has shown there."""

    def __init__(self, *arguments: str | Path, variables: dict[str, str] | None = None) -> None:
        ours, theirs = pty.openpty()
        self.state = tempfile.mkdtemp()  # the history is not the user's
        known = {"TERM": "dumb", "NO_COLOR": "1", "XDG_STATE_HOME": self.state}
        environment = {**os.environ, **known, **(variables or {})}
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.handle, self.shown = ours, ""

    def wait_for(self, pattern: str | re.Pattern[str], seconds: float = 60) -> str:
        """What was shown up to and with the pattern; it is then taken off."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.shown)):
            if time.monotonic() > end:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"no {pattern!r} in {self.shown!r}")
            if select.select([self.handle], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.handle, 1 << 16).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    assert re.search(pattern, self.shown), f"it ended without {pattern!r}: {self.shown!r}"
        text, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return text

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        status = self.process.wait(timeout=30)
        os.close(self.handle)
        shutil.rmtree(self.state, ignore_errors=True)
        return status


def test_a_chat_at_a_terminal(tmp_path: Path) -> None:
    """Two turns, Ctrl-C during an answer, /save, /quit, and going on from the memory."""
    memory, saved = tmp_path / "a.memory", tmp_path / "b.memory"
    options = ("demo", *GREEDY, "--template", "plain", "--max_tokens", "30", "--session", memory)
    terminal = Terminal(*options)
    start = terminal.wait_for(PROMPT)
    assert "template plain: as asked for" in start
    terminal.type("Tell me of a fox.\n")
    assert "stopped after 30 tokens" in terminal.wait_for(PROMPT)
    terminal.type("/nothing\n")
    assert "there is no /nothing: /save, /load" in terminal.wait_for(PROMPT)
    terminal.type("half a li")
    terminal.wait_for("half a li")
    time.sleep(0.5)  # a signal before readline waits for the next key is noticed at that key
    terminal.ctrl_c()
    assert "Ctrl-C again ends the chat" in terminal.wait_for(PROMPT)
    terminal.type("And then?\n")
    terminal.wait_for(PROMPT)
    terminal.type("/stats\n")
    assert re.search(r"\d+ tokens, room for \d+ more; 4 messages; last turn read", terminal.wait_for(PROMPT))
    terminal.type(f"/save {saved}\n")
    assert f"saved {saved}" in terminal.wait_for(PROMPT)
    terminal.type("/help\n")
    assert "/reset" in terminal.wait_for(PROMPT)
    terminal.type("/quit\n")
    assert terminal.end() == 0
    llm = llamagpu.load("demo", device="cpu")
    first = Memory(str(memory)).load(llm)[0].tokens
    assert Memory(str(saved)).load(llm)[0].tokens == first
    assert "half a li" not in llm.tokenizer.decode(first)

    terminal = Terminal(*options[:-4], "--max_tokens", "400", "--session", memory)
    start = terminal.wait_for(PROMPT)
    assert f"went on from {memory}: {len(first)} tokens, 2 turns" in start
    terminal.type("Go on.\n")
    terminal.wait_for(r"Go on\.\r\n.{20}")  # while it is being said
    terminal.ctrl_c()
    assert "stopped" in terminal.wait_for(PROMPT)
    terminal.type("\x04")  # Ctrl-D
    assert terminal.end() == 0
    second = Memory(str(memory)).load(llm)[0].tokens
    assert second[: len(first)] == first
    assert "User: Go on." in llm.tokenizer.decode(second)
    assert len(first) + 20 < len(second) < len(first) + 400


def test_through_a_pipe_stdout_has_the_answers_alone(tmp_path: Path) -> None:
    memory = tmp_path / "a.memory"
    arguments = ("chat", "demo", *GREEDY, "--max_tokens", "20")
    whole = command(*arguments, stdin=b"Tell me of a fox.\n\n  And then? \nEnd.")
    assert whole.returncode == 0, whole.stderr
    notices = whole.stderr.decode()
    assert "template plain: the model brings none" in notices
    assert "User:" not in whole.stdout.decode() + notices
    lines = b""
    for text in ("Tell me of a fox.", "And then?", "End."):
        part = command(*arguments, "--session", memory, stdin=text.encode())
        assert part.returncode == 0
        lines += part.stdout
    assert lines == whole.stdout
    assert len(lines) > 60
    told = command("run", "demo", "a", "--session", memory, "--device", "cpu")
    assert told.returncode == 2
    assert b"is the session of a chat" in told.stderr


def test_a_document_does_not_drop_a_conversation(tmp_path: Path) -> None:
    document, session = tmp_path / "story.txt", tmp_path / "a.session"
    document.write_text("Once upon a time, there was a fox.")
    options = ("chat", "demo", *GREEDY, "--max_tokens", "3", "--session", session, "--document", document)
    first = command(*options, stdin=b"Who?\n")
    assert "read the document: " in first.stderr.decode()
    second = command(*options, stdin=b"And then?\n/stats\n")
    assert "the document is not read" in second.stderr.decode()
    assert "; 4 messages" in second.stderr.decode()


def test_system_time_document_save_load_reset(tmp_path: Path) -> None:
    document, saved = tmp_path / "story.txt", tmp_path / "a.memory"
    document.write_text("Once upon a time, there was a fox named Rusty. " * 4)
    lines = f"Who?\n/save {saved}\n/reset\n/stats\n/load {saved}\n/stats\n//slash\n"
    options = ("--system", "Be kind.", "--tell_time", "--document", document, "--max_tokens", "8")
    result = command("chat", "demo", *GREEDY, *options, stdin=lines.encode())
    assert result.returncode == 0, result.stderr
    notices = result.stderr.decode()
    for part in (
        "read the document: ", "everything is forgotten", "0 tokens, room for 512 more; 1 messages", "went on from ",
        "3 messages",
    ):  # fmt: skip
        assert part in notices, part
    session, conversation = Memory(str(saved)).load(llamagpu.load("demo", device="cpu"))
    text = session.llm.tokenizer.decode(session.tokens)
    assert text.startswith(document.read_text())
    assert re.search(r"Be kind\.\nUser: \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\)  Who\?\nAssistant:", text)
    assert '"content": "Be kind."' in conversation


def test_a_full_context_is_said_so(small_model: Path) -> None:
    """Through a pipe it ends the chat, at a terminal it does not."""
    options = ("--max_tokens", "4", "--context", "30")
    told = r"error: the context of 30 tokens is full: .* nothing of it was read: /reset forgets the conversation, "
    told += "--context 32 holds more"
    result = command("chat", small_model, *GREEDY, *options, stdin=b"a\n" + b"b" * 40 + b"\na\n")
    assert result.returncode == 2
    assert re.search(told, result.stderr.decode().splitlines()[-1])
    assert result.stdout  # the first answer
    terminal = Terminal(small_model, *GREEDY, *options)
    for line, expected in (("a", ""), ("b" * 40, told), ("/reset", "everything is forgotten"), ("a", "")):
        terminal.wait_for(PROMPT)
        terminal.type(f"{line}\n")
        terminal.wait_for(expected)
    terminal.wait_for(PROMPT)
    terminal.type("/exit\n")
    assert terminal.end() == 0


@pytest.mark.parametrize(
    ("line", "problem", "status"),
    [
        ("/save", "/save needs a file", 2),
        ("/what", "there is no /what: /save, /load", 2),
        ("/load DOCUMENT", "DOCUMENT: header length", 1),
        ("/set top_k many", "--top_k must be a whole number", 2),
        ("/set colour 3", "the names are temperature, top_k", 2),
        ("/set max_tokens 0", "max_tokens must be", 2),
        ("/undo", "nothing was said yet", 2),
        ("/regen", "nothing was said yet", 2),
    ],
)
def test_an_error_ends_a_chat_through_a_pipe(line: str, problem: str, status: int, tmp_path: Path) -> None:
    document = tmp_path / "document"
    document.write_text("no session, but a text that is long enough to have a header")
    result = command("chat", "demo", *GREEDY, stdin=f"{line}\nHi.\n".replace("DOCUMENT", str(document)).encode())
    assert (result.returncode, result.stdout) == (status, b"")
    assert problem.replace("DOCUMENT", str(document)) in result.stderr.decode().splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
def test_a_hostile_template_is_one_line_and_exit_1(tmp_path: Path) -> None:
    """Compares two lists that are nested so often that no one call of it would ever return."""
    file, _ = small_gguf("llama")
    file.keys |= small_vocabulary() | {"tokenizer.chat_template": ("str", NESTED)}
    path = write(tmp_path / "a.gguf", file)
    start = time.monotonic()
    result = command("chat", path, *GREEDY, stdin=b"Hello\nAnd?\n")
    assert time.monotonic() - start < 20  # 4 on a machine that has nothing else to do
    assert (result.returncode, result.stdout) == (1, b"")
    *notices, last = result.stderr.decode().splitlines()
    assert last.startswith(
        "llamagpu: error: the model's chat template cannot be used: it takes longer than 3.0 seconds"
    )
    assert not [line for line in notices if "error" in line]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--template", "x"], "template must be auto, model, llama2 or plain"),
        (["--template", "model"], "brings no chat template"),
        (["--max_tokens", "0"], "max_tokens must be"),
        (["--document", "/no/such"], "--document /no/such: No such file"),
        (["--session", "/no/such/file"], "is no folder that may be written"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], problem: str, small_model: Path) -> None:
    result = command("chat", small_model, "--device", "cpu", *arguments)
    assert result.returncode == 2
    assert result.stdout == b""
    assert problem in result.stderr.decode().splitlines()[-1]


def test_a_damaged_memory_is_refused_and_left(small_model: Path, tmp_path: Path) -> None:
    memory = tmp_path / "a.memory"
    assert command("chat", small_model, *GREEDY, "--max_tokens", "4", "--session", memory, stdin=b"a\n").returncode == 0
    data = bytearray(memory.read_bytes())
    data[-3] ^= 4
    memory.write_bytes(data)
    result = command("chat", small_model, *GREEDY, "--session", memory, stdin=b"a\n")
    assert result.returncode == 1
    assert "checksum: does not fit the contents" in result.stderr.decode()
    assert memory.read_bytes() == data


def test_help() -> None:
    assert b"--tell_time" in command("chat", "--help").stdout
    assert "there is no flag --sytem: did you mean --system?" in fails("chat", "demo", "--sytem", "x", status=2)
