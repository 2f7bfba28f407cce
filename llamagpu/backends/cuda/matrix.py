"""A weight on the device: rows padded to whole 16-byte vectors, its type told by a name of kernels/weights.cuh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.checkpoint import Tensor
from llamagpu.quantization import Int8Matrix

ROW_PADDING = 16  # elements; kernels/common.cuh


def padded(n: int) -> int:
    """Width of a row of n elements in device memory."""
    return -(-n // ROW_PADDING) * ROW_PADDING


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix [out_features, in_features] (or a vector, as one row) as kernels read it.

    kind: "F32", "F16", "Q8" or "Q8Flat", the struct of kernels/weights.cuh. data: [out_features, padded(in_features)].
    scales: float32, null but for Q8 and Q8Flat.
    """

    kind: str
    data: DeviceArray
    scales: DeviceArray | None
    group_size: int
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes) + (int(self.scales.nbytes) if self.scales is not None else 0)


def upload_matrix(device: Device, tensor: Tensor) -> DeviceMatrix:
    """Put a stored matrix on the device, in the type it is stored in."""
    out_features, in_features = tensor.shape
    if not isinstance(tensor, Int8Matrix):
        kind = {"float32": "F32", "float16": "F16"}[tensor.dtype.name]
        return DeviceMatrix(kind, device.upload(pad_rows(tensor)), None, 0, out_features, in_features)
    by_row = tensor.group_size % ROW_PADDING == 0 and in_features % tensor.group_size == 0
    return DeviceMatrix(
        "Q8" if by_row else "Q8Flat",
        device.upload(pad_rows(tensor.q)),
        device.upload(np.ascontiguousarray(tensor.scales)),
        tensor.group_size,
        out_features,
        in_features,
    )


def upload_vector(device: Device, tensor: NDArray[np.float32] | NDArray[np.float16]) -> DeviceArray:
    """A norm's weight: float32, padded."""
    return device.upload(pad_rows(tensor.astype(np.float32)[None])[0])


def pad_rows(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same rows, zeros after each; a mapped file's own memory where no padding is needed."""
    n_rows, width = rows.shape
    if width == padded(width):
        return np.ascontiguousarray(rows)
    out = np.zeros((n_rows, padded(width)), rows.dtype)
    out[:, :width] = rows
    return out
