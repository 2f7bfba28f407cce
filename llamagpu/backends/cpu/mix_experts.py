"""Twin of kernels/mix_experts.cu: what the experts of a layer say, weighed by its gate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mix_experts(outputs: NDArray[np.float32], n_active: int, n_experts: int) -> NDArray[np.float32]:
    """sum over a < n_active of p[a] * expert a's output, p the softmax of all n_experts gates: it is not made to sum up
    to 1 over those that are active, and none is chosen over another.

    outputs: [n, n_active * width + n_experts], the experts side by side, then the gates; result: [n, width].
    """
    n = len(outputs)
    gates, experts = outputs[:, -n_experts:], outputs[:, :-n_experts].reshape(n, n_active, -1)
    weights = np.exp(gates - gates.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: NDArray[np.float32] = np.einsum("na,naw->nw", weights[:, :n_active], experts)
    return mixed
