"""Files of rwkv.cpp ("ggmf"): RWKV-4 to 7 with weights of float32 and float16. Layout: docs/formats.md.

A header of six numbers, then tensors one after the other, each with its name: a file says where it ends only by ending.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec
from llamagpu.errors import ModelFormatError, printable
from llamagpu.formats.mapped_file import CUT_SHORT, MappedFile
from llamagpu.formats.rwkv_names import rwkv_checkpoint

MAGIC = 0x67676D66
HEADER = struct.Struct("<6I")  # magic, version, n_vocab, n_embed, n_layer, type of most tensors
VERSIONS = (100, 101)
TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
LONGEST_NAME, MOST_AXES, MOST_TENSORS = 128, 4, 1 << 17
CONVERT = "convert the model again with rwkv.cpp's convert_pytorch_to_ggml.py, as FP16 or FP32"


def sniff(head: bytes, size: int) -> bool:
    """Whether a file begins with the magic of rwkv.cpp."""
    return head.startswith(MAGIC.to_bytes(4, "little"))


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a file of rwkv.cpp. Raises ModelFormatError."""
    file = MappedFile(path)
    if file.size < HEADER.size:
        raise ModelFormatError(path, "length", f"is {file.size} bytes, less than a header", CUT_SHORT)
    _, version, n_vocab, dim, n_layers, _ = HEADER.unpack(bytes(file.bytes[: HEADER.size]))
    if version not in VERSIONS:
        raise ModelFormatError(path, "version", f"is {version}, must be 100 or 101", CONVERT)
    tensors = read_tensors(file)
    tokenizer = TokenizerSpec("bytes", b"") if n_vocab == 256 else None
    checkpoint = rwkv_checkpoint(path, "rwkv.cpp ggmf", tensors, tokenizer, processed=True)
    config = checkpoint.config
    if config.architecture == "rwkv5":  # the official package takes 64e-5, rwkv.cpp this
        config = replace(config, group_norm_eps=1e-5)
    for name, stated, found in (
        ("n_vocab", n_vocab, config.vocab_size), ("n_embed", dim, config.dim), ("n_layer", n_layers, config.n_layers)
    ):  # fmt: skip
        if stated != found:
            raise ModelFormatError(path, name, f"is {stated} in the header, {found} in the tensors", CUT_SHORT)
    return replace(checkpoint, config=config)


def read_tensors(file: MappedFile) -> dict[str, Tensor]:
    """All tensors by name, their axes in the order of NumPy."""
    tensors: dict[str, Tensor] = {}
    offset = HEADER.size
    while offset < file.size:
        where = f"tensor {len(tensors)}"
        if len(tensors) == MOST_TENSORS:
            raise ModelFormatError(file.path, where, "is more than any model has", CONVERT)
        n_axes, name_length, kind = file.array(offset, "<u4", (3,), where).tolist()
        offset += 12
        if not 1 <= n_axes <= MOST_AXES or not 1 <= name_length <= LONGEST_NAME:
            problem = f"has {n_axes} axes and a name of {name_length} bytes, as no tensor has"
            raise ModelFormatError(file.path, where, problem, CUT_SHORT)
        axes = file.array(offset, "<u4", (n_axes,), where).tolist()
        offset += 4 * n_axes
        name = file.array(offset, np.uint8, (name_length,), where).tobytes().decode("utf-8", "replace")
        offset += name_length
        if kind not in TYPES:
            raise ModelFormatError(file.path, printable(name), f"is of type {kind}, neither FP32 nor FP16", CONVERT)
        if name in tensors or 0 in axes:
            raise ModelFormatError(file.path, printable(name), "is there twice, or empty", CONVERT)
        shape = tuple(reversed(axes))  # the first axis of ggml is the fastest
        tensors[name] = file.array(offset, TYPES[kind], shape, printable(name))
        offset += math.prod(shape) * TYPES[kind].itemsize
    return tensors
