"""The tensors of a GGUF file, or of the files that one was split into, mapped in place."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from llamagpu.checkpoint import Tensor
from llamagpu.errors import ModelFormatError
from llamagpu.formats.ggml_tensor import ggml_tensor
from llamagpu.formats.gguf_header import Header, TensorInfo
from llamagpu.formats.mapped_file import MappedFile
from llamagpu.quantization import ggml

MAX_PARTS = 1000
PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def open_tensors(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header of a file (of a split model: of its first part) and its tensors by their names. Raises ModelFormatError.

    Nothing but headers is read. Matrices of whole blocks are ``Deferred``.
    """
    file = MappedFile(path)
    header = Header(file.bytes.data, path)
    n_parts = header.whole("split.count", 0)
    tensors: dict[str, Tensor] = {}
    add_tensors(file, header, tensors)
    if n_parts > 1:
        for other in other_parts(header, n_parts):
            file = MappedFile(other)
            part = Header(file.bytes.data, other)
            place = part.whole("split.no", 0), part.whole("split.count", 0)
            if place != (int(other.name[-19:-14]) - 1, n_parts):
                raise part.refuse("split.no", f"says part {place[0] + 1} of {place[1]}, unlike the file's name")
            add_tensors(file, part, tensors)
        if len(tensors) != header.whole("split.tensors.count", len(tensors)):
            expected = header.whole("split.tensors.count")
            raise header.refuse("split.tensors.count", f"is {expected}, but all parts hold {len(tensors)}")
    return header, tensors


def other_parts(header: Header, n_parts: int) -> list[Path]:
    """Paths of the parts of a model that ``header`` is the first of; they are there."""
    path = header.path
    named = PART_NAME.fullmatch(path.name)
    if n_parts > MAX_PARTS:
        raise header.refuse("split.count", f"is {n_parts}, more than {MAX_PARTS}")
    if header.whole("split.no", 0) != 0:
        first = f"{named[1]}-00001-of-{named[3]}.gguf" if named else "the one that ends in -00001-of-...gguf"
        raise header.refuse("split.no", "is a later part of a split model", f"give its first part: {first}")
    if not named or (int(named[2]), int(named[3])) != (1, n_parts):
        remedy = f"give it its name back: ...-00001-of-{n_parts:05}.gguf, the other parts beside it"
        raise header.refuse("split.count", f"is {n_parts}, but the file is not named as the first part", remedy)
    parts = [path.with_name(f"{named[1]}-{i:05}-of-{named[3]}.gguf") for i in range(2, n_parts + 1)]
    for part in parts:
        if not part.is_file():
            raise header.refuse("split.count", f"is {n_parts}, but {part.name} is not there", "put all parts together")
    return parts


def add_tensors(file: MappedFile, header: Header, tensors: dict[str, Tensor]) -> None:
    """Map the tensors of one file, each checked: type, size, place; none may overlap another."""
    start = -(-header.tensors_end // header.alignment) * header.alignment
    ends: list[tuple[int, int, str]] = []
    for info in header.tensors:
        if info.name in tensors:
            raise header.refuse(info.name, "is there twice")
        if info.offset % header.alignment:
            problem = f"is at {info.offset}, not at a multiple of the alignment, {header.alignment}"
            raise header.refuse(info.name, problem)
        tensors[info.name], n_bytes = tensor(file, info, start + info.offset)
        ends.append((info.offset, info.offset + n_bytes, info.name))
    ends.sort()
    for (_, end, name), (offset, _, next_name) in pairwise(ends):
        if offset < end:
            raise header.refuse(next_name, f"begins inside {name}")
    end = start + max((end for _, end, _ in ends), default=0)
    if file.size > -(-end // header.alignment) * header.alignment:  # what is padded up to that is no harm
        raise header.refuse("length", f"is {file.size} bytes, but the last tensor ends at {end}")


def tensor(file: MappedFile, info: TensorInfo, start: int) -> tuple[Tensor, int]:
    """A tensor and its bytes in the file."""
    if info.kind not in ggml.FLOATS and info.kind not in ggml.BLOCKS:
        known = ", ".join(kind for code, kind in ggml.NAMES.items() if code in ggml.FLOATS or code in ggml.BLOCKS)
        kind = ggml.NAMES.get(info.kind, f"number {info.kind}")
        problem = f"has type {kind}, which this version does not read ({known})"
        raise ModelFormatError(file.path, info.name, problem, "get the model in one of these, such as its Q4_K_M file")
    found = ggml_tensor(file, start, info.kind, info.shape, info.name)
    return found, found.nbytes


__all__ = ["open_tensors"]
