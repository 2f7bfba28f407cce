"""The CPU backend with what other programs do otherwise: mostly, activations rounded before each product.

Programs that multiply whole numbers add up their products group by group and then apply both scales (llama2.c's runq,
simple-llama). Here the rounded activations are float32 again and go through the ordinary products: the same sums, but
for float32's own rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu import CPUBackend, CPUSampler, Floats, Weight
from llamagpu.backends.cpu.sample import penalize
from llamagpu.checkpoint import Quirks
from llamagpu.sampling import SamplingParams


class FaithfulCPUBackend(CPUBackend):
    """The CPU with the quirks of a program: of products, and of the repetition penalty."""

    def __init__(self, quirks: Quirks) -> None:
        self.quirks = quirks

    def linear(self, x: Floats, w: Weight) -> Floats:
        if self.quirks.activation_bits:
            x = round_activations(x, self.quirks.activation_bits, self.quirks.activation_group)
        return super().linear(x, w)

    def sampler(self, params: SamplingParams, vocab_size: int) -> CPUSampler:
        return CPUSampler(params, vocab_size, multiply_penalty if self.quirks.multiplies_penalty else penalize)


def multiply_penalty(logits: Floats, counts: NDArray[np.int32], penalty: float) -> Floats:
    """rllama's repetition penalty, as its author means it: logits times penalty^count, so that below 1 discourages.

    A negative logit is divided: times a number below 1 it would be larger. (rllama itself multiplies; and by a mistake
    it does so to token 0 alone, which is not repeated here.)
    """
    factor = np.clip(np.power(float(penalty), counts, dtype=np.float64), 1e-30, 1e30).astype(np.float32)
    with np.errstate(over="ignore"):  # to -inf, where a token came a thousand times: it is not said again
        return np.asarray(np.where(logits > 0, logits * factor, logits / factor), np.float32)


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
