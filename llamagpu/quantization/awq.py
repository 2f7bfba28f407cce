"""AWQ tensors as AutoAWQ's "gemm" kernels store them, to AffineQuant: the same whole numbers, nothing rounded again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization.affine import AffineQuant
from llamagpu.quantization.grouped_numbers import GroupedNumbers

# Output c + ORDER[i] of eight neighbours c ... c + 7 is nibble i of their word, the lowest first.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_awq(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """int32 [rows, columns / 8] to numbers of 4 bits, [rows, columns]."""
    numbers = np.empty((*words.shape, 8), np.uint8)
    for i, column in enumerate(ORDER):
        numbers[..., column] = words.view(np.uint32) >> np.uint32(4 * i) & np.uint32(15)
    return numbers.reshape(words.shape[0], -1)


def affine_from_awq(
    qweight: NDArray[np.int32], qzeros: NDArray[np.int32], scales: NDArray[Any], group_size: int
) -> AffineQuant:
    """qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales [groups, out]; zeros are as they are.

    group_size -1 is the whole row. Raises ValueError where sizes do not fit one another.
    """
    return awq_numbers(qweight, qzeros, scales, group_size).pack()


def awq_numbers(
    qweight: NDArray[np.int32], qzeros: NDArray[np.int32], scales: NDArray[Any], group_size: int
) -> GroupedNumbers:
    """The same as plain rows."""
    q, zeros = unpack_awq(qweight).T, unpack_awq(qzeros).T.astype(np.float32)
    return GroupedNumbers(q, scales.T, zeros, 4, q.shape[1] if group_size == -1 else group_size)
