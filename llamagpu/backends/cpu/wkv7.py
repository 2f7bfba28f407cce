"""Twin of kernels/wkv7.cu: the time mix of RWKV-7, a matrix per head that decays, forgets a key and learns another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.head_norm import head_norm

SMALLEST_NORM = np.float32(1e-12)  # of a key, before it is divided by it


def wkv7(
    r: NDArray[np.float32],
    w: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    a: NDArray[np.float32],
    g: NDArray[np.float32],
    v_mix: NDArray[np.float32] | None,
    v_first: NDArray[np.float32] | None,
    k_k: NDArray[np.float32],
    k_a: NDArray[np.float32],
    r_k: NDArray[np.float32],
    group_norm_weight: NDArray[np.float32],
    group_norm_bias: NDArray[np.float32],
    eps: float,
    state: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Of each head and token, with kk = k * k_k of length 1, k = k * (1 + (a - 1) * k_a), v mixed with v_first:

    S = S diag(w) - (S kk) (kk * a)^T + v k^T, y = S r; then (head_norm(y) + sum(r * k * r_k) * v) * g.

    r, w, k, v, a, g: [n, dim]; w: the decay itself, in (0, 1). v_mix, v_first: [n, dim], both None in the first layer,
    whose values are v_first of the others. k_k, k_a, r_k, group_norm_weight, group_norm_bias: [dim]; state S:
    [n_heads, head_dim (value), head_dim (key)]. Result: y [n, dim], the new state, and the values used [n, dim].
    """
    n, dim = v.shape
    shape = (n, *state.shape[:2])
    if v_mix is not None and v_first is not None:
        v = v + (v_first - v) * v_mix
    kk = (k * k_k).reshape(shape)
    kk /= np.maximum(np.sqrt(np.einsum("nhk,nhk->nh", kk, kk)), SMALLEST_NORM)[..., None]
    b = kk * a.reshape(shape)
    keys = (k * (1 + (a - 1) * k_a)).reshape(shape)
    r, w, values = r.reshape(shape), w.reshape(shape), v.reshape(shape)
    s, y = state.copy(), np.empty(shape, np.float32)
    # what is added to S is one product of two columns and two rows, half the time of two outer products
    columns, rows = np.stack([values, values], axis=3), np.stack([keys, b], axis=2)
    for t in range(n):
        np.negative((s @ kk[t][..., None])[..., 0], out=columns[t, ..., 1])  # what the state says of this key
        s *= w[t][:, None, :]
        s += columns[t] @ rows[t]
        y[t] = (s @ r[t][..., None])[..., 0]
    out = head_norm(y, group_norm_weight, group_norm_bias, eps).reshape(shape)
    out += np.einsum("nhk,nhk,hk->nh", r, keys, r_k.reshape(shape[1:]))[..., None] * values
    return out.reshape(n, dim) * g, s, v
