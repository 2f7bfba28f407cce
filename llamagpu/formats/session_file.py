"""Session files: a model's memory of one sequence on disk, so that it can go on another day. See docs/memory_files.md.

A safetensors file, of which every byte is accounted for: the header must be, to the byte, what writing its contents
again would give, and ``checksum`` is a SHA-256 over all of them. So no damage, however small, is read as a memory.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu import __version__
from llamagpu.errors import ModelFormatError
from llamagpu.formats.atomic import atomic_write
from llamagpu.formats.mapped_file import MappedFile
from llamagpu.formats.safetensors_file import DTYPES, SafetensorsFile

VERSION = 1
REMEDY = "nothing was loaded and the file is left as it is: give another --memory FILE, or move this one away"
TYPES = {**DTYPES, "I64": np.dtype("<i8"), "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "F64": np.dtype("<f8")}
NAMES = {dtype: name for name, dtype in TYPES.items()}
STATE, TOKENS = "state.", "tokens"
NUMBERS = ("length", "n_unknown", "n_drawn", "seed")
LARGEST_NUMBER = (1 << 64) - 1


@dataclass(frozen=True)
class SavedSession:
    """arrays: of ``Model.save_state``, after ``length`` tokens; empty where none were run. tokens: ids of all that was
    read and said, after n_unknown whose ids are not known. n_drawn: random numbers used of ``seed``. chat: JSON of the
    conversation, as chat.py writes it; empty for a plain text."""

    arrays: Mapping[str, NDArray[Any]]
    length: int
    tokens: list[int]
    n_unknown: int = 0
    n_drawn: int = 0
    seed: int = 0
    chat: str = field(default="", repr=False)


def write(path: Path, fingerprint: str, saved: SavedSession) -> None:
    """Write a whole file, then give it its name. Raises UsageError where that cannot be done."""
    arrays = {STATE + name: np.ascontiguousarray(array) for name, array in sorted(saved.arrays.items())}
    arrays[TOKENS] = np.asarray(saved.tokens, np.int32)
    metadata = {
        "llamagpu.memory_version": str(VERSION),
        "created_by": f"llamagpu {__version__}",
        "fingerprint": fingerprint,
        **{name: str(getattr(saved, name)) for name in NUMBERS},
        "chat": saved.chat,
    }
    metadata["checksum"] = checksum(metadata, arrays)
    with atomic_write(path.resolve()) as file:  # behind a link, the file that it names
        file.write(header(metadata, arrays))
        for array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8).data)


def header(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Of a safetensors file that holds arrays in this order."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        dtype = NAMES[array.dtype]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return struct.pack("<Q", len(text)) + text


def checksum(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over all metadata but itself, and over names, types, shapes and bytes of the arrays."""
    told = {name: text for name, text in metadata.items() if name != "checksum"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"\n{name} {NAMES[array.dtype]} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def is_session(path: Path) -> bool:
    """Whether a file begins as these do, damaged or not: with the length of a header of JSON, and that."""
    file = MappedFile(path)
    head = file.bytes[:9].tobytes()
    return head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= file.size


def read(path: Path, fingerprint: str) -> SavedSession:
    """Read a file, or refuse it: ModelFormatError, with the reason."""
    file = SafetensorsFile(path, REMEDY)

    def refuse(field: str, problem: str) -> ModelFormatError:
        return ModelFormatError(path, field, problem, REMEDY)

    metadata = file.metadata
    version = metadata.get("llamagpu.memory_version")
    if version is None:
        raise refuse("llamagpu.memory_version", "is missing: the file is a safetensors file, but no memory of llamagpu")
    if version != str(VERSION):
        raise refuse("llamagpu.memory_version", f"is {version[:20]!r}; this version reads {VERSION}")
    names = list(file.entries)
    if names[-1:] != [TOKENS] or not all(name.startswith(STATE) for name in names[:-1]):
        raise refuse("header", "names other arrays than a memory has")
    arrays = {name: array_of(file, name) for name in names}
    found = file.file.array(0, "u1", (8 + file.header_bytes,), "header").tobytes()
    if found != header(metadata, arrays) or metadata.get("checksum") != checksum(metadata, arrays):
        raise refuse("checksum", "does not fit the contents: the file is damaged")
    if metadata.get("fingerprint") != fingerprint:
        raise refuse("fingerprint", "is of another model: this memory is not of the model that was given")
    numbers: dict[str, Any] = {}
    for name in NUMBERS:
        text = metadata.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= LARGEST_NUMBER):
            raise refuse(name, f"is {text[:20]!r}, must be a whole number")
        numbers[name] = int(text)
    tokens = arrays.pop(TOKENS)
    if tokens.ndim != 1 or tokens.dtype != np.int32 or not numbers["length"] <= numbers["n_unknown"] + len(tokens):
        raise refuse("tokens", f"are fewer than the {numbers['length']} that were run")
    state = {name.removeprefix(STATE): array for name, array in arrays.items()}
    return SavedSession(state, tokens=tokens.tolist(), chat=metadata.get("chat", ""), **numbers)


def array_of(file: SafetensorsFile, name: str) -> NDArray[Any]:
    """Like SafetensorsFile.array, but a state may have numbers without axes, and axes without numbers."""
    entry = file.entries[name]
    if entry["dtype"] not in TYPES:
        raise ModelFormatError(file.path, name[:80], f"has type {entry['dtype'][:20]}", REMEDY)
    shape = file.shape(name)
    if 0 in shape:
        return np.zeros(shape, TYPES[entry["dtype"]])
    start = 8 + file.header_bytes + entry["data_offsets"][0]
    return file.file.array(start, TYPES[entry["dtype"]], shape, name[:80])
