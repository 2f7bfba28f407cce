"""Keys and values of 8 bits; twin of what kernels/rope.cu rounds and kernels/attention.cu widens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = ("keys", "values")


def quantize_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """x [..., head_dim] as whole numbers -127 ... 127 and a scale [...]: the row's largest / 127, ties to even.

    A row that is not of numbers has a scale that is none, so that damage is not hidden.
    """
    scales = np.abs(x).max(axis=-1) / np.float32(127)
    with np.errstate(all="ignore"):
        rounded = np.rint(x / scales[..., None])
    return np.where(np.isfinite(rounded), rounded, 0).astype(np.int8), scales


def widen_rows(q: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """q * scale, float32."""
    return q.astype(np.float32) * scales[..., None]


def in_type(arrays: Mapping[str, NDArray[Any]], scaled: bool) -> dict[str, NDArray[Any]]:
    """keys, values and perhaps scales as a cache with or without scales has them."""
    if scaled == ("scales" in arrays):
        return dict(arrays)
    if scaled:
        (keys, of_keys), (values, of_values) = (quantize_rows(arrays[name].astype(np.float32)) for name in PARTS)
        return {"keys": keys, "values": values, "scales": np.stack([of_keys, of_values])}
    return {name: widen_rows(arrays[name], arrays["scales"][i]) for i, name in enumerate(PARTS)}
