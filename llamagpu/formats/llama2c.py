"""llama2.c checkpoints: version 0 (no magic), 1 (float32) and 2 (Q8_0). Layout: docs/formats.md.

The three are told apart by magic and version, and each must have exactly the length that its header implies:
a file that is one byte off is refused before anything is read from it.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamagpu.checkpoint import ORIGIN_MEMORY, Checkpoint, Quirks, Tensor, llama_shapes, tensor_shapes
from llamagpu.config import LARGEST, REMEDY, ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import CUT_SHORT, MappedFile
from llamagpu.quantization import Int8Matrix
from llamagpu.sampling import TEMPERATURE_FIRST

MAGIC = 0x616B3432  # "24ka" on disk
HEADER_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
V0_HEADER_BYTES, V1_HEADER_BYTES = 28, 256
NORM_EPS = 1e-5  # fixed in llama2.c, not stored
LARGEST_GROUP = 1 << 20
RUN = Quirks("llama2.c's run", ends=("bos",), sampler_order=TEMPERATURE_FIRST)

# The order of the blocks, each holding all layers. None: the RoPE tables, which we compute anew.
V0_ORDER = (
    "tok_embeddings", "attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
    "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "norm", None, "output",
)  # fmt: skip
V1_ORDER = (
    "attention_norm", "ffn_norm", "norm", "tok_embeddings", "attention.wq", "attention.wk", "attention.wv",
    "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "output",
)  # fmt: skip
WITHOUT_LAYERS = ("tok_embeddings", "norm", "output")


def sniff(head: bytes, size: int) -> bool:
    """Whether the first bytes of a file can be a llama2.c header (version 0 has no magic, only plausible numbers)."""
    if len(head) < V0_HEADER_BYTES:
        return False
    if head.startswith(MAGIC.to_bytes(4, "little")):
        return True
    values = dict(zip(HEADER_FIELDS, struct.unpack_from("<7i", head), strict=True))
    values["vocab_size"] = abs(values["vocab_size"])
    n_plausible: int = sum(0 < value <= LARGEST[name] for name, value in values.items())
    return n_plausible >= 6  # one damaged field of seven is a damaged model, and is named; more is something else


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a llama2.c file of any version. Raises ModelFormatError."""
    file = MappedFile(path)
    head = bytes(file.bytes[:V1_HEADER_BYTES])
    if len(head) < V0_HEADER_BYTES:
        raise ModelFormatError(path, "length", f"is {file.size} bytes, less than a header", CUT_SHORT)
    if struct.unpack_from("<I", head)[0] != MAGIC:
        return open_v0(file, head)
    version = struct.unpack_from("<i", head, 4)[0]
    if version not in (1, 2):
        raise ModelFormatError(path, "version", f"is {version}", "export the model as llama2.c version 0, 1 or 2")
    if len(head) < V1_HEADER_BYTES:
        raise ModelFormatError(path, "length", f"is {file.size} bytes, less than a header", CUT_SHORT)
    if head[36] > 1:
        raise ModelFormatError(path, "shared_classifier", f"is {head[36]}, must be 0 or 1", REMEDY)
    config = read_config(path, struct.unpack_from("<7i", head, 8), tied_head=head[36] == 1)
    if version == 1:
        return read_float32(file, config, V1_ORDER, V1_HEADER_BYTES, "llama2.c version 1 (float32)")
    return open_v2(file, config, group_size=struct.unpack_from("<i", head, 37)[0])


def open_v0(file: MappedFile, head: bytes) -> Checkpoint:
    header = list(struct.unpack_from("<7i", head))
    tied_head = header[5] > 0  # llama2.c's way to say that the head has its own matrix is a negative vocab_size
    header[5] = abs(header[5])
    config = read_config(file.path, tuple(header), tied_head)
    return read_float32(file, config, V0_ORDER, V0_HEADER_BYTES, "llama2.c version 0 (float32)")


