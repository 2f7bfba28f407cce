"""Twin of kernels/split_bf16.cu, and of all kernels that write vectors for quantised weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE_COLUMNS = 128


def place_in_split(k: NDArray[np.integer]) -> NDArray[np.integer]:
    """Where number k stands in its row: of each 32, number 16 half + 4 lane + e stands at 8 lane + 4 half + e."""
    return k & ~31 | (k & 12) << 1 | (k & 16) >> 2 | k & 3


def split_bf16(x: NDArray[np.float32], place: NDArray[np.int32] | None = None) -> NDArray[np.uint16]:
    """Each number as two bfloat16: bits [n, 2, width rounded up to 128], high halves, then low ones; zeros behind.

    The high half is cut off, the low one is what is left, rounded to nearest: 16 bits of each number. Number k stands
    for input place[k] of the weights, by default k. x: [n, width].
    """
    n, width = x.shape
    bits = x.view(np.uint32)
    rest = (x - (bits & np.uint32(0xFFFF0000)).view(np.float32)).view(np.uint32)
    low = (rest + np.uint32(0x7FFF) + (rest >> 16 & 1)) >> 16
    at = place_in_split(np.arange(width) if place is None else place.astype(np.int64))
    out = np.zeros((n, 2, -(-width // TILE_COLUMNS) * TILE_COLUMNS), np.uint16)
    out[:, 0, at] = bits >> 16
    out[:, 1, at] = low
    return out


def joined(split: NDArray[np.uint16], width: int, place: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
    """The inverse of ``split_bf16``, to 16 bits: float32 [n, width]."""
    at = place_in_split(np.arange(width) if place is None else place.astype(np.int64))
    halves = (split[..., at].astype(np.uint32) << 16).view(np.float32)
    sums: NDArray[np.float32] = halves[:, 0] + halves[:, 1]
    return sums
