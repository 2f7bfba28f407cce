"""What processes that were killed left behind, told from what living ones are writing."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import zlib
from pathlib import Path

from llamagpu.formats.file_lock import try_lock

NAME = re.compile(r"\.llamagpu-([0-9a-f]{8})-(\d{1,10})-(\d{1,20})-[0-9a-f]{16}\.part")


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nothing has. It is known before there is a file, so that cleaning up misses none.

    It tells machine, process id and when the process began: ids are used again.
    """
    process = os.getpid()
    return path.parent / f".llamagpu-{machine()}-{process}-{began(process) or 0}-{secrets.token_hex(8)}.part"


def remove_leftovers(folder: Path) -> list[str]:
    """Remove files and folders that killed processes were writing in ``folder``; their names.

    What a living process writes stays, and so does what cannot be told: of another machine, or where locks do not work.
    """
    removed = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    for name in names:
        found = NAME.fullmatch(name)
        if found and found[1] == machine() and not is_alive(int(found[2]), int(found[3])) and remove(folder / name):
            removed.append(name)
    return removed


def remove(path: Path) -> bool:
    """Whether it is gone. Its writer locks it: even one that cannot be seen from here, in another container."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return False
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        if not try_lock(handle):
            return False
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except OSError:
        return False
    finally:
        os.close(handle)
    return not path.exists()


def machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def is_alive(process: int, start: int) -> bool:
    """Whether a process runs that began then. Where that is not to be known, it is taken to run."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    now = began(process)
    return now is None or start == 0 or now == start


def began(process: int) -> int | None:
    """When a process began, in the system's own count. None where that is not to be known, -1 of one that has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text("latin-1")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return -1 if state in "ZXx" else int(fields[18])
