"""Files of rwkv.cpp ("ggmf"): RWKV-4 to 7 in float32, float16 and ggml's blocks. Layout: docs/formats.md.

A header of six numbers, then tensors one after the other, each with its name: a file says where it ends only by ending.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np

from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec
from llamagpu.errors import ModelFormatError, printable
from llamagpu.formats.ggml_tensor import ggml_tensor
from llamagpu.formats.mapped_file import CUT_SHORT, MappedFile
from llamagpu.formats.rwkv_names import BYTES, RwkvFile, rwkv_checkpoint
from llamagpu.quantization import ggml

MAGIC = 0x67676D66
HEADER = struct.Struct("<6I")  # magic, version, n_vocab, n_embed, n_layer, type of most tensors
FIRST, SECOND = 100, 101  # versions: since the second, blocks are as ggml has them today
# rwkv.cpp counts types in an order of its own
TYPES = ("F32", "F16", "Q4_0", "Q4_1", "Q4_1_O", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K",
         "Q5_K", "Q6_K", "Q8_K")  # fmt: skip
CODES = {name: code for code, name in ggml.NAMES.items()}
LONGEST_NAME, MOST_AXES, MOST_TENSORS = 128, 3, 1 << 14
CONVERT = "convert the model again with rwkv.cpp's convert_pytorch_to_ggml.py"


def sniff(head: bytes, size: int) -> bool:
    """Whether a file begins with the magic of rwkv.cpp."""
    return head.startswith(MAGIC.to_bytes(4, "little"))


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a file of rwkv.cpp. Raises ModelFormatError."""
    file = MappedFile(path)
    if file.size < HEADER.size:
        raise ModelFormatError(path, "length", f"is {file.size} bytes, less than a header", CUT_SHORT)
    _, version, n_vocab, dim, n_layers, _ = HEADER.unpack(bytes(file.bytes[: HEADER.size]))
    if version not in (FIRST, SECOND):
        raise ModelFormatError(path, "version", f"is {version}, must be {FIRST} or {SECOND}", CONVERT)
    tensors = read_tensors(file, version)
    tokenizer = TokenizerSpec("bytes", b"") if n_vocab == BYTES else None
    checkpoint = rwkv_checkpoint(RwkvFile(path, tensors, processed=True), "rwkv.cpp ggmf", tokenizer)
    config = checkpoint.config
    if config.architecture in ("rwkv5.0", "rwkv5"):  # the official package takes 64e-5, rwkv.cpp this
        config = replace(config, group_norm_eps=1e-5)
    for name, stated, found in (
        ("n_vocab", n_vocab, config.vocab_size), ("n_embed", dim, config.dim), ("n_layer", n_layers, config.n_layers)
    ):  # fmt: skip
        if stated != found:
            raise ModelFormatError(path, name, f"is {stated} in the header, {found} in the tensors", CUT_SHORT)
    return replace(checkpoint, config=config)


def read_tensors(file: MappedFile, version: int) -> dict[str, Tensor]:
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
        shown = printable(name)
        if name in tensors or 0 in axes:
            raise ModelFormatError(file.path, shown, "is there twice, or empty", CONVERT)
        code = type_code(file, version, shown, kind)
        tensors[name] = ggml_tensor(file, offset, code, tuple(reversed(axes)), shown)  # ggml's first axis is a row's
        offset += tensors[name].nbytes
    return tensors


def type_code(file: MappedFile, version: int, name: str, kind: int) -> int:
    """ggml's number of a type."""
    known = TYPES[kind] if kind < len(TYPES) else f"number {kind}"
    code = CODES.get(known, -1)
    if code not in ggml.FLOATS and code not in ggml.BLOCKS:
        raise ModelFormatError(file.path, name, f"is of type {known}, which this version does not read", CONVERT)
    if code in ggml.BLOCKS and version == FIRST:
        problem = f"is of type {known} in a file of version {FIRST}, whose blocks were others"
        raise ModelFormatError(file.path, name, problem, f"{CONVERT}, and quantise it anew")
    return code
