"""Write a file or a folder so that its name only ever stands for the whole of it.

What is being written has a name of its own beside it, which tells the process that writes, and is locked by it. So what
a killed process left can be told from what a living one is writing: see leftovers.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llamagpu.errors import UsageError
from llamagpu.formats.file_lock import try_lock
from llamagpu.formats.leftovers import temporary_name

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2  # of Linux, Linux and macOS
NO_SUCH_CALL = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # of the system, or of the file system


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on success sync it and rename it, on any failure remove it.

    A file that is replaced keeps its mode and owner. mode: of a new one, less the umask.
    """
    temporary, old = temporary_name(path), status_of(path)
    created_with = mode if old is None else 0o600  # nobody is to read it before it has the mode of the old one
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, created_with)) as file:
            try_lock(file.fileno())
            yield file
            file.flush()
            keep_mode(temporary, old)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder beside ``path``; on success it takes that name, on any failure it is removed.

    A folder that has the name already changes places with it, and is removed then. What is replaced keeps its mode.
    """
    temporary, handle = temporary_name(path), -1
    try:
        temporary.mkdir()
        if os.name == "posix":
            handle = os.open(temporary, os.O_RDONLY)
            try_lock(handle)
        yield temporary
        for file in temporary.iterdir():
            keep_mode(file, status_of(path / file.name))
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        keep_mode(temporary, status_of(path))
        if not path.exists():
            os.rename(temporary, path)
        elif not exchange(temporary, path):
            put_in_place(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # the new one that failed, or the old one
        if handle >= 0:
            os.close(handle)


def status_of(path: Path) -> os.stat_result | None:
    """None where there is nothing."""
    with suppress(OSError):
        return path.stat()
    return None


def keep_mode(path: Path, old: os.stat_result | None) -> None:
    """Give it mode and owner of what it is to replace; the owner where that is allowed."""
    if old is None:
        return
    new = path.stat()
    if os.name == "posix" and (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(OSError):
            os.chown(path, old.st_uid, old.st_gid)
    path.chmod(stat.S_IMODE(old.st_mode))


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step. False where the system cannot, and nothing was done."""
    call = None
    if sys.platform == "linux":
        call, before, between, flags = "renameat2", (AT_FDCWD,), (AT_FDCWD,), RENAME_EXCHANGE
    elif sys.platform == "darwin":
        call, before, between, flags = "renamex_np", (), (), RENAME_SWAP
    rename = getattr(ctypes.CDLL(None, use_errno=True), call, None) if call else None
    if rename is None:
        return False
    if rename(*before, os.fsencode(one), *between, os.fsencode(other), flags) == 0:
        return True
    if ctypes.get_errno() in NO_SUCH_CALL:
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def put_in_place(new: Path, path: Path) -> None:
    """In two steps. What stood there has a name for a moment that nothing removes, should it end between the two."""
    before = new.with_suffix(".old")
    try:
        os.rename(path, before)
        os.rename(new, path)
    except BaseException:
        if before.exists() and not path.exists():
            os.rename(before, path)
        raise
    shutil.rmtree(before, ignore_errors=True)
