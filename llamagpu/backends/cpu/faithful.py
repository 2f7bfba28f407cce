"""The CPU backend with what other programs do otherwise: mostly, activations rounded before each product.

Programs that multiply whole numbers add up their products group by group and then apply both scales (llama2.c's runq,
simple-llama). Here the rounded activations are float32 again and go through the ordinary products: the same sums, but
for float32's own rounding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu import CPUBackend, CPUSampler, Floats, Weight
from llamagpu.checkpoint import Quirks
from llamagpu.sampling import SamplingParams


class FaithfulCPUBackend(CPUBackend):
    """The CPU with the quirks of a program: of products, and of the sampler."""

    def __init__(self, quirks: Quirks) -> None:
        self.quirks = quirks

    def linear(self, x: Floats, w: Weight) -> Floats:
        if self.quirks.activation_bits:
            x = round_activations(x, self.quirks.activation_bits, self.quirks.activation_group)
        return super().linear(x, w)

    def sampler(self, params: SamplingParams, vocab_size: int) -> CPUSampler:
        return FirstIsZero(params, vocab_size) if self.quirks.no_penalty else super().sampler(params, vocab_size)


class FirstIsZero(CPUSampler):
    """rllama's: it looks for the largest logit in a row that it takes for a column, and so at token 0 alone.

    The penalty reaches no other token; then the largest logit is taken from all, which is token 0's from itself.
    """

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        super().__init__(replace(params, repetition_penalty=1.0), vocab_size)

    def sample(self, logits: Floats) -> int:
        logits = logits.copy()
        with np.errstate(invalid="ignore"):  # what is no number stays so, and is said
            logits[0] -= logits[0]
        return super().sample(logits)


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
