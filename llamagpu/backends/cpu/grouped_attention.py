"""Twin of kernels/grouped_attention.cu: MicroRWKV's attention between heads, over views that mix tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUPS = 4


def grouped_attention(qkvw: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Of each of 4 groups Q, K, V and W [n, dim / 4], all four read as [n_heads, n, d] without moving a number: for
    each of the n places softmax attention of the heads of Q over the heads of K and V, times W, number by number.

    What is one head's and one place's then is d = dim / (4 * n_heads) channels of some token: so this mixes tokens that
    stand n / n_heads apart, before and after one another, and which ones depends on n.
    qkvw: [n, 4 * dim], of each group its q, k, v and w side by side. Result [n, dim]: the groups one after another as
    [4, n_heads, n, d], read as rows of dim, again without moving a number; W is read so too.
    """
    n, dim = qkvw.shape[0], qkvw.shape[1] // GROUPS
    d = dim // GROUPS // n_heads
    parts = qkvw.reshape(n, GROUPS, 4, dim // GROUPS).transpose(2, 1, 0, 3)  # [q k v w, group, n, dim / 4]
    q, k, v, w = np.ascontiguousarray(parts).reshape(4, GROUPS, n_heads, n, d)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))  # [group, n, n_heads, d]
    scores = (q @ k.transpose(0, 1, 3, 2)) * np.float32(d**-0.5)
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    out = (weights @ v).transpose(0, 2, 1, 3) * w
    return np.ascontiguousarray(out).reshape(n, dim)
