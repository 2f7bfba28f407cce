"""What a person at the terminal meets: text, notices, progress, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from llamagpu.errors import printable

ENDING = tuple({signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)})  # a terminal that closes sends the latter

DELAY = 0.5  # seconds before a bar is shown


class Interrupt:
    """While entered, a signal takes effect where ``check`` is called: between pieces of text, so that none is lost.

    SIGINT, Ctrl-C, is raised as KeyboardInterrupt; others as SystemExit with the status that a shell gives them, which
    is 128 and their number. A second Ctrl-C is raised at once; a second of the others, which come in pairs, is not.
    """

    def __init__(self, *numbers: int) -> None:
        """numbers: of signals; SIGINT where none are given."""
        self.numbers = numbers or (signal.SIGINT,)
        self.asked = 0  # the signal that came
        self.at_once = False  # whether it was raised wherever the program was, in the midst of a step perhaps
        self._stack, self._waits = ExitStack(), False

    def __enter__(self) -> Self:
        self._stack.enter_context(handled(self.numbers, self.ask))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def ask(self, number: int, frame: object = None) -> None:
        self.at_once = bool(self.asked) and number == signal.SIGINT
        self.asked = number if self.at_once else self.asked or number
        if self.at_once or self._waits:
            self.check()

    def check(self) -> None:
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked:
            raise SystemExit(128 + self.asked)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While a user is waited for, nothing can be lost: a signal takes effect at once."""
        self._waits = True
        try:
            self.check()
            yield
        finally:
            self._waits = False


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Let ``handler`` have these signals. What is ignored stays so (nohup ignores SIGHUP), but for SIGINT, which each
    process in the background ignores."""
    before: dict[int, Any] = {}
    for number in numbers:
        known = signal.getsignal(number)
        if known == signal.SIG_IGN and number != signal.SIGINT:
            continue
        try:
            signal.signal(number, handler)
        except ValueError:  # not in the main thread: then nobody sends it signals
            break
        before[number] = signal.SIG_DFL if known is None else known
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


class ProgressBar:
    """A tqdm bar on stderr, shown on a terminal only, and only for work that takes a while. tqdm is imported for those
    alone: it takes as long as a short run."""

    def __init__(self, title: str, unit: str, total: int = 0) -> None:
        self.title, self.unit, self.total = title, unit, total
        self._bar: Any = None  # a tqdm, once there is something to show
        self._begun, self._n_done = 0.0, 0  # before there is
        self._closed = not sys.stderr.isatty()

    def advance(self, n: int) -> None:
        if self._closed:
            return
        self._begun = self._begun or time.monotonic()
        self._n_done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._begun > DELAY:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, initial=self._n_done, desc=self.title, unit=self.unit, unit_scale=True, leave=False,
                file=sys.stderr,
            )  # fmt: skip

    def close(self) -> None:
        """Take it off the screen; what is done after this is not shown."""
        self._closed = True
        if self._bar is not None:
            self._bar.close()


# All but newline and tab: ESC and C1's CSI begin commands to the terminal, and a return lets a line be written over.
# Beside those, what turns the order around in which letters are shown; the marks that right-to-left texts need remain.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """``text`` with control characters as Python writes them, such as \\x1b: for a terminal, which obeys them."""
    return CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def write_text(text: str) -> None:
    """Write text to stdout now, always as UTF-8, whatever the locale. A file or a pipe gets it as it is."""
    sys.stdout.buffer.write((visible(text) if sys.stdout.isatty() else text).encode())
    sys.stdout.buffer.flush()


def say(message: str) -> None:
    """A notice, on one line whatever it quotes."""
    print(f"llamagpu: {printable(message)}", file=sys.stderr, flush=True)


def say_removed(names: Iterable[str]) -> None:
    """Of leftovers.remove_leftovers."""
    for name in names:
        say(f"removed {name}, which a process that was killed had not finished")


def count_tokens(n: int) -> str:
    return f"{n} token{'' if n == 1 else 's'}"


def dim(text: str) -> str:
    return text if "NO_COLOR" in os.environ else f"\033[2m{text}\033[0m"


def human_bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.2f} GiB"
