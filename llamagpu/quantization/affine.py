"""AffineQuant: the one quantised matrix of the GPU kernels. GPTQ, AWQ, Q8_0 and their kin are all held as this.

    w[o, j] = scales[o, g] * (q[o, j] - zeros[o, g]), g = j // group_size;  y[o] = sum over j of w[o, j] x[perm[j]]

or, where ``has_offsets``, w[o, j] = scales[o, g] * q[o, j] + offsets[o, g]: zeros must be whole numbers, which the
kernels subtract exactly, and some formats (llama.cpp's Q4_1, Q4_K) have none such.

It is stored as the kernels read it (kernels/tiles.cuh), so a file that holds it goes to the GPU as it is. A tile is 16
rows by 128 columns; lane 4r + t of a warp holds, of rows r and r + 8 and of each 16 columns, columns 4t to 4t + 3: the
operand of one tensor-core instruction. Tiles lie row by row of the tile grid; rows are padded to 32, columns to 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE_ROWS, TILE_COLUMNS = 16, 128
ROW_PADDING = 2 * TILE_ROWS  # a block of the kernels takes two tiles
SMALLEST_GROUP = 16  # columns of one tensor-core instruction, which have one scale


def rounded_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def kernel_group_size(group_size: int, in_features: int) -> int:
    """The group size under which the kernels hold groups of ``group_size``: a power of two, or the whole row.

    Another size (96, say) is cut to the largest power of two that divides it, its scales repeated. Below 16 there is
    none: 0.
    """
    if group_size >= in_features:
        return in_features
    power = group_size & -group_size
    return power if power >= SMALLEST_GROUP else 0


@dataclass(frozen=True)
class AffineQuant:
    """A matrix [out_features, in_features] of 4 or 8 bits.

    q: uint8 [tiles, column blocks, bytes of a tile]. params: float16 or float32 [tiles, groups, 8, 2, 2]: scale and
    zero (or offset, and then float32) of rows r and r + 8. group_size: 16, 32, 64, ... or in_features. perm: int32
    [in_features], or None for order.
    """

    bits: int
    group_size: int
    shape: tuple[int, int]
    q: NDArray[np.uint8]
    params: NDArray[Any]
    perm: NDArray[np.int32] | None = None
    has_offsets: bool = False

    def __post_init__(self) -> None:
        n_tiles, n_blocks = tile_grid(self.shape)
        if self.bits not in (4, 8):
            raise ValueError(f"{self.bits} bits: 4 or 8")
        if self.group_size != kernel_group_size(self.group_size, self.shape[1]):
            raise ValueError(f"group size {self.group_size} is neither a power of two from 16 nor the whole row")
        if self.q.shape != (n_tiles, n_blocks, TILE_ROWS * TILE_COLUMNS * self.bits // 8) or self.q.dtype != np.uint8:
            raise ValueError(f"q of {self.q.shape} does not hold {self.shape} at {self.bits} bits")
        if self.params.shape != (n_tiles, self.n_groups, 8, 2, 2) or self.params.dtype not in (np.float16, np.float32):
            raise ValueError(f"params of {self.params.shape} do not fit {self.shape} in groups of {self.group_size}")
        if self.has_offsets and self.params.dtype != np.float32:
            raise ValueError("offsets are float32")
        if self.perm is not None and self.perm.shape != (self.shape[1],):
            raise ValueError(f"perm of {self.perm.shape} does not fit {self.shape}")

    @property
    def n_groups(self) -> int:
        """Groups of a row, those of padding included."""
        return n_groups(self.shape[1], self.group_size)

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.params.nbytes + (self.perm.nbytes if self.perm is not None else 0)

    @staticmethod
    def bytes_of(shape: tuple[int, int], bits: int, group_size: int) -> int:
        """nbytes of a matrix with float16 scales and no perm."""
        n_tiles, n_blocks = tile_grid(shape)
        return n_tiles * (n_blocks * TILE_ROWS * TILE_COLUMNS * bits // 8 + 64 * n_groups(shape[1], group_size))

    @classmethod
    def pack(
        cls,
        q: NDArray[Any],
        scales: NDArray[Any],
        zeros: NDArray[Any],
        bits: int,
        group_size: int,
        perm: NDArray[Any] | None = None,
        has_offsets: bool = False,
    ) -> AffineQuant:
        """From plain rows: q [out, in] of 0 ... 2^bits - 1, scales and zeros [out, ceil(in / group_size)].

        has_offsets: ``zeros`` are offsets. Scales are kept as float16 where that is exact, else as float32. Raises
        ValueError where sizes do not fit, and for group sizes that ``kernel_group_size`` does not have.
        """
        out_features, in_features = q.shape
        if scales.shape != zeros.shape or scales.shape != (out_features, -(-in_features // group_size)):
            raise ValueError(
                f"scales of {scales.shape}, zeros of {zeros.shape} for {q.shape} in groups of {group_size}"
            )
        size = kernel_group_size(group_size, in_features)
        if not size:
            raise ValueError(f"groups of {group_size} are smaller than the kernels' smallest, {SMALLEST_GROUP}")
        if size < group_size and size != in_features:
            scales, zeros = (np.repeat(a, group_size // size, axis=1) for a in (scales, zeros))
        n_tiles, n_blocks = tile_grid(q.shape)
        rows = np.zeros((n_tiles * TILE_ROWS, n_blocks * TILE_COLUMNS), np.uint8)
        rows[:out_features, :in_features] = q
        pairs = np.zeros((n_tiles * TILE_ROWS, n_groups(in_features, size), 2), np.float32)
        held = min(scales.shape[1], pairs.shape[1])
        pairs[:out_features, :held, 0], pairs[:out_features, :held, 1] = scales[:, :held], zeros[:, :held]
        with np.errstate(over="ignore"):
            halves = pairs.astype(np.float16)
        params = halves if not has_offsets and np.array_equal(halves.astype(np.float32), pairs) else pairs
        order = None if perm is None or np.array_equal(perm, np.arange(in_features)) else perm.astype(np.int32)
        return cls(
            bits, size, (out_features, in_features), pack_tiles(rows, bits), tile_params(params), order, has_offsets
        )

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """q of rows start to stop, [stop - start, in_features], columns in stored order."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        first = start // TILE_ROWS
        tiles = unpack_tiles(self.q[first : -(-stop // TILE_ROWS)], self.bits)
        return tiles[start - first * TILE_ROWS : stop - first * TILE_ROWS, : self.shape[1]]

    def scales_and_zeros(self, start: int = 0, stop: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Of rows start to stop: [stop - start, ceil(in_features / group_size)] each, float32. Offsets for zeros."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        first = start // TILE_ROWS
        rows = untile_params(self.params[first : -(-stop // TILE_ROWS)]).astype(np.float32)
        rows = rows[start - first * TILE_ROWS : stop - first * TILE_ROWS, : -(-self.shape[1] // self.group_size)]
        return rows[..., 0], rows[..., 1]

    def dequantize(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start to stop as float32 [stop - start, in_features], columns in stored order (see ``perm``)."""
        values = self.rows(start, stop).astype(np.float32)
        scales, zeros = self.scales_and_zeros(start, stop)
        for group in range(scales.shape[1]):
            columns = values[:, group * self.group_size : (group + 1) * self.group_size]
            if not self.has_offsets:
                columns -= zeros[:, group, None]
            columns *= scales[:, group, None]
            if self.has_offsets:
                columns += zeros[:, group, None]
        return values


def tile_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Tiles below one another, tiles beside one another."""
    return rounded_up(shape[0], ROW_PADDING) // TILE_ROWS, -(-shape[1] // TILE_COLUMNS)


def affine_nbytes(shape: tuple[int, int], bits: int, group_size: int, params_size: int) -> int:
    """Bytes of an AffineQuant. params_size: of a scale, as many as of a zero: 2 or 4."""
    n_tiles, n_blocks = tile_grid(shape)
    groups = n_groups(shape[1], kernel_group_size(group_size, shape[1]))
    return n_tiles * (n_blocks * TILE_ROWS * TILE_COLUMNS * bits // 8 + groups * 32 * params_size)


def n_groups(in_features: int, group_size: int) -> int:
    return -(-rounded_up(in_features, TILE_COLUMNS) // group_size) if group_size < in_features else 1


def pack_tiles(rows: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Padded rows [16 * tiles, 128 * blocks] to [tiles, blocks, bytes].

    4 bits: 16 bytes are 4 words, word i for columns 32 i to 32 i + 31. Masking a word shifted by 4 s with 0x000f000f
    leaves two neighbours: the nibbles s and s + 4. 8 bits: 16 bytes are 4 words, each 4 neighbours.
    """
    n_tiles, n_blocks = rows.shape[0] // TILE_ROWS, rows.shape[1] // TILE_COLUMNS
    if bits == 8:  # row = 8 h + r, column = 64 k + 16 i + 4 t + e
        tiles = rows.reshape(n_tiles, 2, 8, n_blocks, 2, 4, 4, 4).transpose(0, 3, 1, 4, 2, 6, 5, 7)
    else:  # row = 8 h + r, column = 32 i + 16 j + 4 t + 2 p + e; nibble 4 e + 2 j + p
        tiles = rows.reshape(n_tiles, 2, 8, n_blocks, 4, 2, 4, 2, 2).transpose(0, 3, 1, 2, 6, 4, 8, 5, 7)
        tiles = tiles[..., 0] | tiles[..., 1] << np.uint8(4)
    return np.ascontiguousarray(tiles).reshape(n_tiles, n_blocks, -1)


def unpack_tiles(tiles: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse of ``pack_tiles``."""
    n_tiles, n_blocks = tiles.shape[:2]
    if bits == 8:
        parts = tiles.reshape(n_tiles, n_blocks, 2, 2, 8, 4, 4, 4).transpose(0, 2, 4, 1, 3, 6, 5, 7)
    else:
        nibbles = np.stack([tiles & np.uint8(15), tiles >> np.uint8(4)], axis=-1)
        parts = nibbles.reshape(n_tiles, n_blocks, 2, 8, 4, 4, 2, 2, 2).transpose(0, 2, 3, 1, 5, 7, 4, 8, 6)
    return parts.reshape(n_tiles * TILE_ROWS, n_blocks * TILE_COLUMNS)


def tile_params(pairs: NDArray[Any]) -> NDArray[Any]:
    """[rows, groups, 2] to [tiles, groups, 8, 2, 2]."""
    n_rows, groups, _ = pairs.shape
    tiles = pairs.reshape(n_rows // TILE_ROWS, 2, 8, groups, 2).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(tiles)


def untile_params(params: NDArray[Any]) -> NDArray[Any]:
    """The inverse of ``tile_params``."""
    n_tiles, groups = params.shape[:2]
    return params.transpose(0, 3, 2, 1, 4).reshape(n_tiles * TILE_ROWS, groups, 2)


def take_rows(matrices: Sequence[AffineQuant], order: NDArray[np.integer[Any]]) -> AffineQuant:
    """Rows of several matrices of one kind, stacked, in another order: order[i] is the stacked row of row i."""
    first = matrices[0]
    loads = first.bits // 4  # 64-byte pieces of a row in a tile

    def row_bytes(matrix: AffineQuant) -> NDArray[np.uint8]:
        n_tiles, n_blocks = matrix.q.shape[:2]
        parts = matrix.q.reshape(n_tiles, n_blocks, 2, loads, 8, 64).transpose(0, 2, 4, 1, 3, 5)
        return parts.reshape(n_tiles * TILE_ROWS, n_blocks, loads, 64)[: matrix.shape[0]]

    shape = (len(order), first.shape[1])
    n_tiles, n_blocks = tile_grid(shape)
    stacked = np.concatenate([row_bytes(matrix) for matrix in matrices])
    rows = np.zeros((n_tiles * TILE_ROWS, *stacked.shape[1:]), np.uint8)
    np.take(stacked, order, axis=0, out=rows[: len(order)])
    q = rows.reshape(n_tiles, 2, 8, n_blocks, loads, 64).transpose(0, 3, 1, 4, 2, 5)
    stacked_params = np.concatenate([untile_params(matrix.params)[: matrix.shape[0]] for matrix in matrices])
    pairs = np.zeros((n_tiles * TILE_ROWS, *stacked_params.shape[1:]), stacked_params.dtype)
    pairs[: len(order)] = stacked_params[order]
    tiles = np.ascontiguousarray(q).reshape(n_tiles, n_blocks, -1)
    return AffineQuant(first.bits, first.group_size, shape, tiles, tile_params(pairs), first.perm, first.has_offsets)
