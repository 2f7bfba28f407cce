"""How RoPE is stretched beyond the positions that a model began with: factors by which its frequencies are divided."""

from __future__ import annotations

import math

import numpy as np


def llama3_factors(
    head_dim: int,
    theta: float,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_positions: int,
) -> tuple[float, ...]:
    """head_dim / 2 factors of Llama 3.1 and later, for ModelConfig.rope_factors.

    A frequency that turns at least high_freq_factor times within original_positions stays (1); one that turns at most
    low_freq_factor times is divided by ``factor``; between the two, frequencies (not factors) go over linearly.
    """
    with np.errstate(all="ignore"):  # a theta near 0 or infinity gives frequencies that are
        frequencies = np.float64(theta) ** (-np.arange(0, head_dim, 2) / head_dim)
        turns = original_positions * frequencies / (2 * math.pi)
        kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
        factors = 1 / (kept + (1 - kept) / factor)
    return tuple(float(value) for value in factors)
