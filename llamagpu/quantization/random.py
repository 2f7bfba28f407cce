"""A matrix of random weights that no file holds, made where it is needed: to measure speed, not to say anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_WEIGHTS = 1 << 19


@dataclass(frozen=True)
class RandomMatrix:
    """[out_features, in_features] of float16 (bits 16): one random block again and again, about 1 / sqrt(in_features).

    4 and 8 bits are yet to come.
    """

    out_features: int
    in_features: int
    bits: int = 4
    group_size: int = 128
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def nbytes(self) -> int:
        return self.out_features * self.in_features * self.bits // 8

    def materialize(self) -> NDArray[np.float16]:
        """The same matrix in host memory."""
        if self.bits != 16:
            raise NotImplementedError(f"random weights of {self.bits} bits")
        block = np.random.default_rng(self.seed).standard_normal(BLOCK_WEIGHTS, np.float32)
        values: NDArray[Any] = np.resize((block / np.float32(self.in_features**0.5)).astype(np.float16), self.shape)
        return values
