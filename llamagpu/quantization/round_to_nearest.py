"""Round-to-nearest in groups: each group of a row gets the scale and zero that leave the least squared error.

Least is looked for among ranges that are shrunk step by step (a few large weights may then be clipped, and all the
others are closer), each with the zero rounded down and rounded up; then the scale is fitted to the numbers that were
chosen, by least squares. Scales are rounded to float16 before numbers are chosen, so that what is stored is what was
judged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization.affine import AffineQuant

Array = Any  # of ``xp``, the numpy or the cupy module

# Parts of a group's range that its numbers span: 4 bits gain by clipping, 8 bits have numbers to spare.
SHRINK = {4: [1 - 0.05 * i for i in range(10)], 8: [1 - 0.02 * i for i in range(5)]}
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-24, 65504.0  # of float16
CHUNK_ELEMENTS = 1 << 16  # weights searched at a time: a few arrays of them fit the L2 cache


def round_to_nearest(weights: NDArray[Any], bits: int, group_size: int, smallest_zero: int = 0) -> AffineQuant:
    """Floats [out_features, in_features] in groups of ``group_size`` (or the row's end): 4 or 8 bits.

    smallest_zero: 1 for files that cannot say 0. Raises ValueError for weights that are no numbers, or too large.
    """
    out_features, in_features = weights.shape
    group_size = min(group_size, in_features)
    n_groups = -(-in_features // group_size)
    q = np.empty((out_features, in_features), np.uint8)
    scales, zeros = np.empty((2, out_features, n_groups), np.float32)

    def do(rows: slice) -> None:
        values = weights[rows].astype(np.float32)
        for columns, groups in group_ranges(in_features, group_size):
            part = values[:, columns].reshape(len(values), -1, min(group_size, columns.stop - columns.start))
            scales[rows, groups], zeros[rows, groups] = best_scales(part, bits, smallest_zero)
            numbers = steps(part, scales[rows, groups], zeros[rows, groups], bits) + zeros[rows, groups, None]
            q[rows, columns] = numbers.reshape(len(values), -1)

    step = max(1, CHUNK_ELEMENTS // in_features)
    chunks = [slice(start, min(start + step, out_features)) for start in range(0, out_features, step)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy lets go of the interpreter while it counts
        for _ in pool.map(do, chunks):
            pass
    return AffineQuant.pack(q, scales, zeros, bits, group_size)


def group_ranges(in_features: int, group_size: int) -> Iterator[tuple[slice, slice]]:
    """Columns and groups of those that are whole, and of a last one that is shorter."""
    whole = in_features // group_size
    yield slice(0, whole * group_size), slice(0, whole)
    if in_features % group_size:
        yield slice(whole * group_size, in_features), slice(whole, whole + 1)


def best_scales(groups: Array, bits: int, smallest_zero: int = 0, xp: ModuleType = np) -> tuple[Array, Array]:
    """Scale (a float16 number) and zero (smallest_zero ... 2^bits - 1) of each group: float32 [...] each.

    groups: float32 [..., n]. Raises ValueError for weights that are no numbers, or beyond what float16 scales reach.
    """
    highest = 2**bits - 1
    low, high = xp.minimum(groups.min(axis=-1), 0), xp.maximum(groups.max(axis=-1), 0)
    if not bool(xp.all((high - low) <= LARGEST_SCALE * highest)):  # also false for NaN
        raise ValueError("weights that are no numbers, or too large for float16 scales")
    best_error = xp.full(low.shape, xp.inf, xp.float32)
    best_scale, best_zero = xp.ones_like(low), xp.full_like(low, smallest_zero)

    def judge(scale: Array, zero: Array, distances: Array) -> None:
        nonlocal best_error, best_scale, best_zero
        rest = distances * scale[..., None] - groups
        error = xp.einsum("...n,...n->...", rest, rest)
        better = error < best_error
        best_error = xp.where(better, error, best_error)
        best_scale, best_zero = xp.where(better, scale, best_scale), xp.where(better, zero, best_zero)

    for shrink in SHRINK[bits]:
        scale = as_float16((high - low) * xp.float32(shrink / highest), xp)
        place = -low * xp.float32(shrink) / scale
        for zero in (xp.floor(place), xp.ceil(place)):
            zero = xp.clip(zero, smallest_zero, highest)
            judge(scale, zero, steps(groups, scale, zero, bits, xp))
    distances = steps(groups, best_scale, best_zero, bits, xp)
    squares = xp.einsum("...n,...n->...", distances, distances)
    fitted = xp.einsum("...n,...n->...", distances, groups) / xp.maximum(squares, 1)
    fitted = as_float16(fitted, xp)
    judge(fitted, best_zero, steps(groups, fitted, best_zero, bits, xp))
    return best_scale, best_zero


def steps(groups: Array, scales: Array, zeros: Array, bits: int, xp: ModuleType = np) -> Array:
    """q - zero of the nearest number to each weight: float32 [..., n], whole."""
    nearest = xp.rint(groups / scales[..., None])
    xp.maximum(nearest, -zeros[..., None], out=nearest)
    xp.minimum(nearest, (2**bits - 1) - zeros[..., None], out=nearest)
    return nearest


def as_float16(scales: Array, xp: ModuleType) -> Array:
    """Rounded to float16, as float32; never 0."""
    return xp.clip(scales, SMALLEST_SCALE, LARGEST_SCALE).astype(xp.float16).astype(xp.float32)
