"""Products with AffineQuant on the CPU, in the order in which its bytes lie: nothing is moved but the activations.

    y[o] = sum over groups g of scales[o, g] * (sum over k in g of q[o, k] x[k] - zeros[o, g] * sum over k in g of x[k])

(with offsets, + offsets[o, g] in place of - scales[o, g] * zeros[o, g]). What ``x @ w.dequantize().T`` says, about
eight times as fast, since transposing nibbles is what takes NumPy long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization import AffineQuant
from llamagpu.quantization.affine import TILE_COLUMNS, TILE_ROWS

Floats = NDArray[np.float32]
BLOCK_BYTES = 1 << 17  # of q that are widened at a time: as float32 they still fit the L2 cache


def linear_affine(x: Floats, w: AffineQuant) -> Floats:
    """x @ w.T. x: [n, in_features], not permuted; result: [n, out_features]."""
    n, (out_features, in_features) = len(x), w.shape
    if n == 0:  # of a prompt's chunks only the last has logits
        return np.empty((0, out_features), np.float32)
    if w.perm is not None:
        x = x[:, w.perm]
    n_tiles, n_blocks = w.q.shape[:2]
    columns = np.zeros((n, n_blocks, TILE_COLUMNS), np.float32)
    columns.reshape(n, -1)[:, :in_features] = x
    n_parts = max(1, TILE_COLUMNS // w.group_size) if w.group_size < in_features else 1  # groups in a block of columns
    operands = [spread(columns, order, n_parts) for order in memory_orders(w.bits)]
    group = np.minimum(np.arange(n_blocks * n_parts) * (TILE_COLUMNS // n_parts) // w.group_size, w.n_groups - 1)
    sums_of_x = columns.reshape(n, n_blocks * n_parts, -1).sum(axis=2)

    # Numbers of 8 bits are taken less 128, near which zeros are; those with offsets may be small ones, as of Q5_K.
    middle = 128 if w.bits == 8 and not w.has_offsets else 0
    y = np.empty((n, n_tiles * TILE_ROWS), np.float32)
    step = max(1, BLOCK_BYTES // w.q[0].size)
    for start in range(0, n_tiles, step):
        tiles = w.q[start : start + step]
        numbers = widened(tiles, w.bits, middle)
        sums = sum(np.matmul(q, operand) for q, operand in zip(numbers, operands, strict=True))
        sums = sums.reshape(*sums.shape[:3], n_parts, n).transpose(0, 2, 1, 3, 4)  # [tiles, 16, blocks, parts, n]
        rows = slice(start * TILE_ROWS, (start + len(tiles)) * TILE_ROWS)
        scales, zeros = tile_params(w, start, len(tiles), group)
        offsets = zeros if w.has_offsets else -scales * (zeros - middle)
        y[:, rows] = np.einsum("rg,rgn->nr", scales, sums.reshape(len(scales), -1, n)) + sums_of_x @ offsets.T
    return y[:, :out_features]


def memory_orders(bits: int) -> list[NDArray[np.int64]]:
    """Columns of a block in the order of a row's bytes: of the low nibbles and of the high ones, or of both halves."""
    k = np.arange(TILE_COLUMNS)
    if bits == 8:  # column 64 h + 16 i + 4 t + e, bytes [h][t][i][e]
        return list(k.reshape(2, 4, 4, 4).transpose(0, 2, 1, 3).reshape(2, -1))
    # column 32 i + 16 j + 4 t + 2 p + e, bytes [t][i][e][j], low and high nibble p
    return list(k.reshape(4, 2, 4, 2, 2).transpose(3, 2, 0, 4, 1).reshape(2, -1))


def spread(columns: Floats, order: NDArray[np.int64], n_parts: int) -> Floats:
    """[blocks, 64, n_parts * n]: x in the order of memory, in the column of its part, zeros in the others."""
    n, n_blocks, _ = columns.shape
    out = np.zeros((n_blocks, len(order), n_parts, n), np.float32)
    part = order // (TILE_COLUMNS // n_parts)
    out[:, np.arange(len(order)), part] = columns[:, :, order].transpose(1, 2, 0)
    return out.reshape(n_blocks, len(order), n_parts * n)


def widened(tiles: NDArray[np.uint8], bits: int, middle: int) -> list[Floats]:
    """The numbers of some tiles less ``middle``, 0 or 128, as two arrays [tiles, blocks, 16, 64]."""
    n_tiles, n_blocks = tiles.shape[:2]
    if bits == 4:
        q = tiles.reshape(n_tiles, n_blocks, TILE_ROWS, 64)
        return [(q & np.uint8(15)).astype(np.float32), (q >> np.uint8(4)).astype(np.float32)]
    signed = (tiles ^ np.uint8(128)).view(np.int8) if middle else tiles
    parts = signed.reshape(n_tiles, n_blocks, 2, 2, 8, 64)
    halves = (parts[:, :, :, half].reshape(n_tiles, n_blocks, TILE_ROWS, 64) for half in range(2))
    return [half.astype(np.float32) for half in halves]


def tile_params(w: AffineQuant, start: int, n_tiles: int, group: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Scales and zeros of the rows of some tiles for each part of the columns: [16 * n_tiles, parts] each."""
    params = w.params[start : start + n_tiles][:, group].astype(np.float32)  # [tiles, parts, 8, 2, 2]
    rows = params.transpose(0, 3, 2, 1, 4).reshape(n_tiles * TILE_ROWS, len(group), 2)
    return np.ascontiguousarray(rows[..., 0]), np.ascontiguousarray(rows[..., 1])
