"""GPTQ (Frantar et al., 2022): round a matrix column by column; the columns left make up for each error.

For a matrix w and inputs x, what counts is the error of w x. With H = sum of x x^T, rounding column j of w by e changes
the least reachable error by e^2 / U_jj^2, reached by adding -e / U_jj * U_jk to the columns k that follow, where
H^-1 = U^T U and U is upper triangular. Columns are updated at once within a block, and behind it once per block.

The group scales are those of round_to_nearest, found when the first column of a group is reached, on weights to which
all errors so far have been added. With act-order, columns are taken by falling activation (H_jj), and a group is so
many columns in that order: the matrix keeps them so, with ``perm`` to say which input each is multiplied with.

Written for numpy and cupy alike: ``xp`` is either. Sums and factors of H are float64, the weights float32.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization.affine import AffineQuant
from llamagpu.quantization.round_to_nearest import best_scales, steps

Array = Any  # of ``xp``
BLOCK = 128  # columns; a power of two, as groups are, so that a group never begins before errors have reached it
DAMPING = 0.01  # of the mean of H's diagonal, added to it: H of few or alike inputs cannot be inverted


class Hessian:
    """sum of x x^T over the inputs x of a matrix: float64 [in_features, in_features] of ``xp``."""

    def __init__(self, in_features: int, xp: ModuleType = np) -> None:
        self.xp = xp
        self.sum = xp.zeros((in_features, in_features), xp.float64)

    def add(self, x: NDArray[np.float32]) -> None:
        """x: [n, in_features]."""
        rows = self.xp.asarray(x)
        self.sum += rows.T @ rows


def gptq(
    weights: NDArray[Any],
    hessian: Array,
    bits: int,
    group_size: int,
    act_order: bool = False,
    smallest_zero: int = 0,
    xp: ModuleType = np,
) -> AffineQuant:
    """Floats [out_features, in_features] for inputs with this Hessian [in_features, in_features].

    group_size: a power of two, or in_features and above for one group a row. smallest_zero: 1 for files that cannot say
    0. Raises ValueError for weights or inputs that are no numbers.
    """
    out_features, in_features = weights.shape
    group_size = min(group_size, in_features)
    highest = 2**bits - 1
    diagonal = xp.diagonal(hessian)
    if not bool(xp.all(xp.isfinite(diagonal))):
        raise ValueError("inputs that are no numbers")
    # Columns are rows here: those of one input lie together in memory.
    w = xp.ascontiguousarray(xp.asarray(weights.astype(np.float32)).T)
    order = None
    if act_order:
        order = xp.argsort(-diagonal, kind="stable")
        w, hessian = w[order], hessian[order][:, order]
    u = inverse_factor(hessian, xp).astype(xp.float32)

    q = xp.empty((in_features, out_features), xp.uint8)
    scales, zeros = xp.empty((2, -(-in_features // group_size), out_features), xp.float32)
    for start in range(0, in_features, BLOCK):
        stop = min(start + BLOCK, in_features)
        block = w[start:stop]  # a view: its updates stay in w, where a group that reaches beyond it finds them
        errors = xp.empty_like(block)
        for i in range(stop - start):
            group, first = divmod(start + i, group_size)
            if first == 0:
                scales[group], zeros[group] = best_scales(
                    w[start + i : start + i + group_size].T, bits, smallest_zero, xp
                )
            scale, zero = scales[group], zeros[group]
            distances = steps(block[i, :, None], scale, zero, bits, xp)[:, 0]
            q[start + i] = xp.clip(distances + zero, 0, highest)
            errors[i] = (block[i] - distances * scale) / u[start + i, start + i]
            block[i + 1 :] -= u[start + i, start + i + 1 : stop, None] * errors[i]
        w[stop:] -= u[start:stop, stop:].T @ errors
    perm = None if order is None else to_host(order)
    return AffineQuant.pack(to_host(q).T, to_host(scales).T, to_host(zeros).T, bits, group_size, perm)


def inverse_factor(hessian: Array, xp: ModuleType) -> Array:
    """Upper triangular U with U^T U the inverse of the damped Hessian.

    An input that was never other than 0 says nothing of its column: 1 on the diagonal lets it be rounded by itself.
    """
    h = hessian.copy()
    diagonal = xp.diagonal(h).copy()
    diagonal[diagonal == 0] = 1
    damped = diagonal + DAMPING * diagonal.mean()
    n = xp.arange(len(h))
    h[n, n] = damped
    # With rows and columns backwards, the lower Cholesky factor is an upper one R with H = R R^T, and U = R^-1.
    r = xp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return xp.linalg.inv(r)


def to_host(array: Array) -> NDArray[Any]:
    """A NumPy array of a cupy one, or itself."""
    host: NDArray[Any] = array.get() if hasattr(array, "get") else array
    return host
