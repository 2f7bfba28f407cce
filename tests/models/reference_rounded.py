"""Matrices of whole numbers that round what they are multiplied with, as runq.c and simple-llama do: integer sums.

They stand in for the arrays of ``reference_logits``. Shares no code with llamagpu.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RoundedMatrix:
    """q: whole numbers [out, in] or [layers, out, in]; scales: [..., groups of the flattened matrix].

    A product rounds its vector in groups of the same size, the last perhaps smaller. closest: distance of the nearest
    number that was rounded to a half, where float32 and float64 might part.
    """

    closest = 0.5

    def __init__(self, q: NDArray[Any], scales: NDArray[Any], group_size: int, bits: int) -> None:
        self.q, self.scales, self.group_size, self.bits = q.astype(np.int64), scales, group_size, bits

    def astype(self, dtype: object) -> RoundedMatrix:
        return self

    def __getitem__(self, i: int) -> Any:
        """A layer, or a row (of the embedding) as numbers."""
        if self.q.ndim == 3:
            return RoundedMatrix(self.q[i], self.scales[i], self.group_size, self.bits)
        n = self.q.shape[1]
        return np.array([float(q) * float(self.scales[(i * n + j) // self.group_size])
                         for j, q in enumerate(self.q[i])])  # fmt: skip

    def __matmul__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        size, n = self.group_size, len(x)
        numbers, x_scales = self.round(x)
        y = np.zeros(len(self.q))
        for o, row in enumerate(self.q):
            at = 0
            while at < n:  # up to where one of the two scales changes
                end = min(n, (at // size + 1) * size, at + size - (o * n + at) % size)
                total = int(row[at:end] @ numbers[at:end])
                y[o] += total * float(self.scales[(o * n + at) // size]) * x_scales[at // size]
                at = end
        return y

    def round(self, x: NDArray[np.float64]) -> tuple[NDArray[np.int64], list[float]]:
        largest = 127 if self.bits == 8 else 7
        numbers, scales = np.zeros(len(x), np.int64), []
        for start in range(0, len(x), self.group_size):
            group = x[start : start + self.group_size]
            scale = float(np.abs(group).max()) / largest
            scales.append(scale)
            for i, value in enumerate(group):
                exact = abs(value) / scale if scale else 0.0
                RoundedMatrix.closest = min(RoundedMatrix.closest, abs(exact - math.floor(exact) - 0.5))
                numbers[start + i] = math.copysign(math.floor(exact + 0.5), value)
        return numbers, scales
