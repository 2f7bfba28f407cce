"""A quantised matrix as plain rows: what the unpacked tensors of GPTQ and AWQ say, before it is packed for kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization.affine import AffineQuant, kernel_group_size


@dataclass(frozen=True)
class GroupedNumbers:
    """w[o, perm[j]] = scales[o, g] * (q[o, j] - zeros[o, g]), g = j // group_size.

    q: whole numbers [out, in]. scales, zeros: [out, ceil(in / group_size)]. perm: None for order.
    """

    q: NDArray[np.uint8]
    scales: NDArray[Any]
    zeros: NDArray[Any]
    bits: int
    group_size: int
    perm: NDArray[np.int32] | None = None

    def pack(self) -> AffineQuant:
        """Exactly. Raises ValueError where sizes do not fit, and for groups that AffineQuant cannot hold."""
        return AffineQuant.pack(self.q, self.scales, self.zeros, self.bits, self.group_size, self.perm)

    def pack_or_widen(self) -> AffineQuant | NDArray[np.float32]:
        """As ``pack``, or as float32 where groups are too small for AffineQuant."""
        return self.pack() if kernel_group_size(self.group_size, self.q.shape[1]) else self.widen()

    def widen(self) -> NDArray[np.float32]:
        """The whole matrix as float32, its columns in the order of the inputs."""
        group = np.arange(self.q.shape[1]) // self.group_size
        values = self.q.astype(np.float32)
        values -= self.zeros.astype(np.float32)[:, group]
        values *= self.scales.astype(np.float32)[:, group]
        if self.perm is not None:
            values[:, self.perm] = values.copy()
        return values
