"""The header of a GGUF file: keys with values, and where each tensor lies. Layout: docs/formats.md.

Values stay where they are in the file until they are asked for: a vocabulary of 128,000 tokens is stepped over, string
by string, and no Python object is made of any of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import CUT_SHORT

MAGIC = b"GGUF"
VERSIONS = (1, 2, 3)
REMEDY = "the file is damaged or no model: download or convert it again"
STRING, ARRAY, BOOL = 8, 9, 7
# Number types by their code in the file.
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), BOOL: np.dtype("u1"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
# No model comes near these. They bound the work and the memory that a damaged header can ask for.
MAX_KEYS = 4096
MAX_KEY_BYTES = 1024
MAX_TENSORS = 10 * 1024  # 850 layers of twelve: what is known of each takes about 450 bytes
MAX_NAME_BYTES = 256
MAX_STRINGS = 1 << 21  # of all arrays together, and arrays in arrays: each is one step of a loop
MAX_NESTING = 4
MAX_TEXT_BYTES = 1 << 20
MAX_ALIGNMENT = 1 << 20


class Entry(NamedTuple):
    """A key: the code of its type, and the places in the file where the key, its value and what follows it begin."""

    kind: int
    key_start: int
    start: int
    end: int


class TensorInfo(NamedTuple):
    """shape: rows first, as NumPy has it (the file has them last). offset: in the data section."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class Header:
    """Keys and tensors of a GGUF file of any version. Raises ModelFormatError naming the key.

    data: the whole file or its beginning. tensors_end: where the header ends; the data section begins at the next
    multiple of ``alignment``.
    """

    def __init__(self, data: memoryview | bytes, path: Path) -> None:
        self.data, self.path, self.size = data, path, len(data)
        if bytes(data[:4]) != MAGIC:
            raise self.refuse("magic", "is not GGUF")
        self.at = 4
        self.version = self.unpack("<I", "version")
        if self.version not in VERSIONS:
            if self.version & 0xFFFF == 0 and self.version:
                remedy = "convert it on a little-endian machine, or get the ordinary file of the model"
                raise ModelFormatError(path, "version", "is of a big-endian machine", remedy)
            raise ModelFormatError(
                path, "version", f"is {self.version}", "get a newer file of the model: GGUF version 1, 2 or 3 are read"
            )
        self.count = struct.Struct("<I" if self.version == 1 else "<Q")
        n_tensors, n_keys = self.length("n_tensors"), self.length("n_keys")
        if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
            raise self.refuse("header", f"has {n_tensors} tensors and {n_keys} keys, more than any model")
        self.strings_left = MAX_STRINGS
        self.entries: dict[str, Entry] = {}
        for i in range(n_keys):
            self.read_entry(f"key {i}")
        self.alignment = self.read_alignment()
        self.tensors = [self.read_tensor(f"tensor {i}") for i in range(n_tensors)]
        self.tensors_end = self.at

    def refuse(self, field: str, problem: str, remedy: str = REMEDY) -> ModelFormatError:
        return ModelFormatError(self.path, field[:80], problem, remedy)

    # -- reading one thing after the other --

    def skip(self, n_bytes: int, field: str) -> int:
        """Where the next ``n_bytes`` begin; they are there."""
        start = self.at
        if n_bytes > self.size - start:
            raise self.refuse(field, f"needs {n_bytes} bytes at {start} of a file of {self.size}", CUT_SHORT)
        self.at = start + n_bytes
        return start

    def unpack(self, layout: str, field: str) -> int:
        start = self.skip(struct.calcsize(layout), field)
        value: int = struct.unpack_from(layout, self.data, start)[0]
        return value

    def length(self, field: str) -> int:
        start = self.skip(self.count.size, field)
        value: int = self.count.unpack_from(self.data, start)[0]
        return value

    def short_text(self, field: str, largest: int) -> str:
        """A name: not empty, and of no great length."""
        n_bytes = self.length(field)
        if not 1 <= n_bytes <= largest:
            raise self.refuse(field, f"has a name of {n_bytes} bytes, must be 1 to {largest}")
        start = self.skip(n_bytes, field)
        try:
            return str(bytes(self.data[start : self.at]), "ascii")
        except UnicodeDecodeError:
            raise self.refuse(field, "has a name that is no ASCII text") from None

    def read_entry(self, field: str) -> None:
        key_start = self.at
        key = self.short_text(field, MAX_KEY_BYTES)
        if key in self.entries:
            raise self.refuse(key, "is there twice")
        kind = self.unpack("<I", key)
        start = self.at
        self.skip_value(kind, key)
        self.entries[key] = Entry(kind, key_start, start, self.at)

    def skip_value(self, kind: int, key: str, depth: int = 0) -> None:
        if kind in NUMBERS:
            self.skip(NUMBERS[kind].itemsize, key)
        elif kind == STRING:
            self.skip(self.length(key), key)
        elif kind == ARRAY and depth < MAX_NESTING:
            element, n = self.unpack("<I", key), self.length(key)
            if element in NUMBERS:
                self.skip(n * NUMBERS[element].itemsize, key)
                return
            if n > self.strings_left:
                raise self.refuse(key, f"has {n} elements, more than any model")
            self.strings_left -= n
            if element == STRING:
                self.at = self.after_strings(self.at, n, key)
            else:
                for _ in range(n):
                    self.skip_value(element, key, depth + 1)
        else:
            problem = f"has type {kind}, which GGUF does not have" if kind != ARRAY else "has arrays in arrays too deep"
            raise self.refuse(key, problem)

    def after_strings(self, at: int, n: int, key: str) -> int:
        """Where n strings from ``at`` end. The one loop over a vocabulary: 128,000 tokens take 20 ms."""
        data, unpack, width = self.data, self.count.unpack_from, self.count.size
        try:
            for _ in range(n):
                at += unpack(data, at)[0] + width
        except (struct.error, OverflowError, IndexError):  # past the end, by little or by much
            at = self.size + 1
        if at > self.size:
            raise self.refuse(key, f"has {n} strings that reach past the end of the file", CUT_SHORT)
        return at

    def read_alignment(self) -> int:
        alignment = self.whole("general.alignment", 32)
        if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.refuse("general.alignment", f"is {alignment}, must be a power of two to {MAX_ALIGNMENT}")
        return alignment

    def read_tensor(self, field: str) -> TensorInfo:
        name = self.short_text(field, MAX_NAME_BYTES)
        n_axes = self.unpack("<I", name)
        if not 1 <= n_axes <= 4:
            raise self.refuse(name, f"has {n_axes} axes, must be 1 to 4")
        shape = tuple(self.length(name) for _ in range(n_axes))[::-1]
        if not all(1 <= n < 1 << 40 for n in shape):
            raise self.refuse(name, f"has shape {list(shape)}")
        return TensorInfo(name, shape, self.unpack("<I", name), self.unpack("<Q", name))

    # -- values by their keys --

    def value(self, key: str, kinds: tuple[int, ...], wanted: str) -> Any:
        """The number of ``key``; None where the file has no such key."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.kind not in kinds:
            raise self.refuse(key, f"is not {wanted}")
        return np.frombuffer(self.data, NUMBERS[entry.kind], 1, entry.start)[0].item()

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number. Without a default the file must have it."""
        value = self.value(key, (0, 1, 2, 3, 4, 5, 10, 11), "a whole number")
        if value is None and default is None:
            raise self.refuse(key, "is missing")
        return int(default if value is None else value)  # type: ignore[arg-type]

    def number(self, key: str, default: float | None = None) -> float:
        value = self.value(key, (0, 1, 2, 3, 4, 5, 6, 10, 11, 12), "a number")
        if value is None and default is None:
            raise self.refuse(key, "is missing")
        return float(default if value is None else value)  # type: ignore[arg-type]

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key, (BOOL,), "true or false")
        return default if value is None else bool(value)

    def text(self, key: str) -> str | None:
        """A text; None where the file has no such key."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.kind != STRING:
            raise self.refuse(key, "is not a text")
        start = entry.start + self.count.size
        if entry.end - start > MAX_TEXT_BYTES:
            raise self.refuse(key, f"is a text of {entry.end - start} bytes, more than {MAX_TEXT_BYTES}")
        try:
            return str(bytes(self.data[start : entry.end]), "utf-8")
        except UnicodeDecodeError:
            raise self.refuse(key, "is no UTF-8 text") from None

    def array_start(self, key: str) -> tuple[int, int, int]:
        """Of an array: code of the elements' type, their number, and where they begin. None of them: 0, 0, 0."""
        entry = self.entries.get(key)
        if entry is None:
            return 0, 0, 0
        if entry.kind != ARRAY:
            raise self.refuse(key, "is not an array")
        element = struct.unpack_from("<I", self.data, entry.start)[0]
        n = self.count.unpack_from(self.data, entry.start + 4)[0]
        return element, n, entry.start + 4 + self.count.size

    def n_elements(self, key: str) -> int:
        """Of an array; 0 where the file has no such key."""
        return self.array_start(key)[1]

    def strings(self, key: str) -> Iterator[bytes]:
        """The elements of an array of strings, one at a time. None where the file has no such key."""
        element, n, at = self.array_start(key)
        if n and element != STRING:
            raise self.refuse(key, "is not an array of texts")
        data, unpack, width = self.data, self.count.unpack_from, self.count.size
        for _ in range(n):
            start = at + width
            at = start + unpack(data, at)[0]
            yield bytes(data[start:at])

    def numbers(self, key: str, kinds: str) -> NDArray[Any]:
        """An array of numbers whose types are of ``kinds``, NumPy's letters ("f", or "iu"). Empty where it is not."""
        element, n, at = self.array_start(key)
        if not n:
            return np.empty(0, np.float32)
        if element not in NUMBERS or element == BOOL or NUMBERS[element].kind not in kinds:
            raise self.refuse(key, f"is not an array of {'numbers' if 'f' in kinds else 'whole numbers'}")
        return np.frombuffer(self.data, NUMBERS[element], n, at)

    def only_keys(self, prefix: str) -> bytes:
        """A GGUF file without tensors that has the keys which begin with ``prefix``, and no others."""
        kept = [entry for key, entry in self.entries.items() if key.startswith(prefix)]
        head = MAGIC + struct.pack("<I", self.version) + self.count.pack(0) + self.count.pack(len(kept))
        return head + b"".join(self.data[entry.key_start : entry.end] for entry in kept)
