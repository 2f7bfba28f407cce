"""Readers of model files, each a module with ``sniff(head)`` and ``open_checkpoint(path)``."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from llamagpu.checkpoint import Checkpoint
from llamagpu.errors import ModelFormatError
from llamagpu.formats import llama2c, native
from llamagpu.formats.mapped_file import check_readable


class Reader(Protocol):
    """What a reader's module offers. Adding a format is adding a file, and its name below."""

    def sniff(self, head: bytes) -> bool:
        """Whether a file that begins with ``head`` may be of this format."""
        ...

    def open_checkpoint(self, path: Path) -> Checkpoint:
        """Map the file. Raises ModelFormatError."""
        ...


READERS: tuple[Reader, ...] = (native, llama2c)  # most certain signature first
SNIFF_BYTES = 64


def read_head(path: Path) -> bytes:
    check_readable(path)
    with open(path, "rb") as file:
        return file.read(SNIFF_BYTES)


def is_model(path: Path) -> bool:
    """Whether a file looks like a model. Raises ModelFormatError where it cannot be read."""
    head = read_head(path)
    return any(reader.sniff(head) for reader in READERS)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model file of any format that is known, told by its content. Raises ModelFormatError."""
    path = Path(path)
    head = read_head(path)
    for reader in READERS:
        if reader.sniff(head):
            return reader.open_checkpoint(path)
    raise ModelFormatError(
        path, "header", "is of no model format that llamagpu reads", "give a llama2.c .bin or a llamagpu model.bin"
    )


__all__ = ["is_model", "open_checkpoint"]
