"""Twin of kernels/split_halves.cu."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Halves = NDArray[np.float16]


def split_halves(x: NDArray[np.float32]) -> tuple[Halves, Halves, NDArray[np.float32]]:
    """high, low float16 [n, dim] and inverse_scales float32 [n], with (high + low) * inverse_scales = x.

    Each row is scaled by the power of two that brings its largest element to 2^14 ... 2^15, so that no float16
    overflows and the two halves together hold about 22 bits. x: [n, dim].
    """
    largest = np.abs(x).max(axis=1)
    e = (largest.view(np.uint32) >> 23).astype(np.int32) - 127
    exponent = np.where(largest == 0, 0, np.minimum(14 - e, 126))
    scaled = x * np.ldexp(np.float32(1), exponent)[:, None]
    high = scaled.astype(np.float16)
    low = (scaled - high.astype(np.float32)).astype(np.float16)
    return high, low, np.ldexp(np.float32(1), -exponent)
