"""Twin of kernels/rope.cu: rotary position embedding."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llamagpu.config import ModelConfig, RopeLayout


@lru_cache(maxsize=2)  # all layers of a step ask for the same
def rope_angles(start: int, n: int, config: ModelConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin, each [n, head_dim / 2], for positions from ``start``: position * theta^(-2j / head_dim) / factor_j.

    The angle is computed in float64: at position 100,000 a float32 angle is off by up to 0.005 radians.
    """
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    if config.rope_factors is not None:
        frequencies /= config.rope_factors
    angles = np.arange(start, start + n)[:, None] * frequencies
    scale = config.rope_attention_factor
    return (scale * np.cos(angles)).astype(np.float32), (scale * np.sin(angles)).astype(np.float32)


def rope(
    x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32], layout: RopeLayout
) -> NDArray[np.float32]:
    """Turn pairs of x [n, heads, head_dim]: elements 2j, 2j+1 (interleaved) or j, j + head_dim/2 (half_split)."""
    cos, sin = cos[:, None, :], sin[:, None, :]
    half = x.shape[-1] // 2
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if layout == "interleaved" else (slice(half), slice(half, None))
    )
    a, b = x[..., first], x[..., second]
    y = np.empty_like(x)
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    return y
