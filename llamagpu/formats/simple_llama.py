"""simple-llama's files: float32 (version 3), and 8 or 4 bits in groups of 128 (version 4). Layout: docs/formats.md.

What is fixed in llama2.c (epsilon, RoPE) is fixed here too, at the same values.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from llamagpu.checkpoint import Checkpoint, Quirks, Tensor, llama_shapes
from llamagpu.config import REMEDY, ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats.llama2c import V1_HEADER_BYTES, check_length, count, read_config, tensor_names
from llamagpu.formats.mapped_file import CUT_SHORT, MappedFile
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix
from llamagpu.sampling import TEMPERATURE_FIRST

MAGIC = 0x7FDD7F7F
GROUP_SIZE = 128  # fixed in simple-llama
ZERO_OF_4_BITS = 8
QUIRKS = Quirks(
    "simple-llama",
    repeats_last_prompt_token=True,
    adds_bos=False,
    ends=("eos",),
    sampler_order=TEMPERATURE_FIRST,
)
FLOAT_ORDER = (
    "norm", "tok_embeddings", "output", "attention_norm", "ffn_norm", "attention.wq", "attention.wk", "attention.wv",
    "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
)  # fmt: skip
QUANTIZED_ORDER = ("norm", "attention_norm", "ffn_norm", "tok_embeddings", "output", *FLOAT_ORDER[5:])


def sniff(head: bytes, size: int) -> bool:
    return head.startswith(MAGIC.to_bytes(4, "little"))


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a file of either version. Raises ModelFormatError."""
    file = MappedFile(path)
    if file.size < V1_HEADER_BYTES:
        raise ModelFormatError(path, "length", f"is {file.size} bytes, less than a header", CUT_SHORT)
    version, dim, hidden_dim, n_heads, n_layers, vocab_size, max_seq_len, group_size, bits = struct.unpack_from(
        "<9i", file.bytes[:V1_HEADER_BYTES].tobytes(), 4
    )
    if version not in (3, 4):
        raise ModelFormatError(path, "version", f"is {version}", "export the model as version 3, or 4 if quantised")
    config = read_config(path, (dim, hidden_dim, n_layers, n_heads, n_heads, vocab_size, max_seq_len), tied_head=False)
    if version == 3:
        bits = 32
    elif bits not in (4, 8):
        raise ModelFormatError(path, "bitwidth", f"is {bits}, must be 4 or 8", REMEDY)
    elif group_size != GROUP_SIZE:
        raise ModelFormatError(path, "group_size", f"is {group_size}; simple-llama's is {GROUP_SIZE}", REMEDY)
    else:
        for name, width in (("dim", dim), ("hidden_dim", hidden_dim)):
            if width % GROUP_SIZE:
                raise ModelFormatError(path, name, f"is {width}, must be a multiple of {GROUP_SIZE}", REMEDY)
    kind = "float32" if bits == 32 else f"{bits}-bit, group {GROUP_SIZE}"
    quirks = QUIRKS
    if bits != 32:
        quirks = replace(quirks, activation_bits=bits, activation_group=GROUP_SIZE)
    name = f"simple-llama version {version} ({kind})"
    return Checkpoint(path, name, config, read_tensors(file, config, bits), quirks=quirks)


def read_tensors(file: MappedFile, config: ModelConfig, bits: int) -> dict[str, Tensor]:
    """Blocks each hold all layers; quantised ones first all numbers, then all scales."""
    shapes = llama_shapes(config)
    blocks: list[tuple[list[str], tuple[int, ...], int]] = []
    offset = V1_HEADER_BYTES
    for name in FLOAT_ORDER if bits == 32 else QUANTIZED_ORDER:
        names = tensor_names(name, config)
        shape = shapes[names[0]]
        blocks.append((names, shape, offset))
        offset += len(names) * (sum(parts_of(shape, bits)) if len(shape) == 2 else 4 * count(shape))
    check_length(file, offset, "simple-llama")
    tensors: dict[str, Tensor] = {}
    for names, shape, start in blocks:
        n_numbers, n_scales = parts_of(shape, bits) if len(shape) == 2 else (4 * count(shape), 0)
        for i, name in enumerate(names):
            places = start + i * n_numbers, start + len(names) * n_numbers + i * n_scales
            tensors[name] = read_tensor(file, places, shape, bits, name)
    return tensors


def parts_of(shape: tuple[int, ...], bits: int) -> tuple[int, int]:
    """Bytes of the numbers of a matrix, and of its scales."""
    return count(shape) * bits // 8, 0 if bits == 32 else count(shape) // GROUP_SIZE * 4


def read_tensor(file: MappedFile, places: tuple[int, int], shape: tuple[int, ...], bits: int, name: str) -> Tensor:
    """places: offsets of its numbers and of its scales."""
    if bits == 32 or len(shape) == 1:
        return file.array(places[0], "<f4", shape, name)
    if bits == 8:
        scales = file.array(places[1], "<f4", (count(shape) // GROUP_SIZE,), name)
        return Int8Matrix(file.array(places[0], "i1", shape, name), scales, GROUP_SIZE)
    matrix = (shape[0], shape[1])
    make = partial(read_4_bits, file, places, matrix, name)
    return Deferred(matrix, sum(parts_of(shape, 4)), f"4-bit (group {GROUP_SIZE})", make)


def read_4_bits(file: MappedFile, places: tuple[int, int], shape: tuple[int, int], name: str) -> AffineQuant:
    """Repack one matrix: each byte holds two neighbours, the first in its high half."""
    pairs = file.array(places[0], "u1", (shape[0], shape[1] // 2), name)
    scales = file.array(places[1], "<f4", (shape[0], shape[1] // GROUP_SIZE), name)
    q = np.stack([pairs >> np.uint8(4), pairs & np.uint8(15)], axis=-1).reshape(shape)
    return AffineQuant.pack(q, scales, np.full(scales.shape, ZERO_OF_4_BITS), 4, GROUP_SIZE)
