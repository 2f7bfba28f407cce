"""llama2.rs's files: the header of llama2.c's version 0, and 4-bit GPTQ matrices. Layout: docs/formats.md.

Nothing in the header says which of four layouts follows or what the group size is, and its n_kv_heads is n_heads even
where a model has fewer. The file's exact length says all three: it is compared with that of every ``Layout`` there is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from llamagpu.checkpoint import Checkpoint, Quirks, Tensor, llama_shapes
from llamagpu.config import LARGEST, ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats.llama2c import (
    HEADER_FIELDS,
    NORM_EPS,
    V0_HEADER_BYTES,
    V0_ORDER,
    WITHOUT_LAYERS,
    count,
    read_config,
    tensor_names,
)
from llamagpu.formats.mapped_file import CUT_SHORT, MappedFile
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.quantization.gptq import unpack_words

GROUP_SIZES = (32, 64, 128)
POSITIONS = 2048  # of every model that llama2.rs exports
QUIRKS = Quirks("llama2.rs", ends=())
UNIT = 8  # numbers of 4 bits in a word: what inputs and outputs of a matrix must be multiples of
ACT_ORDER_LOST = (
    "variant A does not say in which order inputs were quantised: a model quantised with act-order comes out wrong"
)


@dataclass(frozen=True)
class Layout:
    """One way to read a file. variant: A, B or C, or "float32"; group_size: 0 where it is float32."""

    variant: str
    group_size: int
    n_kv_heads: int

    def __str__(self) -> str:
        kind = f"{self.variant}, group {self.group_size}" if self.group_size else self.variant
        return f"{kind}, n_kv_heads {self.n_kv_heads}"

    @property
    def start(self) -> int:
        """Where the weights begin: variant C and float32 files hold the epsilon of the norms after the header."""
        return V0_HEADER_BYTES + (4 if self.variant in ("C", "float32") else 0)

    def parts(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Bytes of the four pieces of a GPTQ matrix: numbers, zeros, scales, and the order of its inputs."""
        out_features, in_features = shape
        n_groups = -(-in_features // self.group_size)
        order = 0 if self.variant == "A" else 4 * in_features
        return out_features * in_features // 2, out_features // UNIT * n_groups * 4, out_features * n_groups * 4, order

    def is_packed(self, name: str | None, shape: tuple[int, ...]) -> bool:
        return self.group_size > 0 and name is not None and name not in WITHOUT_LAYERS and len(shape) == 2

    def n_bytes(self, name: str | None, shape: tuple[int, ...]) -> int:
        """Of one tensor of a block."""
        return sum(self.parts(shape)) if self.is_packed(name, shape) else 4 * count(shape)


def sniff(head: bytes, size: int) -> bool:
    """Whether a header has the marks of llama2.rs's export, and the file another length than llama2.c's version 0."""
    values = read_header(head)
    return values is not None and size != v0_bytes(values)


def read_header(head: bytes) -> dict[str, int] | None:
    """Its fields, vocab_size positive; None where llama2.rs writes no such header."""
    if len(head) < V0_HEADER_BYTES:
        return None
    values = dict(zip(HEADER_FIELDS, struct.unpack_from("<7i", head), strict=True))
    values["vocab_size"] *= -1  # llama2.c's way to say that the head has its own matrix, as it always has here
    plausible = all(1 <= value <= LARGEST[name] for name, value in values.items())
    return values if plausible and values["max_seq_len"] == POSITIONS else None


def v0_bytes(values: dict[str, int]) -> int:
    """Length of a llama2.c file with this header."""
    dim, hidden, vocab = values["dim"], values["hidden_dim"], values["vocab_size"]
    head_dim = dim // values["n_heads"]
    layer = 2 * dim + 2 * dim * dim + 2 * head_dim * values["n_kv_heads"] * dim + 3 * dim * hidden
    return V0_HEADER_BYTES + 4 * (2 * vocab * dim + values["n_layers"] * layer + dim + POSITIONS * head_dim)


def layouts(config: ModelConfig) -> Iterator[Layout]:
    """All that a file with this header may have."""
    largest = max(config.dim, config.hidden_dim)
    group_sizes = sorted({min(size, largest) for size in GROUP_SIZES})  # beyond the longest row all mean the same
    for n_kv_heads in range(1, config.n_heads + 1):
        if config.n_heads % n_kv_heads:
            continue
        yield Layout("float32", 0, n_kv_heads)
        if not any(width % UNIT for width in (config.dim, config.hidden_dim, n_kv_heads * config.head_dim)):
            yield from (Layout(variant, size, n_kv_heads) for variant in "ABC" for size in group_sizes)


def block_shapes(config: ModelConfig) -> list[tuple[str | None, tuple[int, ...]]]:
    """The file's blocks in order, as in llama2.c's version 0, with the shape of one layer; None: the RoPE tables."""
    shapes = llama_shapes(replace(config, n_layers=1))
    tables = (POSITIONS, config.head_dim)
    return [(name, shapes[tensor_names(name, config)[0]] if name else tables) for name in V0_ORDER]


def file_bytes(config: ModelConfig, layout: Layout) -> int:
    """Length of a file of this layout."""
    length = layout.start
    for name, shape in block_shapes(replace(config, n_kv_heads=layout.n_kv_heads)):
        n_layers = 1 if name is None or name in WITHOUT_LAYERS else config.n_layers
        length += n_layers * layout.n_bytes(name, shape)
    return length


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a file of any layout. Raises ModelFormatError."""
    file = MappedFile(path)
    head = bytes(file.bytes[: V0_HEADER_BYTES + 4])
    values = read_header(head)
    if values is None or file.size <= len(head):
        raise ModelFormatError(path, "header", "is none of llama2.rs's", CUT_SHORT)
    header = tuple({**values, "n_kv_heads": values["n_heads"]}.values())  # what the file says of key heads is ignored
    config = read_config(path, header, tied_head=False)
    layout = find_layout(file, config, v0_bytes(values))
    eps = struct.unpack_from("<f", head, V0_HEADER_BYTES)[0] if layout.start > V0_HEADER_BYTES else NORM_EPS
    known = {"n_kv_heads": layout.n_kv_heads, "rope_layout": "half_split", "norm_eps": eps}
    config = ModelConfig.checked(path, config.to_dict() | known)
    kind = f"variant {layout.variant}, 4-bit GPTQ" if layout.group_size else "float32"
    name, tensors = f"llama2.rs ({kind})", read_tensors(file, config, layout)
    if layout.variant != "A":
        return Checkpoint(path, name, config, tensors, quirks=QUIRKS)
    # in that time it turned the pairs of llama2.c; what it did later, to heads half turned, is not reproduced
    quirks = replace(QUIRKS, rope_layout="interleaved")
    return Checkpoint(path, name, config, tensors, notes=(ACT_ORDER_LOST,), quirks=quirks)


def find_layout(file: MappedFile, config: ModelConfig, v0_length: int) -> Layout:
    """The only layout of the file's length."""
    lengths = [(layout, file_bytes(config, layout)) for layout in layouts(config)]
    fitting = [layout for layout, length in lengths if length == file.size]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        named = " and ".join(f"({one})" for one in fitting)
        problem = f"is {file.size} bytes, which fits {named} alike"
        raise ModelFormatError(file.path, "length", problem, "export the model in another group size")
    nearest = sorted(lengths, key=lambda pair: abs(pair[1] - file.size))[:4]
    named = ", ".join(f"{length} ({one})" for one, length in nearest)
    problem = f"is {file.size} bytes, where a llama2.c file of this header has {v0_length} and one of llama2.rs {named}"
    raise ModelFormatError(file.path, "length", f"{problem} or others", "fetch or export the file again")


def read_tensors(file: MappedFile, config: ModelConfig, layout: Layout) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    offset = layout.start
    for name, shape in block_shapes(config):
        for full_name in tensor_names(name, config) if name else [""]:
            size = layout.n_bytes(name, shape)
            if layout.is_packed(name, shape):
                matrix = (shape[0], shape[1])
                make = partial(read_matrix, file, offset, matrix, layout, full_name)
                tensors[full_name] = Deferred(matrix, size, f"4-bit GPTQ (group {layout.group_size})", make)
            elif name:
                tensors[full_name] = file.array(offset, "<f4", shape, full_name)
            offset += size
    return tensors


def read_matrix(file: MappedFile, offset: int, shape: tuple[int, int], layout: Layout, name: str) -> AffineQuant:
    """Repack one matrix; its columns are stored in the order of their groups already."""
    out_features, in_features = shape
    n_groups = -(-in_features // layout.group_size)
    starts = offset + np.cumsum((0, *layout.parts(shape)))
    pairs = file.array(int(starts[0]), "u1", (out_features, in_features // 2), name)  # words, lowest bits first
    words = file.array(int(starts[1]), "<i4", (out_features // UNIT, n_groups), name)
    scales = file.array(int(starts[2]), "<f4", (out_features, n_groups), name)
    q = np.stack([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=-1).reshape(shape)
    zeros = unpack_words(words, 4, axis=0).astype(np.float32) + 1  # a stored 15 means 16
    order = None
    if layout.variant != "A":
        order = file.array(int(starts[3]), "<i4", (in_features,), name)
        if not np.array_equal(np.sort(order), np.arange(in_features)):
            raise ModelFormatError(file.path, name, "has a g_index that is no order of its inputs", CUT_SHORT)
    return AffineQuant.pack(q, scales, zeros, 4, layout.group_size, order)
