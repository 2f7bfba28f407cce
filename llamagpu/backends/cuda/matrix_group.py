"""Several matrices that one launch multiplies (kernels/linear_group.cu): one memory for those of a kind, and a table.

Recurrent models have many small products that wait for nothing but the same vectors: three to eight matrices a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.launches import shape_of
from llamagpu.backends.cuda.matrix import DeviceMatrix, padded, stored, tiled, upload
from llamagpu.backends.recurrent import Activation, Segment
from llamagpu.errors import UsageError
from llamagpu.option_names import option

FIELDS = 12  # int32 of a RowBlock of kernels/linear_group.cu
UNIT = 16  # bytes, in which it counts weights


@dataclass(frozen=True)
class GroupSegment:
    """A segment on the device, its matrix a view (of bytes) of the group's memory.

    bias: float32 [padded(out_features)]. out_prefix: numbers of one token's outputs before its own: of n tokens they
    begin at n * out_prefix.
    """

    matrix: DeviceMatrix
    source: int
    activation: Activation
    bias: DeviceArray | None
    out_prefix: int


@dataclass(frozen=True)
class GroupLaunch:
    """The segments of one kind. table: int32 [blocks, FIELDS]; params: null for floats."""

    kind: str
    data: DeviceArray
    params: DeviceArray | None
    table: DeviceArray

    @property
    def tiled(self) -> bool:
        return self.kind.startswith("Q")


@dataclass(frozen=True)
class MatrixGroup:
    """segments: in the order they were given. launches: one for each kind. bias: of all, null where none has one.

    source_widths: of the vectors of the bundle that is read. out_width: numbers of one token's outputs, padded.
    """

    launches: tuple[GroupLaunch, ...]
    segments: tuple[GroupSegment, ...]
    bias: DeviceArray | None
    source_widths: tuple[int, ...]
    out_width: int

    @property
    def nbytes(self) -> int:
        return sum(segment.matrix.nbytes for segment in self.segments)


class HostMemory:
    """Where a matrix is laid out for the kernels before it is on the device."""

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def repeat(self, block: NDArray[np.uint8], n_bytes: int) -> NDArray[np.uint8]:
        return np.resize(block, n_bytes)


def upload_group(device: Device, segments: Sequence[Segment], source_widths: Sequence[int]) -> MatrixGroup:
    """Put matrices on the device that read vectors of one bundle, which is as wide as source_widths say.

    Raises UsageError for quantised matrices with act-order: the vectors have one order for all of their readers.
    """
    host = [upload(HostMemory(), stored(segment.tensor)) for segment in segments]
    for segment, matrix in zip(segments, host, strict=True):
        assert matrix.in_features == source_widths[segment.source], "a segment reads vectors of another width"
        if matrix.perm is not None:
            cpu = option("device", "cpu")
            raise UsageError(f"weights with act-order have no place in a recurrent model on a GPU: {cpu} runs it")
    out_prefixes = [0, *accumulate(padded(matrix.out_features) for matrix in host)]
    bias = None
    if any(segment.bias is not None for segment in segments):
        biases = [bias_of(matrix, segment) for matrix, segment in zip(host, segments, strict=True)]
        bias = device.upload(np.concatenate(biases))
    launches, on_device = [], {}
    for kind in dict.fromkeys(matrix.kind for matrix in host):
        members = [i for i, matrix in enumerate(host) if matrix.kind == kind]
        table, weights, params = [], 0, 0
        for i in members:
            x_prefix = sum(width_of_source(host[i], width) for width in source_widths[: segments[i].source])
            table.append(table_of(host[i], segments[i], weights, params, x_prefix, out_prefixes[i]))
            weights += host[i].data.nbytes // UNIT
            params += n_params(host[i])
        data, data_views = upload_all(device, [host[i].data for i in members])
        all_params, params_views = upload_all(device, [host[i].params for i in members])
        for i, data_view, params_view in zip(members, data_views, params_views, strict=True):
            on_device[i] = replace(host[i], data=data_view, params=params_view)
        launches.append(GroupLaunch(kind, data, all_params, device.upload(np.concatenate(table))))
    of_segments = []
    for i, segment in enumerate(segments):
        own_bias = None if bias is None or segment.bias is None else bias[out_prefixes[i] : out_prefixes[i + 1]]
        of_segments.append(GroupSegment(on_device[i], segment.source, segment.activation, own_bias, out_prefixes[i]))
    return MatrixGroup(tuple(launches), tuple(of_segments), bias, tuple(source_widths), out_prefixes[-1])


def n_params(matrix: DeviceMatrix) -> int:
    """How many params, each a scale and a zero."""
    return 0 if matrix.params is None else int(matrix.params.size) // 2


def width_of_source(reader: DeviceMatrix, width: int) -> int:
    """Elements of one vector of a bundle, in the form that a matrix reads."""
    return 2 * tiled(width) if reader.tiled else padded(width)


def table_of(
    matrix: DeviceMatrix, segment: Segment, weights: int, params: int, x_prefix: int, out_prefix: int
) -> NDArray[np.int32]:
    """The rows of the table for the blocks of a segment. weights, params: where its own begin, as the table counts."""
    n_blocks = shape_of(matrix, 1)[1][0]
    table = np.zeros((n_blocks, FIELDS), np.int32)
    table[:, :5] = weights, params, matrix.group_shift, matrix.in_features, matrix.out_features
    table[:, 5] = np.arange(n_blocks)
    table[:, 6:10] = x_prefix, out_prefix, -1 if segment.bias is None else out_prefix, segment.activation
    return table


def bias_of(matrix: DeviceMatrix, segment: Segment) -> NDArray[np.float32]:
    """float32 [padded(out_features)]; zeros where there is none."""
    bias = np.zeros(padded(matrix.out_features), np.float32)
    if segment.bias is not None:
        bias[: matrix.out_features] = segment.bias
    return bias


def upload_all(
    device: Device, arrays: Sequence[DeviceArray | None]
) -> tuple[DeviceArray | None, Sequence[DeviceArray | None]]:
    """The bytes of all, one after the other, and each array's own part of them. Null where there are no arrays."""
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays if array is not None]
    if not flat:
        return None, [None] * len(arrays)
    together = device.upload(np.concatenate(flat))
    ends = list(accumulate(array.nbytes for array in flat))
    return together, [together[end - array.nbytes : end] for end, array in zip(ends, flat, strict=True)]
