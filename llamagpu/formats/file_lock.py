"""Locks between processes. They are advisory, and gone with the process that held them, however it ended."""

from __future__ import annotations

import hashlib
import os
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PID_DIGITS = 20


def try_lock(handle: int) -> bool | None:
    """Lock an open file or folder. False: another process holds it. None: locks do not work here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


class FileLock:
    """Of a file that is replaced at each save, and so cannot bear the lock itself: a file beside it does.

    Held from ``acquire`` to ``release``, or until nothing refers to it, or to the process's end. holder: the id of the
    process that has it, where that is another one; 0 where it cannot be told.
    """

    holder = 0

    def __init__(self, path: Path) -> None:
        name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # of one length, however long the file's is
        self.path = path.parent / f".llamagpu-{name}.lock"
        self._release: weakref.finalize[[Path, int], FileLock] | None = None

    def acquire(self) -> bool:
        """False where another process holds it. Where locks do not work there is none, and the answer is True."""
        while self._release is None:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
            except OSError:
                return True
            got = try_lock(handle)
            if got and not is_named(handle, self.path):  # its holder has removed it at this moment
                os.close(handle)
                continue
            if got:
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                self._release = weakref.finalize(self, remove_and_close, self.path, handle)
                break
            text = os.read(handle, PID_DIGITS) if got is False else b""
            os.close(handle)
            if got is None:
                with suppress(OSError):
                    self.path.unlink()
                return True
            self.holder = int(text) if text.isdigit() else 0
            return False
        return True

    def release(self) -> None:
        if self._release is not None:
            self._release()
            self._release = None


def is_named(handle: int, path: Path) -> bool:
    """Whether the open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def remove_and_close(path: Path, handle: int) -> None:
    """While it is locked, so that nobody's is removed; closing unlocks it."""
    with suppress(OSError):
        path.unlink()
    os.close(handle)
