"""Twin of kernels/swiglu.cu."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def swiglu(
    gate: NDArray[np.float32], up: NDArray[np.float32], biases: Sequence[NDArray[np.float32]] | None = None
) -> NDArray[np.float32]:
    """silu(gate) * up elementwise, silu(x) = x / (1 + exp(-x)). Both [n, hidden_dim].

    biases: of gate and of up, [hidden_dim] each, added first.
    """
    if biases is not None:
        gate, up = gate + biases[0], up + biases[1]
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        out: NDArray[np.float32] = gate / (1 + np.exp(-gate)) * up
    return out
