"""How models are stretched beyond the positions they began with: numbers by which the frequencies of RoPE are divided.

Frequency j of a head, theta^(-2j / head_dim), is divided by number j of what these functions return. Each takes plain
numbers as a file has them, and raises ValueError, naming the number, where they make no sense.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LARGEST_FACTOR = 1e6  # of stretching; a model's is 2 to 64
LARGEST_LENGTH = 1 << 24


def linear_factors(head_dim: int, factor: float) -> tuple[float, ...]:
    """Position interpolation (Chen et al. 2023): every frequency alike."""
    check("factor", factor, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return (float(factor),) * (head_dim // 2)


def llama3_factors(
    head_dim: int, theta: float, factor: float, low_freq_factor: float, high_freq_factor: float, original_length: float
) -> tuple[float, ...]:
    """Llama 3.1's: waves longer than original_length / low_freq_factor are stretched, those shorter than
    original_length / high_freq_factor kept, those between something between."""
    check("factor", factor, 1, LARGEST_FACTOR)
    check("low_freq_factor", low_freq_factor, 1e-3, LARGEST_FACTOR)
    check("high_freq_factor", high_freq_factor, 1e-3, LARGEST_FACTOR)
    check("original_max_position_embeddings", original_length, 1, LARGEST_LENGTH)
    if high_freq_factor <= low_freq_factor:
        raise ValueError(f"high_freq_factor is {high_freq_factor:g}, must be above low_freq_factor {low_freq_factor:g}")
    turns = original_length * frequencies(head_dim, theta) / (2 * math.pi)  # over the original length
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return blend(kept, factor)


def yarn_factors(
    head_dim: int,
    theta: float,
    factor: float,
    original_length: float,
    beta_fast: float = 32,
    beta_slow: float = 1,
    truncate: bool = True,
) -> tuple[float, ...]:
    """YaRN (Peng et al. 2023): frequencies that turn more than beta_fast times over the original length are kept,
    those that turn less than beta_slow times stretched, those between by a ramp over their index j.

    truncate: the ramp begins and ends at whole indices.
    """
    check("factor", factor, 1, LARGEST_FACTOR)
    check("original_max_position_embeddings", original_length, 1, LARGEST_LENGTH)
    check("beta_fast", beta_fast, 1e-3, LARGEST_FACTOR)
    check("beta_slow", beta_slow, 1e-3, LARGEST_FACTOR)
    check("rope_theta", theta, 1.001, 1e30)

    def index_that_turns(times: float) -> float:
        return head_dim * math.log(original_length / (2 * math.pi * times)) / (2 * math.log(theta))

    first, last = index_that_turns(beta_fast), index_that_turns(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001  # a step where the two meet
    return blend(1 - np.clip((np.arange(head_dim // 2) - first) / width, 0, 1), factor)


def yarn_attention_factor(factor: float, mscale: float = 1, mscale_all_dim: float = 0) -> float:
    """What YaRN multiplies cos and sin with, where a file does not say: the square root of its attention temperature.

    mscale, mscale_all_dim: as DeepSeek's files have them; without the second, the first does not count.
    """
    check("factor", factor, 1, LARGEST_FACTOR)
    if not (mscale and mscale_all_dim):
        return 0.1 * math.log(factor) + 1
    check("mscale", mscale, 1e-3, 1e3)
    check("mscale_all_dim", mscale_all_dim, 1e-3, 1e3)
    return (0.1 * mscale * math.log(factor) + 1) / (0.1 * mscale_all_dim * math.log(factor) + 1)


def frequencies(head_dim: int, theta: float) -> NDArray[np.float64]:
    """Angle per position of each pair of elements, unstretched."""
    check("rope_theta", theta, 1e-30, 1e30)
    return np.asarray(float(theta) ** (-np.arange(0, head_dim, 2) / head_dim))


def blend(kept: NDArray[np.float64], factor: float) -> tuple[float, ...]:
    """Frequencies as they are where ``kept`` is 1, divided by ``factor`` where it is 0, a mean of both between."""
    return tuple(float(number) for number in 1 / (kept + (1 - kept) / factor))


def check(name: str, value: object, smallest: float, largest: float) -> None:
    if type(value) not in (int, float) or not smallest <= value <= largest:  # type: ignore[operator]  # false for NaN
        raise ValueError(f"{name} is {str(value)[:40]}, must be a number from {smallest:g} to {largest:g}")
