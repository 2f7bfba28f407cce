"""How RoPE is stretched beyond the positions that a model began with: numbers that divide its frequencies."""

from __future__ import annotations

import math

import numpy as np


def yarn_factors(
    head_dim: int,
    theta: float,
    factor: float,
    original_positions: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[float, ...]:
    """YaRN (Peng et al. 2023, "NTK-by-parts"): head_dim / 2 numbers.

    Pairs that turn more than beta_fast times within the original positions keep their frequency (1); those that turn
    less than beta_slow times are interpolated (``factor``); between the two the frequency goes from one to the other
    in a straight line. Both borders are rounded outwards to whole pairs, as the published code has it.
    """

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(original_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(0, math.floor(pair_that_turns(beta_fast)))
    high = min(head_dim - 1, math.ceil(pair_that_turns(beta_slow)))
    width = high - low if high != low else 0.001
    ramps = (min(1.0, max(0.0, (j - low) / width)) for j in range(head_dim // 2))
    return tuple(1 / ((1 - ramp) + ramp / factor) for ramp in ramps)


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
