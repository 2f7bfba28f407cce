"""Session files: a model's memory of one sequence on disk, so that it can go on another day. See docs/memory_files.md.

A safetensors file, of which every byte is accounted for: the header must be, to the byte, what writing its contents
again would give, and ``checksum`` is a SHA-256 over all of them. So no damage, however small, is read as a memory.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llamagpu import __version__
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats.atomic import atomic_write
from llamagpu.formats.mapped_file import MappedFile
from llamagpu.formats.safetensors_file import DTYPES, SafetensorsFile

VERSION = 2
# What had it in the header, where no reader takes more than 16 MiB or many braces.
CHAT_IN_HEADER = 1
REMEDY = "nothing was loaded and the file is left as it is: give another --session FILE, or move this one away"
TYPES = {**DTYPES, "I64": np.dtype("<i8"), "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "F64": np.dtype("<f8")}
NAMES = {dtype: name for name, dtype in TYPES.items()}
STATE, TOKENS, CONVERSATION = "state.", "tokens", "conversation"
PRIVATE = 0o600  # of a new file: it holds what somebody has said
NUMBERS = ("length", "n_unknown", "n_drawn", "seed")
LARGEST_NUMBER = (1 << 64) - 1


@dataclass(frozen=True)
class SavedSession:
    """arrays: of ``Model.save_state``, after ``length`` tokens; empty where none were run. tokens: ids of all that was
    read and said, after n_unknown whose ids are not known. n_drawn: random numbers used of ``seed``, which is None
    before any was asked for. chat: JSON of the conversation, as chat.py writes it, of any characters; empty for a plain
    text."""

    arrays: Mapping[str, NDArray[Any]]
    length: int
    tokens: list[int]
    n_unknown: int = 0
    n_drawn: int = 0
    seed: int | None = None
    chat: str = field(default="", repr=False)


def write(path: Path, fingerprint: str, saved: SavedSession) -> None:
    """Write a whole file, read it back, then give it its name. Raises UsageError, and ``path`` is as it was."""
    arrays = {STATE + name: np.ascontiguousarray(array) for name, array in sorted(saved.arrays.items())}
    arrays[TOKENS] = np.asarray(saved.tokens, np.int32)
    arrays[CONVERSATION] = np.frombuffer(saved.chat.encode("utf-8", "surrogatepass"), np.uint8)
    numbers = {name: getattr(saved, name) for name in NUMBERS}
    metadata = {
        "llamagpu.memory_version": str(VERSION),
        "created_by": f"llamagpu {__version__}",
        "fingerprint": fingerprint,
        **{name: "" if number is None else str(number) for name, number in numbers.items()},
    }
    metadata["checksum"] = checksum(metadata, arrays)
    with atomic_write(path.resolve(), PRIVATE) as file:  # behind a link, the file that it names
        first = header(metadata, arrays)
        file.write(first)
        for array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8).data)
        verify(file, path, first, fingerprint)


def verify(file: BinaryIO, path: Path, first: bytes, fingerprint: str) -> None:
    """What was written must be what a reader takes, byte for byte: ``first`` holds the checksum of the rest."""
    file.flush()
    written = Path(file.name)
    try:
        read(written, fingerprint)
        with open(written, "rb") as again:
            same = again.read(len(first)) == first
    except ModelFormatError as error:
        raise UsageError(f"cannot write {path}: read back, its {error.field} {error.problem}") from None
    if not same:
        raise UsageError(f"cannot write {path}: what was read back is not what was written")


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
    if version not in (str(CHAT_IN_HEADER), str(VERSION)):
        readable = f"{CHAT_IN_HEADER} and {VERSION}"
        raise refuse("llamagpu.memory_version", f"is {version[:20]!r}; this version reads {readable}")
    is_old = version == str(CHAT_IN_HEADER)
    names, last = list(file.entries), [TOKENS] if is_old else [TOKENS, CONVERSATION]
    n_state = len(names) - len(last)
    if names[n_state:] != last or n_state < 0 or not all(name.startswith(STATE) for name in names[:n_state]):
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
        if name == "seed" and not text and not is_old:
            numbers[name] = None
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= LARGEST_NUMBER):
            raise refuse(name, f"is {text[:20]!r}, must be a whole number")
        numbers[name] = int(text)
    if is_old and not numbers["n_drawn"]:
        numbers["seed"] = None  # it has 0 there for none
    tokens = arrays.pop(TOKENS)
    if tokens.ndim != 1 or tokens.dtype != np.int32 or not numbers["length"] <= numbers["n_unknown"] + len(tokens):
        raise refuse("tokens", f"are fewer than the {numbers['length']} that were run")
    chat = metadata.get("chat", "") if is_old else text_of(arrays.pop(CONVERSATION), refuse)
    state = {name.removeprefix(STATE): array for name, array in arrays.items()}
    return SavedSession(state, tokens=tokens.tolist(), chat=chat, **numbers)


def text_of(array: NDArray[Any], refuse: Callable[[str, str], ModelFormatError]) -> str:
    """Of UTF-8, in which surrogates may stand alone: a terminal gives them for bytes that are no characters."""
    try:
        if array.ndim == 1 and array.dtype == np.uint8:
            return array.tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        pass
    raise refuse(CONVERSATION, "is no text")


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
