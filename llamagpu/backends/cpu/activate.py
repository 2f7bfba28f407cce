"""Twin of kernels/activate.cu: the functions that stand behind products of recurrent models, by their codes."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Activation(IntEnum):
    """The codes of kernels/activated.cuh. DECAY6 and DECAY7 make RWKV-6's and RWKV-7's decay of a state, in 0 ... 1."""

    NONE = 0
    TANH = 1
    SIGMOID = 2
    SILU = 3
    SQUARED_RELU = 4
    DECAY6 = 5
    DECAY7 = 6


def activate(
    x: NDArray[np.float32], activation: Activation, bias: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """activation(x + bias), elementwise. x: [n, width]; bias: [width]."""
    y = x if bias is None else x + bias
    if activation == Activation.TANH:
        return np.tanh(y)
    if activation == Activation.SIGMOID:
        return sigmoid(y)
    if activation == Activation.SILU:
        return y * sigmoid(y)
    if activation == Activation.SQUARED_RELU:
        return np.square(np.maximum(y, np.float32(0)))
    if activation == Activation.DECAY6:
        with np.errstate(over="ignore"):  # exp(y) = inf gives the right limit, 0
            y = np.exp(-np.exp(y))
    if activation == Activation.DECAY7:
        y = np.exp(np.float32(-np.exp(-0.5)) * sigmoid(y))
    return y


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # as above
        out: NDArray[np.float32] = np.float32(1) / (np.float32(1) + np.exp(-x))
    return out
