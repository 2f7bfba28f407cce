"""Text as people keep it in files, or send through a pipe: UTF-8, without what Windows adds to it."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from llamagpu.errors import UsageError

# Marks of other encodings. That of UTF-32 begins as that of UTF-16 does, so it comes first.
OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
REMEDY = "save it as UTF-8"
STANDARD_INPUT = "standard input"


def read_text_file(file: str, shown: str | None = None, most: int | None = None) -> str:
    """The text of a file; "-" is standard input. Raises UsageError.

    shown: what errors call the file. most: bytes to read at most; the text then ends before a space.
    """
    shown = file if shown is None else shown
    try:
        if file == "-":
            data = sys.stdin.buffer.read()
        else:
            with Path(file).open("rb") as opened:
                data = opened.read() if most is None else opened.read(most)
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown}: {getattr(error, 'strerror', None) or error}") from None
    end = data.rfind(b" ") if len(data) == most else 0  # not within a character
    return decoded(data[:end] if end > 0 else data, shown)


def piped_text() -> str:
    """What another program sends, or a file that stdin is read from; empty at a terminal. Raises UsageError."""
    return "" if sys.stdin.isatty() else without_newline(read_text_file("-", STANDARD_INPUT))


def without_newline(text: str) -> str:
    """Without the newline that editors and ``echo`` put at the end: one, and no more."""
    return text.removesuffix("\n")


def decoded(data: bytes, shown: str) -> str:
    """The text of UTF-8 bytes, without a leading U+FEFF, and with CR LF as LF. Raises UsageError."""
    for mark, encoding in OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise UsageError(f"{shown}: is {encoding}, not UTF-8 text: {REMEDY}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown}: is no UTF-8 text (byte {error.start}): {REMEDY}") from None
    if "\0" in text:
        raise UsageError(f"{shown}: holds a NUL (byte {data.index(0)}), so it is no UTF-8 text: {REMEDY}")
    return text.removeprefix("\ufeff").replace("\r\n", "\n")
