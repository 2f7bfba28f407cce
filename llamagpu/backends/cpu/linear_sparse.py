"""Twin of kernels/linear_sparse.cu: a product that reads only what a number other than zero is multiplied with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def linear_sparse(h: NDArray[np.float32], w_t: NDArray[np.float32]) -> NDArray[np.float32]:
    """h @ w_t, of one token: rows of w_t where h is zero are not read.

    h: [1, hidden]; w_t: the matrix transposed, [hidden, dim]. Result: [1, dim].
    """
    kept = np.flatnonzero(h[0])
    out: NDArray[np.float32] = h[:, kept] @ w_t[kept]
    return out
