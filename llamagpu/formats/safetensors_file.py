"""A safetensors file whose tensors are mapped in place.

The safetensors library judges the header (sizes, types, overlaps, holes, the file's length); this file then maps
the tensors, which the library's NumPy interface does not do.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import MappedFile, cannot_map

MAX_HEADER_BYTES = 1 << 24
MAX_TENSORS = 32 * 1024  # of 1024 layers, the most a config may have, with every matrix as three and a description
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype("i1"), "U8": np.dtype("u1"), "I32": np.dtype("<i4"),
}  # fmt: skip
MAX_AXES = 5


class SafetensorsFile:
    """metadata: texts by name. entries: name to type, shape and place, as in the header. Raises ModelFormatError."""

    def __init__(self, path: Path, remedy: str) -> None:
        self.path, self.remedy = path, remedy
        self.file = MappedFile(path)
        self.header_bytes, self.entries = read_header(self.file, remedy)
        metadata = self.entries.pop("__metadata__", {})
        self.metadata: dict[str, str] = metadata if isinstance(metadata, dict) else {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.entries[name]["shape"])

    def array(self, name: str) -> NDArray[Any]:
        """View of a tensor in the mapped file."""
        entry = self.entries[name]
        if entry["dtype"] not in DTYPES:
            problem = f"has type {entry['dtype'][:20]}, not one of {', '.join(DTYPES)}"
            raise ModelFormatError(self.path, name[:80], problem, self.remedy)
        if not 1 <= len(entry["shape"]) <= MAX_AXES or not all(entry["shape"]):
            raise ModelFormatError(self.path, name[:80], f"has shape {str(entry['shape'])[:40]}", self.remedy)
        start = 8 + self.header_bytes + entry["data_offsets"][0]
        return self.file.array(start, DTYPES[entry["dtype"]], self.shape(name), name[:80])


def read_header(file: MappedFile, remedy: str) -> tuple[int, dict[str, Any]]:
    """Length of the header and its entries, after the safetensors library has accepted them."""
    header_bytes = struct.unpack_from("<Q", file.array(0, "u1", (8,), "header length").tobytes())[0]
    if header_bytes > min(MAX_HEADER_BYTES, file.size - 8):
        problem = f"is {header_bytes} bytes in a file of {file.size}"
        raise ModelFormatError(file.path, "header length", problem, remedy)
    text = file.array(8, "u1", (header_bytes,), "header").tobytes()
    if text.count(b"{") > MAX_TENSORS:  # before anything builds objects from it
        raise ModelFormatError(file.path, "header", "holds more tensors than any model", remedy)
    try:
        with safe_open(file.path, framework="np"):
            pass
    except MemoryError:  # it maps the file once more
        raise cannot_map(file.path, file.size) from None
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(file.path, "header", f"is no valid safetensors header ({error})", remedy) from None

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ModelFormatError(file.path, "header", "holds the same name twice", remedy)
        return dict(pairs)

    try:
        entries: dict[str, Any] = json.loads(text, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(file.path, "header", f"is no valid JSON ({error})", remedy) from None
    return header_bytes, entries
