"""Whether a mapped file is still the one that was opened.

A model is used in place, from the page cache: what another program writes into its file is what the model computes with
next, and where the file is cut off there is nothing at all, and the system ends the program (SIGBUS). So size and time
of change are looked at before each step. What happens within a step is not seen before the next one.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from llamagpu.errors import ModelFormatError


class ModelChangedError(ModelFormatError):
    """A file of the model has changed since it was opened."""


class WatchedFile:
    """A file as it is when it is mapped. Neither the map nor the file is kept open by this."""

    def __init__(self, path: Path, status: os.stat_result, mapped: mmap.mmap) -> None:
        self.path, self.place = path, os.path.abspath(path)  # since the current folder may change
        self.file = status.st_dev, status.st_ino
        self.size, self.changed = len(mapped), status.st_mtime_ns
        self.mapped = weakref.ref(mapped)

    def check(self) -> None:
        """Raises ModelChangedError. A file that another one took the place of, or that was removed, goes on as it was:
        the system keeps it for as long as it is mapped. Of such a one the size alone is looked at.
        """
        mapped = self.mapped()
        if mapped is None:  # nothing is read from it any more
            return
        try:
            status = os.stat(self.place)
            is_same = (status.st_dev, status.st_ino) == self.file
        except OSError:
            is_same = False
        size = status.st_size if is_same else mapped.size()
        if size != self.size:
            raise self.error(f"was {self.size} bytes when it was opened and is {size} now")
        if is_same and status.st_mtime_ns != self.changed:
            raise self.error("was written to after it was opened")

    def error(self, problem: str) -> ModelChangedError:
        remedy = "what was made of it since may be wrong: run it again once the file is whole"
        return ModelChangedError(self.path, "the file", problem, remedy)


_WATCHED: ContextVar[list[WatchedFile] | None] = ContextVar("_WATCHED", default=None)


@contextmanager
def watching() -> Iterator[list[WatchedFile]]:
    """The files that are mapped inside."""
    files: list[WatchedFile] = []
    token = _WATCHED.set(files)
    try:
        yield files
    finally:
        _WATCHED.reset(token)


def watch(path: Path, status: os.stat_result, mapped: mmap.mmap) -> None:
    """Note a file for ``watching``. status: from before it was mapped."""
    files = _WATCHED.get()
    if files is not None:
        files.append(WatchedFile(path, status, mapped))
