"""GPTQ tensors as AutoGPTQ and its kin store them, as plain rows: the same whole numbers, nothing rounded again."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization.grouped_numbers import GroupedNumbers


def unpack_words(words: NDArray[np.int32], bits: int, axis: int) -> NDArray[np.uint8]:
    """int32 words along ``axis`` as 32 / bits numbers each, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    moved = np.moveaxis(words.view(np.uint32), axis, -1)
    numbers = (moved[..., None] >> shifts & np.uint32(2**bits - 1)).astype(np.uint8)
    return np.moveaxis(numbers.reshape(*moved.shape[:-1], -1), -1, axis)


def gptq_numbers(
    qweight: NDArray[np.int32],
    qzeros: NDArray[np.int32],
    scales: NDArray[Any],
    group_size: int,
    g_idx: NDArray[np.int32] | None = None,
    bits: int = 4,
    version: Literal[1, 2] = 1,
) -> GroupedNumbers:
    """qweight int32 [in * bits / 32, out], qzeros int32 [groups, out * bits / 32], scales [groups, out], g_idx [in].

    Version 1 stores zero - 1, so a stored 15 means 16; version 2 stores the zero itself. g_idx gives the group of each
    input; where that is not simply its place (act-order), columns are sorted by group and ``perm`` says whence.
    group_size -1 is the whole row. Raises ValueError where sizes or groups do not fit one another.
    """
    q = unpack_words(qweight, bits, 0).T
    out_features, in_features = q.shape
    zeros = unpack_words(qzeros, bits, 1).astype(np.float32) + (1 if version == 1 else 0)
    group_size = in_features if group_size == -1 else group_size
    groups = -(-in_features // group_size)
    if scales.shape != (groups, out_features) or zeros.shape != scales.shape:
        raise ValueError(
            f"qweight of {qweight.shape}, qzeros of {qzeros.shape} and scales of {scales.shape} do not fit"
        )
    perm = None
    in_order = np.arange(in_features) // group_size
    if g_idx is not None and not np.array_equal(g_idx, in_order):
        if g_idx.shape != (in_features,) or not np.array_equal(np.sort(g_idx), in_order):
            raise ValueError(f"g_idx does not put {in_features} inputs in {groups} groups of {group_size}")
        perm = np.argsort(g_idx, kind="stable").astype(np.int32)
        q = q[:, perm]
    return GroupedNumbers(q, scales.T, zeros.T, bits, group_size, perm)
