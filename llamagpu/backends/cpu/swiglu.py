"""Twin of kernels/swiglu.cu."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def swiglu(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """silu(gate) * up elementwise, silu(x) = x / (1 + exp(-x)). Both [n, hidden_dim]."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        out: NDArray[np.float32] = gate / (1 + np.exp(-gate)) * up
    return out
