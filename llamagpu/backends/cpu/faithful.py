"""The CPU backend with activations rounded before each product, as programs do that multiply whole numbers.

They add up products of whole numbers group by group and then apply both scales (llama2.c's runq, simple-llama). Here
the rounded activations are float32 again and go through the ordinary products: the same sums, but for float32's own
rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu import CPUBackend, Floats, Weight


class RoundingCPUBackend(CPUBackend):
    """bits: 4 or 8. group_size: neighbours of a vector that share a scale."""

    def __init__(self, bits: int, group_size: int) -> None:
        self.bits, self.group_size = bits, group_size

    def linear(self, x: Floats, w: Weight) -> Floats:
        return super().linear(round_activations(x, self.bits, self.group_size), w)


def round_activations(x: Floats, bits: int, group_size: int) -> Floats:
    """x [n, features] as whole numbers times a scale per group: the group's largest / 127 (8 bits) or / 7 (4 bits).

    A last group that is not full has a scale of its own. (runq leaves it as it is, and reads scales of w2 in the wrong
    places: where a width is no multiple of the group size its results are meaningless, and are not reproduced.)
    """
    n, features = x.shape
    group_size = min(group_size, features)
    groups = np.zeros((n, -(-features // group_size), group_size), np.float32)
    groups.reshape(n, -1)[:, :features] = x
    scales = np.abs(groups).max(axis=2, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    numbers = round_half_away(np.divide(groups, scales, out=np.zeros_like(groups), where=scales != 0))
    rounded: Floats = (numbers * scales).reshape(n, -1)[:, :features]
    return rounded


def round_half_away(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """To whole numbers, halves away from zero as C's round() has it (NumPy's has them to the even neighbour)."""
    whole = np.trunc(x)
    return np.asarray(whole + np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0), np.float32)
