"""What a person at the terminal meets: text, notices, progress, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any

from llamagpu.errors import printable


class Interrupt:
    """While entered, Ctrl-C takes effect where ``check`` is called: between pieces of text, so that none is lost.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    asked = False

    def __enter__(self) -> None:
        self.handler_before = signal.signal(signal.SIGINT, self.ask)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self.handler_before)

    def ask(self, *signal_and_frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise KeyboardInterrupt


class ProgressBar:
    """A tqdm bar on stderr, shown on a terminal only, and only for work that takes a while."""

    def __init__(self, title: str, unit: str, total: int = 0) -> None:
        self.title, self.unit, self.total = title, unit, total
        self._bar: Any = None  # a tqdm, once there is something to show
        self._closed = False

    def advance(self, n: int) -> None:
        if self._closed:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, desc=self.title, unit=self.unit, unit_scale=True, leave=False, delay=0.5,
                disable=not sys.stderr.isatty(), file=sys.stderr,
            )  # fmt: skip
        self._bar.update(n)

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
