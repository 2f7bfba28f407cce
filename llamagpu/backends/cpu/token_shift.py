"""Twin of kernels/token_shift.cu: what recurrent models read, mixed of a token and the one before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

UNIT_RMS_EPS = np.float32(1e-8)

Norm = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def norm_shift_mix(
    x: NDArray[np.float32], norm: Norm, previous: NDArray[np.float32], mixes: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """mixed[m, t] = h[t] + (h[t - 1] - h[t]) * mixes[m] with h = norm(x), and h of the last token.

    x: [n, dim]; norm: of rows [n, dim]; previous [dim]: h before the first token, as the call before returned it;
    mixes: [M, dim], or one for each token, [M, n, dim]. Returns mixed [M, n, dim] and last [dim].
    """
    h = norm(x)
    step = np.concatenate([previous[None], h[:-1]]) - h
    mixed: NDArray[np.float32] = h + step * (mixes[:, None] if mixes.ndim == 2 else mixes)
    return mixed, h[-1].copy()


def unit_rms(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """MicroRWKV's norm, which has no weights: x / (sqrt(mean(x^2)) + 1e-8) over the last axis."""
    root = np.sqrt(np.einsum("...d,...d->...", x, x) / np.float32(x.shape[-1]))
    out: NDArray[np.float32] = x / (root + UNIT_RMS_EPS)[..., None]
    return out
