"""GroupNorm with a group per head: the end of kernels/wkv5.cu and kernels/wkv7.cu."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def head_norm(
    y: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32], eps: float
) -> NDArray[np.float32]:
    """(y - mean) / sqrt(variance + eps) * weight + bias, mean and variance of each head.

    y: [n, n_heads, head_dim]; weight, bias: [dim]. Result: [n, dim], dim = n_heads * head_dim.
    """
    n, _, head_dim = y.shape
    centred = y - y.mean(axis=-1, keepdims=True)
    variance = np.einsum("nhd,nhd->nh", centred, centred) / np.float32(head_dim)
    centred *= (np.float32(1) / np.sqrt(variance + np.float32(eps)))[..., None]
    out: NDArray[np.float32] = centred.reshape(n, -1) * weight + bias
    return out
