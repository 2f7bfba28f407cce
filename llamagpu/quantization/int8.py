"""An 8-bit matrix with one scale per group of consecutive elements (llama2.c's Q8_0)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Int8Matrix:
    """w[o, i] = q[o, i] * scales[(o * in_features + i) // group_size]

    q: int8 [out_features, in_features]. scales: float32 [out_features * in_features / group_size].
    Groups run over the flattened rows: where group_size does not divide in_features, one group holds the end of a
    row and the start of the next. stories260K has such a matrix; reading scales row by row gets it wrong.
    """

    q: NDArray[np.int8]
    scales: NDArray[np.float32]
    group_size: int

    def __post_init__(self) -> None:
        if self.q.ndim != 2 or self.group_size < 1 or self.q.size != self.scales.size * self.group_size:
            raise ValueError(f"{self.scales.size} scales of group {self.group_size} do not cover q of {self.q.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scales.nbytes

    def dequantize(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start to stop as float32 [stop - start, in_features]."""
        in_features = self.q.shape[1]
        rows = self.q[start:stop]
        first, last = start * in_features, start * in_features + rows.size
        values = rows.astype(np.float32)
        if first % self.group_size == 0 and last % self.group_size == 0:
            scales = self.scales[first // self.group_size : last // self.group_size]
            values.reshape(-1, self.group_size)[...] *= scales[:, None]
        else:
            first_group = first // self.group_size
            scales = np.repeat(self.scales[first_group : -(-last // self.group_size)], self.group_size)
            offset = first - first_group * self.group_size
            values.reshape(-1)[...] *= scales[offset : offset + rows.size]
        return values
