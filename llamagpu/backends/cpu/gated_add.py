"""Twin of kernels/gated_add.cu."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def gated_add(x: NDArray[np.float32], delta: NDArray[np.float32], gate: NDArray[np.float32] | None = None) -> None:
    """x += gate * delta in place; without a gate x += delta. All [n, width]."""
    x += delta if gate is None else gate * delta
