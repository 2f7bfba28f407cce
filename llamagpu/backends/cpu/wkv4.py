"""Twin of kernels/wkv4.cu: the time mix of RWKV-4, a weighted mean of values whose weights decay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def wkv4(
    r: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    decay: NDArray[np.float32],
    bonus: NDArray[np.float32],
    state: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """y_t = r_t * sum_s(e_ts * v_s) / sum_s(e_ts), e_ts = exp(k_s + (t - 1 - s) * decay), e_tt = exp(k_t + bonus).

    Both sums are kept relative to the largest exponent so far, so no exp overflows.
    r, k, v: [n, dim], r a sigmoid already; decay, bonus: [dim], decay < 0; state [3, dim]: the sums of e * v and of e,
    and the exponent that they are relative to. Result: y [n, dim] and the new state.
    """
    y = np.empty_like(v)
    sum_v, sum_1, largest = state.copy()
    for t in range(len(v)):
        own = bonus + k[t]
        most = np.maximum(largest, own)
        e_before, e_own = np.exp(largest - most), np.exp(own - most)
        y[t] = r[t] * (e_before * sum_v + e_own * v[t]) / (e_before * sum_1 + e_own)
        decayed = largest + decay
        largest = np.maximum(decayed, k[t])
        e_before, e_own = np.exp(decayed - largest), np.exp(k[t] - largest)
        sum_v = e_before * sum_v + e_own * v[t]
        sum_1 = e_before * sum_1 + e_own
    return y, np.stack([sum_v, sum_1, largest])
