"""What a user says in a chat: lines at a terminal with history, or lines and JSON through a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType

from llamagpu.errors import UsageError
from llamagpu.terminal import say
from llamagpu.text_files import decoded

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'
MOST_LINES = 1000  # of the history


def piped_turns(read: Callable[[], bytes]) -> Iterator[str]:
    """Each line that is not empty. read: the next line's bytes. Raises UsageError."""
    for number, data in enumerate(iter(read, b""), 1):
        line = decoded(data, f"line {number} of standard input").strip()
        if line:
            yield line


def json_turns(read: Callable[[], bytes]) -> Iterator[str]:
    """Of each line, an object, what ``user`` says. Raises UsageError."""
    for number, data in enumerate(iter(read, b""), 1):
        shown = f"line {number} of standard input"
        line = decoded(data, shown).strip()
        if not line:
            continue
        try:
            turn = json.loads(line)
        except (ValueError, RecursionError):
            turn = None
        if not isinstance(turn, dict) or list(turn) != ["user"] or not isinstance(turn["user"], str):
            raise UsageError(f'{shown}: is not a JSON object such as {{"user": "Hello"}}')
        yield turn["user"]


class Input:
    """A terminal. waiting: entered while the user is waited for. history: whether lines are kept across chats."""

    def __init__(self, waiting: Callable[[], AbstractContextManager[None]], history: bool, tell_time: bool) -> None:
        self.waiting, self.tell_time = waiting, tell_time
        self.file = history_file() if history else None
        self.readline: ModuleType | None = None
        self.n_before = 0  # lines of the history that other chats left

    def turns(self) -> Iterator[str]:
        """What the user says, stripped, without empty lines. Ctrl-C clears the line; twice in a row ends it."""
        self.begin()
        n_interrupts = 0
        try:
            while n_interrupts < 2:
                try:
                    text = self.read_turn()
                    n_interrupts = 0
                    if text:
                        yield text
                except EOFError:
                    print(file=sys.stderr)
                    return
                except KeyboardInterrupt:
                    n_interrupts += 1
                    print(file=sys.stderr)
                    if n_interrupts == 1:
                        say("Ctrl-C again ends the chat, as Ctrl-D and /exit do")
        finally:
            self.end()

    def read_turn(self) -> str:
        """A line, or all lines between three quotes."""
        text = self.read_line(f"({now()})  {PROMPT}" if self.tell_time else PROMPT).strip()
        if not text.startswith(QUOTES):
            return text
        text = text.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + self.read_line(MORE).rstrip("\n")
        return text.rstrip().removesuffix(QUOTES).strip()

    def read_line(self, prompt: str) -> str:
        """A line; of a paste, where readline can tell, all lines. Raises EOFError."""
        with self.waiting():
            if sys.stdout.isatty():
                return input(prompt)
            print(prompt, end="", file=sys.stderr, flush=True)  # stdout has the answers alone
            line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def begin(self) -> None:
        """Lines are edited with readline where Python has it."""
        try:
            import readline
        except ImportError:
            return
        self.readline = readline
        if "libedit" not in (readline.__doc__ or "") and os.environ.get("TERM", "dumb") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.clear_history()
        if self.file is not None:
            with suppress(OSError):  # there is none yet
                readline.read_history_file(self.file)
        self.n_before = readline.get_current_history_length()

    def end(self) -> None:
        """Put the lines of this chat behind those of others, in a file that nobody else reads."""
        if self.readline is None or self.file is None:
            return
        n_new = self.readline.get_current_history_length() - self.n_before
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o600))
            self.readline.set_history_length(MOST_LINES)
            self.readline.append_history_file(max(0, n_new), self.file)
        except OSError as error:
            say(f"the history is not kept: {error.strerror}: {self.file}")


def history_file() -> Path:
    """Where the system keeps such things: XDG_STATE_HOME, by default ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "llamagpu" / "chat_history"


def talk_at_the_terminal() -> None:
    """After standard input has been read to its end: the rest comes from the terminal. Raises UsageError."""
    if sys.stdin.isatty():
        return
    try:
        handle = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        raise UsageError("standard input was the document, and there is no terminal to talk at") from None
    os.dup2(handle, 0)
    os.close(handle)
    sys.stdin = os.fdopen(0, closefd=False)


def now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
