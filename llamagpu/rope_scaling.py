"""How RoPE is stretched beyond the positions that a model began with: numbers that divide its frequencies."""

from __future__ import annotations

import math


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
