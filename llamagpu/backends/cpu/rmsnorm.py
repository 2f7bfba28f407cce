"""Twin of kernels/rmsnorm.cu."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rmsnorm(x: NDArray[np.float32], weight: NDArray[np.float32], eps: float) -> NDArray[np.float32]:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. x: [..., dim]; weight: [dim]."""
    mean_square = np.einsum("...d,...d->...", x, x) / np.float32(x.shape[-1])
    out: NDArray[np.float32] = x * (np.float32(1) / np.sqrt(mean_square + np.float32(eps)))[..., None] * weight
    return out
