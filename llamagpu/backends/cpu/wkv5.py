"""Twin of kernels/wkv5.cu: the time mix of RWKV-5 and RWKV-6, a matrix per head that decays and learns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.head_norm import head_norm


def wkv5(
    r: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    g: NDArray[np.float32],
    decay: NDArray[np.float32],
    bonus: NDArray[np.float32],
    group_norm_weight: NDArray[np.float32],
    group_norm_bias: NDArray[np.float32],
    eps: float,
    state: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each head and token: y = (S + v (bonus * k)^T) r, then S = S diag(decay) + v k^T; head_norm(y) * g.

    r, k, v, g: [n, dim], g with its SiLU already; decay: the factor itself, in (0, 1), [dim] (RWKV-5) or [n, dim]
    (RWKV-6); bonus, group_norm_weight, group_norm_bias: [dim]; state S: [n_heads, head_dim (value), head_dim (key)].
    Result: y [n, dim] and the new state.
    """
    n, dim = v.shape
    shape = (n, *state.shape[:2])
    r, k, values = r.reshape(shape), k.reshape(shape), v.reshape(shape)
    decays = np.broadcast_to(decay, (n, dim)).reshape(shape)
    own = np.einsum("nhk,nhk,hk->nh", r, k, bonus.reshape(shape[1:]))  # what a token adds to its own y
    s, y = state.copy(), own[..., None] * values
    for t in range(n):
        y[t] += (s @ r[t][..., None])[..., 0]
        s *= decays[t][:, None, :]
        s += np.einsum("hv,hk->hvk", values[t], k[t])
    return head_norm(y, group_norm_weight, group_norm_bias, eps) * g, s
