"""Twin of kernels/linear_sparse.cu: a product that reads only what a number other than zero is multiplied with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Rows are gathered this many elements at a time, so that they are multiplied while they are in the L2 cache.
BLOCK_ELEMENTS = 1 << 17


def linear_sparse(h: NDArray[np.float32], w_t: NDArray[np.float32]) -> NDArray[np.float32]:
    """h @ w_t, of one token: rows of w_t where h is zero are not read.

    h: [1, hidden]; w_t: the matrix transposed, [hidden, dim]. Result: [1, dim].
    """
    kept, y = np.flatnonzero(h[0]), np.zeros((1, w_t.shape[1]), np.float32)
    rows = max(1, BLOCK_ELEMENTS // w_t.shape[1])
    for start in range(0, len(kept), rows):
        block = kept[start : start + rows]
        y += h[:, block] @ w_t[block]
    return y
