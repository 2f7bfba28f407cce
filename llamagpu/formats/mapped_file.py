"""A memory-mapped file whose every access is checked against its length."""

from __future__ import annotations

import errno
import math
import mmap
import os
import stat
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.errors import ModelFormatError
from llamagpu.watched_file import watch

LFS_POINTER = b"version https://git-lfs."  # a few lines of text that stand for a file in a repository
LONGEST_POINTER = 1024
POINTER_PROBLEM = "is a Git LFS pointer, not the file"
CUT_SHORT = "the download was cut short or the file is damaged: fetch or export it again"


def check_readable(path: Path) -> int:
    """Size in bytes of a regular, readable, non-empty file; anything else is a ModelFormatError, also a Git LFS pointer
    in place of one."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ModelFormatError(path, "path", "is a folder", "give the model file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelFormatError(path, "path", "is no regular file", "give a file on disk: models are memory-mapped")
        with open(path, "rb") as file:
            head = file.read(len(LFS_POINTER)) if status.st_size <= LONGEST_POINTER else b""
    except PermissionError:
        raise ModelFormatError(path, "path", "may not be read", "change its permissions (chmod +r)") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelFormatError(path, "path", f"cannot be opened ({reason})", "check its name") from None
    if status.st_size == 0:
        raise ModelFormatError(path, "length", "is 0 bytes", CUT_SHORT)
    if head == LFS_POINTER:
        raise ModelFormatError(path, "header", POINTER_PROBLEM, "run: git lfs pull")
    return status.st_size


def cannot_map(path: Path, size: int) -> ModelFormatError:
    problem = f"is {size} bytes, more than this process may still map"
    return ModelFormatError(path, "length", problem, "raise its limit of address space (ulimit -v)")


_MAPS: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def forget_pages() -> None:
    """Give back the memory of what was read from mapped files; what is used again is read again.

    The system would do so itself once memory is short, but until then a file read from end to end counts as memory that
    this process holds.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in list(_MAPS):
            mapped.madvise(mmap.MADV_DONTNEED)


class MappedFile:
    """Read-only map of a file. Arrays taken from it are views: nothing is read before it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_readable(path)
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.size = len(mapped)
            watch(path, status, mapped)
            self.bytes: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)
            _MAPS.add(mapped)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise cannot_map(path, status.st_size) from None
            raise ModelFormatError(path, "path", f"cannot be mapped ({error})", "copy it to a local disk") from None

    def array(self, offset: int, dtype: DTypeLike, shape: tuple[int, ...], field: str) -> NDArray[Any]:
        """View of ``shape`` at ``offset``; ModelFormatError where that would reach past the end."""
        dtype = np.dtype(dtype)
        end = offset + math.prod(shape) * dtype.itemsize
        if offset < 0 or end > self.size:
            raise ModelFormatError(
                self.path, field, f"needs bytes {offset} to {end} of a file of {self.size}", CUT_SHORT
            )
        return np.ndarray(shape, dtype, buffer=self.bytes.data, offset=offset)