def read_config(path: Path, header: tuple[int, ...], tied_head: bool, **more: Any) -> ModelConfig:
    """The config of a header's seven numbers. more: fields of ModelConfig that they do not tell."""
    values = dict(zip(HEADER_FIELDS, header, strict=True))
    dim, n_heads = values["dim"], values["n_heads"]
    head_dim = max(1, dim // n_heads) if n_heads > 0 else 1  # checked() refuses what made this up
    fixed = {"architecture": "llama", "head_dim": head_dim, "norm_eps": NORM_EPS, "tied_head": tied_head}
    config = ModelConfig.checked(path, {**values, **fixed, **more})
    if dim % n_heads:
        raise ModelFormatError(path, "n_heads", f"is {n_heads}, must divide dim = {dim}", REMEDY)
    return config


def tensor_names(name: str, config: ModelConfig) -> list[str]:
    """Full names of the tensors in the block ``name``: one, or one per layer."""
    if name in WITHOUT_LAYERS:
        return [f"{name}.weight"]
    suffix = "" if name.endswith(ORIGIN_MEMORY) else ".weight"
    return [f"layers.{i}.{name}{suffix}" for i in range(config.n_layers)]


def count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def check_length(file: MappedFile, expected: int, version: str) -> None:
    if file.size != expected:
        kind = "cut short" if file.size < expected else "too long"
        raise ModelFormatError(
            file.path, "length", f"is {file.size} bytes, {kind}: the header of {version} implies {expected}",
            "fetch or export the file again",
        )  # fmt: skip


def read_float32(
    file: MappedFile, config: ModelConfig, order: tuple[str | None, ...], start: int, version: str
) -> Checkpoint:
    places: list[tuple[str, int, tuple[int, ...]]] = []
    offset, shapes = start, llama_shapes(config)
    for name in order:
        if name is None:
            offset += 4 * config.max_seq_len * config.head_dim  # cos and sin, [max_seq_len, head_dim / 2] each
        elif name != "output" or not config.tied_head:
            for full_name in tensor_names(name, config):
                shape = shapes[full_name]
                places.append((full_name, offset, shape))
                offset += 4 * count(shape)
    check_length(file, offset, version)
    tensors: dict[str, Tensor] = {name: file.array(at, "<f4", shape, name) for name, at, shape in places}
    return Checkpoint(file.path, version, config, tensors, quirks=RUN)


def open_v2(file: MappedFile, config: ModelConfig, group_size: int) -> Checkpoint:
    version = f"llama2.c version 2 (Q8_0, group {group_size})"
    tensors = read_q8(file, config, V1_ORDER, group_size, version)
    quirks = replace(RUN, system="llama2.c's runq", activation_bits=8, activation_group=group_size)
    return Checkpoint(file.path, version, config, tensors, quirks=quirks)


def read_q8(
    file: MappedFile, config: ModelConfig, order: tuple[str, ...], group_size: int, version: str
) -> dict[str, Tensor]:
    """The blocks in this order: vectors and memories in float32, each matrix as int8 and then its scales."""
    if not 1 <= group_size <= LARGEST_GROUP:
        raise ModelFormatError(file.path, "group_size", f"is {group_size}, must be 1 to {LARGEST_GROUP}", REMEDY)
    offset, shapes = V1_HEADER_BYTES, tensor_shapes(config)
    places: list[tuple[str, int, tuple[int, ...], bool]] = []
    for name in order:
        if name == "output" and config.tied_head:
            continue
        shape = shapes[tensor_names(name, config)[0]]
        quantized = len(shape) == 2 and not name.endswith(ORIGIN_MEMORY)
        if quantized and count(shape) % group_size:
            problem = f"is {group_size}, does not divide the {count(shape)} elements of {name}"
            raise ModelFormatError(file.path, "group_size", problem, REMEDY)
        for full_name in tensor_names(name, config):
            places.append((full_name, offset, shape, quantized))
            offset += count(shape) + 4 * (count(shape) // group_size) if quantized else 4 * count(shape)
    check_length(file, offset, version)
    tensors: dict[str, Tensor] = {}
    for full_name, at, shape, quantized in places:
        if not quantized:
            tensors[full_name] = file.array(at, "<f4", shape, full_name)
        else:
            q = file.array(at, "i1", shape, full_name)
            scales = file.array(at + count(shape), "<f4", (count(shape) // group_size,), full_name)
            tensors[full_name] = Int8Matrix(q, scales, group_size)
    return tensors
