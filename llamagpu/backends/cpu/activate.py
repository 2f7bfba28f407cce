"""Twin of kernels/activate.cu: the functions that stand behind products of recurrent models, by their codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.recurrent import Activation


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
