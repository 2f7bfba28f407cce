"""Write a file or a folder so that its name only ever stands for the whole of it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llamagpu.errors import UsageError


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nothing has. It is known before there is a file, so that cleaning up misses none."""
    return path.parent / f".llamagpu-{secrets.token_hex(8)}.part"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on success sync it and rename it, on any failure remove it."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
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

    A folder that has the name already gives way at the last moment, and is removed then.
    """
    temporary, before = temporary_name(path), temporary_name(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            os.rename(path, before)
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if before.exists() and not path.exists():
            os.rename(before, path)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)
