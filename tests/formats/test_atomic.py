"""Files and folders take their name whole, keep the mode of what they replace, and what the killed left goes away."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llamagpu.formats import atomic, leftovers
from llamagpu.formats.atomic import atomic_folder, atomic_write
from llamagpu.formats.file_lock import FileLock
from llamagpu.formats.leftovers import remove_leftovers, temporary_name


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("old", [0o600, 0o640, 0o444, 0o777])
def test_what_is_replaced_keeps_its_mode(old: int, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    file.chmod(old)
    with atomic_write(file) as out:
        assert mode(Path(out.name)) == 0o600  # not readable by others before it is whole
        out.write(b"new")
    assert (file.read_text(), mode(file)) == ("new", old)
    folder.mkdir()
    (folder / "a").write_text("old")
    (folder / "a").chmod(old)
    folder.chmod(0o750)
    with atomic_folder(folder) as new:
        (new / "a").write_text("new")
        (new / "b").write_text("new")
    assert [(path.name, path.read_text()) for path in sorted(folder.iterdir())] == [("a", "new"), ("b", "new")]
    assert (mode(folder), mode(folder / "a")) == (0o750, old)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_new_files_have_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for asked, expected in ((0o666, 0o640), (0o600, 0o600)):
            with atomic_write(tmp_path / f"{asked:o}", asked) as out:
                out.write(b"x")
            assert mode(tmp_path / f"{asked:o}") == expected
    finally:
        os.umask(before)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_never_missing(can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two folders can change places, not even for a moment; elsewhere a failure puts the old one back."""
    folder, real = tmp_path / "folder", os.rename
    folder.mkdir()
    (folder / "a").write_text("old")
    if can_exchange:
        other = tmp_path / "other"
        other.mkdir()
        assert atomic.exchange(folder, other)
        assert os.listdir(folder) == []
        assert atomic.exchange(folder, other)
        other.rmdir()
        monkeypatch.setattr(os, "rename", lambda *names: pytest.fail("two steps"))
    else:
        monkeypatch.setattr(atomic, "exchange", lambda *names: False)
    with atomic_folder(folder) as new:
        (new / "a").write_text("new")
    assert (folder / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["folder"]

    def fail_at_the_second(old: Path, new: Path) -> None:
        if new == folder and old.suffix == ".part":
            raise KeyboardInterrupt
        real(old, new)

    monkeypatch.setattr(os, "rename", fail_at_the_second)
    monkeypatch.setattr(atomic, "exchange", lambda *names: False)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as new:
        (new / "a").write_text("newest")
    assert (folder / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["folder"]


def left_by(folder: Path, process: int, start: int, machine: str | None = None) -> Path:
    return folder / f".llamagpu-{machine or leftovers.machine()}-{process}-{start}-{'0' * 16}.part"


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    gone, me = dead(), os.getpid()
    begun = leftovers.began(me)
    assert begun is not None
    assert begun > 0
    remove = {left_by(tmp_path, gone, 5), left_by(tmp_path, me, begun + 1)}  # the other: an id that is used again
    folder = left_by(tmp_path, gone, 6)
    folder.mkdir()
    (folder / "weights").write_text("half")
    stay = {
        temporary_name(tmp_path / "x"),  # of this process
        left_by(tmp_path, os.getppid(), leftovers.began(os.getppid()) or 0),
        left_by(tmp_path, gone, 5, "00000000"),  # of another machine
        tmp_path / f".llamagpu-{'0' * 16}.part",  # of version 0.1, which does not tell
        left_by(tmp_path, gone, 5).with_suffix(".old"),
        tmp_path / "a.part",
    }
    for path in remove | stay:
        path.write_text("half")
    link = left_by(tmp_path, gone, 7)
    link.symlink_to(tmp_path / "a.part")
    assert remove_leftovers(tmp_path) == sorted(path.name for path in {*remove, folder})
    assert set(tmp_path.iterdir()) == {*stay, link}
    assert remove_leftovers(tmp_path / "nothing") == []


HOLDER = """
import sys, time
from pathlib import Path
from llamagpu.formats.atomic import atomic_write
from llamagpu.formats.file_lock import FileLock, try_lock
lock = FileLock(Path(sys.argv[1]))
file = open(sys.argv[2], "rb")
print(lock.acquire(), try_lock(file.fileno()), flush=True)
time.sleep(60)
"""


def holder(file: Path, part: Path) -> subprocess.Popen[bytes]:
    """A process that holds a file, and a temporary one."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, file, part], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"True True\n"
    return process


def test_locks_are_gone_with_their_process(tmp_path: Path) -> None:
    """And what a process writes that cannot be seen from here, in another container, is known by its lock."""
    file, part = tmp_path / "file", left_by(tmp_path, dead(), 5)
    part.write_text("half")
    process = holder(file, part)
    try:
        lock = FileLock(file)
        assert not lock.acquire()
        assert lock.holder == process.pid
        assert remove_leftovers(tmp_path) == []
    finally:
        process.kill()
        process.communicate()
    assert remove_leftovers(tmp_path) == [part.name]
    assert lock.acquire()
    again = FileLock(file)
    assert not again.acquire()
    assert again.holder == os.getpid()
    lock.release()
    assert os.listdir(tmp_path) == []
    assert again.acquire()
    del again
    assert os.listdir(tmp_path) == []


def test_where_locks_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamagpu.formats.file_lock.fcntl", None)
    first, second = FileLock(tmp_path / "file"), FileLock(tmp_path / "file")
    assert first.acquire()
    assert second.acquire()
    part = left_by(tmp_path, dead(), 5)
    part.write_text("half")
    assert remove_leftovers(tmp_path) == []
    assert os.listdir(tmp_path) == [part.name]
