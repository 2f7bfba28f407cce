"""The block types of ggml (llama.cpp's files) to AffineQuant: the same numbers, nothing rounded again.

A row is cut into blocks of 32 weights, or 256 ("K"), each with one or two float16 (d, and m or dmin). A block of a K
type has groups of 16 or 32 with a scale and perhaps a minimum of 4 to 8 bits, which d and dmin multiply: a float16 has
11 significant bits, so these products fit the 24 of a float32.

    Q4_0, Q5_0, Q8_0    w = d (q - zero)
    Q4_1, Q5_1          w = d q + m
    Q3_K, Q6_K          w = (d scale) (q - zero)
    Q2_K, Q4_K, Q5_K    w = (d scale) q - dmin minimum
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization.affine import ROW_PADDING, TILE_ROWS, AffineQuant, tile_grid

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
# of blocks [n, n_bytes]: q [n, n_weights], scales [n, groups], offsets [n, groups] or None
Unpacked = tuple[Bytes, Floats, Floats | None]

# All types that have a number in files; those that are gone have none.
NAMES = {
    0: "F32", 1: "F16", 30: "BF16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
FLOATS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype(ml_dtypes.bfloat16)}
CHUNK_WEIGHTS = 1 << 18  # unpacked at a time: they stay in the L2 cache


@dataclass(frozen=True)
class Block:
    """A type: weights and bytes of a block, and as what AffineQuant holds it. zero: None where it has offsets."""

    kind: str
    n_weights: int
    n_bytes: int
    bits: int
    group_size: int
    zero: int | None
    unpack: Callable[[Bytes], Unpacked]
    exact_in_half: bool = False  # scales are d itself


def repack(data: Bytes, block: Block) -> AffineQuant:
    """data: [rows, blocks of a row, bytes of a block]. Raises ValueError for scales that are no numbers."""
    n_rows, n_blocks, _ = data.shape
    shape = (n_rows, n_blocks * block.n_weights)
    dtype = np.float16 if block.exact_in_half else np.float32
    q = params = None
    step = max(ROW_PADDING, CHUNK_WEIGHTS // shape[1] // ROW_PADDING * ROW_PADDING)
    for start in range(0, n_rows, step):
        rows = data[start : start + step]
        with np.errstate(all="ignore"):
            numbers, scales, offsets = block.unpack(rows.reshape(-1, block.n_bytes))
        if not np.isfinite(scales).all() or (offsets is not None and not np.isfinite(offsets).all()):
            raise ValueError(f"has a scale that is no finite number in rows {start} to {start + len(rows) - 1}")
        scales = scales.reshape(len(rows), -1)
        zeros = np.full(scales.shape, block.zero, np.float32) if offsets is None else offsets.reshape(scales.shape)
        part = AffineQuant.pack(
            numbers.reshape(len(rows), -1), scales, zeros, block.bits, block.group_size, has_offsets=offsets is not None
        )
        if q is None or params is None:
            n_tiles = tile_grid(shape)[0]
            q = np.empty((n_tiles, *part.q.shape[1:]), np.uint8)
            params = np.empty((n_tiles, *part.params.shape[1:]), dtype)
        tiles = slice(start // TILE_ROWS, start // TILE_ROWS + len(part.q))
        q[tiles], params[tiles] = part.q, part.params
    assert q is not None
    assert params is not None
    return AffineQuant(block.bits, part.group_size, shape, q, params, None, block.zero is None)


def halves(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte ``at`` of each block: float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def fields(data: Bytes, shifts: tuple[int, ...], mask: int, width: int) -> Bytes:
    """Bit fields of bytes, ``width`` bytes at a time: first the field at shifts[0] of all of them, then the next.

    [n, m] to [n, m * len(shifts)].
    """
    runs = data.reshape(len(data), -1, 1, width) >> np.array(shifts, np.uint8)[:, None]
    return (runs & np.uint8(mask)).reshape(len(data), -1)


def nibbles(data: Bytes, width: int) -> Bytes:
    return fields(data, (0, 4), 15, width)


def high_bits(words: Bytes) -> Bytes:
    """Bit j of 32 little-endian bits is of weight j: [n, 4] to [n, 32]."""
    return np.unpackbits(words, axis=1, bitorder="little")


def centred(q: Bytes, zero: int) -> Bytes:
    """8 bits are taken as signed by the CPU's product: moved so that their zero is in the middle, nothing cancels."""
    return q + np.uint8(128 - zero)


