"""Where the members of a zip file lie: stored ones only, so that each is a part of the mapped file.

Python's zipfile would read the directory too, but it builds objects many times its size before anything can be checked.
Layout: local header, name, extra field, data; ...; central directory; [zip64 end and its locator]; end record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import CUT_SHORT, check_readable

MAX_MEMBERS = 8192
MAX_NAME_BYTES = 512
MAX_DIRECTORY_BYTES = 1 << 21
LOCAL, CENTRAL, END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
LOCATOR_64, END_64 = struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
IN_ZIP64 = 0xFFFFFFFF  # a size or offset that did not fit, and stands in the extra field
ENCRYPTED = 1
REMEDY = "the file is damaged or was not written by torch.save: fetch it again"


@dataclass(frozen=True, slots=True)
class Member:
    """Bytes ``offset`` to ``offset + size`` of the file."""

    offset: int
    size: int


def read_members(path: Path) -> dict[str, Member]:
    """Name and place of each member; they lie within the file and do not overlap. Raises ModelFormatError."""
    size = check_readable(path)

    def refuse(field: str, problem: str, remedy: str = REMEDY) -> ModelFormatError:
        return ModelFormatError(path, field, problem, remedy)

    with open(path, "rb", buffering=0) as file:

        def read(offset: int, n: int, field: str) -> bytes:
            if offset < 0 or offset + n > size:
                raise refuse(field, f"needs bytes {offset} to {offset + n} of a file of {size}", CUT_SHORT)
            file.seek(offset)
            data = file.read(n)
            if len(data) != n:
                raise refuse(field, "cannot be read", CUT_SHORT)
            return data

        directory = "zip directory"
        end_at = size - END.size
        end = END.unpack(read(end_at, END.size, directory))
        if end[0] != b"PK\x05\x06" or end[7] != 0:
            raise refuse(directory, "is not at the end of the file", CUT_SHORT)
        count, length, start = end[4:7]
        if end_at >= LOCATOR_64.size:
            locator = LOCATOR_64.unpack(read(end_at - LOCATOR_64.size, LOCATOR_64.size, directory))
            if locator[0] == b"PK\x06\x07":
                end_at = locator[2]
                end_64 = END_64.unpack(read(end_at, END_64.size, directory))
                if end_64[0] != b"PK\x06\x06":
                    raise refuse(directory, "has a zip64 locator that leads nowhere")
                count, length, start = end_64[7:10]
        if not 1 <= count <= MAX_MEMBERS or not CENTRAL.size * count <= length <= MAX_DIRECTORY_BYTES:
            raise refuse(directory, f"has {count} members in {length} bytes; a model has 1 to {MAX_MEMBERS}")
        if start + length > end_at:
            raise refuse(directory, f"lies at bytes {start} to {start + length}, past its end record")
        entries = parse_directory(path, read(start, length, directory), count)

        members: dict[str, Member] = {}
        free = 0  # the first byte that no member before has taken
        for at, data_size, raw_name in sorted(entries):
            name = member_name(path, raw_name)
            if name in members:
                raise refuse(name, "is there twice")
            if at < free:
                raise refuse(name, f"begins at byte {at}, within another member")
            local = LOCAL.unpack(read(at, LOCAL.size, name))
            if local[0] != b"PK\x03\x04" or read(at + LOCAL.size, local[9], name) != raw_name:
                raise refuse(name, f"is not at byte {at}, where the directory says")
            offset = at + LOCAL.size + local[9] + local[10]
            free = offset + data_size
            if free > start:
                raise refuse(name, f"needs bytes {offset} to {free}, but the directory begins at {start}")
            members[name] = Member(offset, data_size)
    return members


def parse_directory(path: Path, data: bytes, count: int) -> list[tuple[int, int, bytes]]:
    """Offset of the local header, size and name of each entry of the central directory."""

    def refuse(problem: str) -> ModelFormatError:
        return ModelFormatError(path, "zip directory", problem, REMEDY)

    entries: list[tuple[int, int, bytes]] = []
    at = 0
    for i in range(count):
        if at + CENTRAL.size > len(data):
            raise refuse(f"ends within entry {i} of {count}")
        values = CENTRAL.unpack_from(data, at)
        signature, flags, method, stored_size, size, name_bytes, extra_bytes, comment_bytes = (
            values[j] for j in (0, 3, 4, 8, 9, 10, 11, 12)
        )
        name_at = at + CENTRAL.size
        extra_at = name_at + name_bytes
        at = extra_at + extra_bytes + comment_bytes
        if signature != b"PK\x01\x02" or at > len(data):
            raise refuse(f"is damaged at entry {i} of {count}")
        name = data[name_at:extra_at]
        if not 1 <= name_bytes <= MAX_NAME_BYTES:
            raise refuse(f"has a name of {name_bytes} bytes")
        if method != 0 or flags & ENCRYPTED:
            problem = "is compressed or encrypted, so it cannot be mapped"
            remedy = "write it with torch.save, which stores members as they are"
            raise ModelFormatError(path, name.decode("utf-8", "replace")[:80], problem, remedy)
        large = zip64_values(data[extra_at : extra_at + extra_bytes])
        places = []  # in this order in the extra field, each only where it did not fit
        for value in (size, stored_size, values[16]):
            places.append(next(large, -1) if value == IN_ZIP64 else value)
        if places[0] != places[1] or min(places) < 0:
            raise refuse(f"gives entry {i} the sizes {places[0]} and {places[1]}")
        entries.append((places[2], places[0], name))
    if at != len(data):
        raise refuse(f"is {len(data)} bytes, of which its {count} entries fill {at}")
    return entries


def zip64_values(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers in an extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + size]
            return iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
        at += 4 + size
    return iter(())


def member_name(path: Path, raw: bytes) -> str:
    """A name as text. It is only ever a key, but one that would lead out of its folder is no torch file's."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise ModelFormatError(path, "zip directory", f"has a name that is no UTF-8: {raw[:40]!r}", REMEDY) from None
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise ModelFormatError(path, name[:80], "is no name of a member of a torch file", REMEDY)
    return name
