"""Files that torch.save wrote, without torch: a zip of data.pkl and data/{key}, or the same unzipped in a folder.

data.pkl says what there is (pickle_reader.py reads it and runs nothing); each data/{key} is one storage, as it lies in
memory, so tensors are views of the mapped file.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import MappedFile
from llamagpu.formats.pickle_reader import REMEDY, TensorRef, read_pickle
from llamagpu.formats.zip_members import read_members

MAX_PICKLE_BYTES = 1 << 24
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of the number that torch < 1.6 began files with
KEY = re.compile(r"\w{1,32}", re.ASCII)


class TorchFile:
    """What a file or a folder holds. root: the object that was saved, with a TensorRef for each tensor.

    Raises ModelFormatError where that cannot be read, or would name or run anything but tensors and plain data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: Members = FolderMembers(path) if path.is_dir() else ZipMembers(path)
        byte_order = self.members.read("byteorder", 16) if self.members.size("byteorder") is not None else b"little"
        if byte_order != b"little":
            raise ModelFormatError(path, "byteorder", f"is {byte_order!r}", "save the model on a little-endian machine")
        data = self.members.read("data.pkl", MAX_PICKLE_BYTES)
        self.root: Any = read_pickle(data, path, self.members.total_bytes())

    def check(self, tensor: TensorRef, field: str) -> None:
        """That the tensor lies within its storage, rows one after another, and the storage within the file."""

        def refuse(problem: str, remedy: str = REMEDY) -> ModelFormatError:
            return ModelFormatError(self.path, field[:80], problem, remedy)

        storage = tensor.storage
        if not KEY.fullmatch(storage.key):
            raise refuse(f"is in a storage {storage.key[:40]!r}, which is no such name")
        size, expected = self.members.size(f"data/{storage.key}"), storage.numel * storage.dtype.itemsize
        if size is None:
            raise refuse(f"is in the storage data/{storage.key}, which is missing")
        if size != expected:
            raise refuse(f"is in the storage data/{storage.key} of {size} bytes, which should be {expected}")
        count = 1
        for length, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
            if length > 1 and stride != count:
                raise refuse(f"has strides {list(tensor.strides)}, not row after row", "save it with .contiguous()")
            count *= length
        if tensor.offset + count > storage.numel:
            raise refuse(f"needs elements {tensor.offset} to {tensor.offset + count} of {storage.numel}")

    def array(self, tensor: TensorRef, field: str) -> NDArray[Any]:
        """The tensor as a view of the mapped file, in its own type. Raises ModelFormatError."""
        self.check(tensor, field)
        dtype = tensor.storage.dtype
        file, start = self.members.mapped(f"data/{tensor.storage.key}")
        return file.array(start + tensor.offset * dtype.itemsize, dtype, tensor.shape, field[:80])


class ZipMembers:
    """The members of a zip under its one top folder."""

    def __init__(self, path: Path) -> None:
        self.file = MappedFile(path)
        head = self.file.bytes[: len(LEGACY_MAGIC)].tobytes()
        if head == LEGACY_MAGIC:
            remedy = "load it with torch >= 1.6 and save it again"
            raise ModelFormatError(path, "header", "is in torch's format from before 1.6, which is no zip", remedy)
        if not head.startswith(ZIP_MAGIC):
            raise ModelFormatError(path, "header", "is not of a file that torch.save wrote", REMEDY)
        members = read_members(path)
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            problem = f"is in the zip {len(pickles)} times, not once"
            raise ModelFormatError(path, "data.pkl", problem, "give a file that torch.save wrote")
        top = pickles[0].removesuffix("data.pkl")
        self.members = {name.removeprefix(top): at for name, at in members.items() if name.startswith(top)}

    def total_bytes(self) -> int:
        return self.file.size

    def size(self, name: str) -> int | None:
        return self.members[name].size if name in self.members else None

    def read(self, name: str, at_most: int) -> bytes:
        file, start = self.mapped(name)
        size = self.members[name].size
        check_small(self.file.path, name, size, at_most)
        return file.array(start, "u1", (size,), name).tobytes()

    def mapped(self, name: str) -> tuple[MappedFile, int]:
        return self.file, self.members[name].offset


class FolderMembers:
    """The same as files. Each is mapped when it is asked for: a mapping keeps its file open, and there are hundreds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def total_bytes(self) -> int:
        try:
            with os.scandir(self.path / "data") as entries:
                return sum(entry.stat().st_size for entry in entries)
        except OSError:
            return 0

    def size(self, name: str) -> int | None:
        try:
            status = os.stat(self.path / name)
        except (OSError, ValueError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, name: str, at_most: int) -> bytes:
        file, _ = self.mapped(name)
        check_small(self.path / name, name, file.size, at_most)
        return file.bytes.tobytes()

    def mapped(self, name: str) -> tuple[MappedFile, int]:
        return MappedFile(self.path / name), 0


Members = ZipMembers | FolderMembers


def check_small(path: Path, name: str, size: int, at_most: int) -> None:
    if size > at_most:
        raise ModelFormatError(path, name, f"is {size} bytes, more than {at_most}", REMEDY)


__all__ = ["LEGACY_MAGIC", "ZIP_MAGIC", "TensorRef", "TorchFile"]