def unpack_q4_0(b: Bytes) -> Unpacked:
    return nibbles(b[:, 2:], 16), halves(b, 0), None


def unpack_q4_1(b: Bytes) -> Unpacked:
    return nibbles(b[:, 4:], 16), halves(b, 0), halves(b, 2)


def unpack_q5_0(b: Bytes) -> Unpacked:
    return centred(nibbles(b[:, 6:], 16) | high_bits(b[:, 2:6]) << np.uint8(4), 16), halves(b, 0), None


def unpack_q5_1(b: Bytes) -> Unpacked:
    return nibbles(b[:, 8:], 16) | high_bits(b[:, 4:8]) << np.uint8(4), halves(b, 0), halves(b, 2)


def unpack_q8_0(b: Bytes) -> Unpacked:
    return b[:, 2:] ^ np.uint8(128), halves(b, 0), None  # int8 + 128


def unpack_q2_k(b: Bytes) -> Unpacked:
    """16 bytes of scale and minimum, 4 bits each; 64 bytes of weights; d, dmin."""
    scales, minima = b[:, :16] & np.uint8(15), b[:, :16] >> np.uint8(4)
    return fields(b[:, 16:80], (0, 2, 4, 6), 3, 32), halves(b, 80) * scales, -(halves(b, 82) * minima)


def unpack_q3_k(b: Bytes) -> Unpacked:
    """32 bytes of third bits; 64 bytes of the lower two; 16 scales of 6 bits: low nibbles, then high pairs; d."""
    q = fields(b[:, 32:96], (0, 2, 4, 6), 3, 32) | fields(b[:, :32], tuple(range(8)), 1, 32) << np.uint8(2)
    scales = nibbles(b[:, 96:104], 8) | fields(b[:, 104:108], (0, 2, 4, 6), 3, 4) << np.uint8(4)
    return q, halves(b, 108) * (scales.astype(np.float32) - np.float32(32)), None


def scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """8 scales and 8 minima of 6 bits from 12 bytes: the first four of each are the low bits of bytes 0 to 7; the
    others have their low nibbles in bytes 8 to 11 and their high pairs above those."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = [first & np.uint8(63), third & np.uint8(15) | first >> np.uint8(2) & np.uint8(48)]
    minima = [second & np.uint8(63), third >> np.uint8(4) | second >> np.uint8(2) & np.uint8(48)]
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def unpack_q4_k(b: Bytes) -> Unpacked:
    """d, dmin; 12 bytes of scales and minima; 128 bytes of weights."""
    scales, minima = scales_and_minima(b[:, 4:16])
    return nibbles(b[:, 16:], 32), halves(b, 0) * scales, -(halves(b, 2) * minima)


def unpack_q5_k(b: Bytes) -> Unpacked:
    """As Q4_K, with 32 bytes of fifth bits before the weights."""
    scales, minima = scales_and_minima(b[:, 4:16])
    q = nibbles(b[:, 48:], 32) | fields(b[:, 16:48], tuple(range(8)), 1, 32) << np.uint8(4)
    return q, halves(b, 0) * scales, -(halves(b, 2) * minima)


def unpack_q6_k(b: Bytes) -> Unpacked:
    """128 bytes of low nibbles; 64 bytes of high pairs; 16 scales, int8; d."""
    q = nibbles(b[:, :128], 64) | fields(b[:, 128:192], (0, 2, 4, 6), 3, 32) << np.uint8(4)
    return centred(q, 32), halves(b, 208) * b[:, 192:208].view(np.int8), None


BLOCKS = {
    2: Block("Q4_0", 32, 18, 4, 32, 8, unpack_q4_0, exact_in_half=True),
    3: Block("Q4_1", 32, 20, 4, 32, None, unpack_q4_1),
    6: Block("Q5_0", 32, 22, 8, 32, 128, unpack_q5_0, exact_in_half=True),
    7: Block("Q5_1", 32, 24, 8, 32, None, unpack_q5_1),
    8: Block("Q8_0", 32, 34, 8, 32, 128, unpack_q8_0, exact_in_half=True),
    10: Block("Q2_K", 256, 84, 4, 16, None, unpack_q2_k),
    11: Block("Q3_K", 256, 110, 4, 16, 4, unpack_q3_k),
    12: Block("Q4_K", 256, 144, 4, 32, None, unpack_q4_k),
    13: Block("Q5_K", 256, 176, 8, 32, None, unpack_q5_k),
    14: Block("Q6_K", 256, 210, 8, 16, 128, unpack_q6_k),
}
