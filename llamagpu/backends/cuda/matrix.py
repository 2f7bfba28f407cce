"""A weight on the device, in the layout of its kernel, its type told by a name of kernels/weights.cuh or tiles.cuh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cuda.device import Device, DeviceArray, Memory
from llamagpu.checkpoint import Tensor
from llamagpu.config import ModelConfig
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix, RandomMatrix
from llamagpu.quantization.affine import SMALLEST_GROUP, TILE_COLUMNS, kernel_group_size, take_rows

ROW_PADDING = 16  # elements; kernels/common.cuh
WHOLE_ROW = 31  # group_shift of it: no column has a bit there

# What is uploaded: float16 or float32 rows, or a quantised matrix
Stored = NDArray[Any] | AffineQuant | RandomMatrix


def padded(n: int) -> int:
    """Width of a row of n elements in device memory."""
    return -(-n // ROW_PADDING) * ROW_PADDING


def tiled(n: int) -> int:
    """Width of a row of n elements for the kernels of quantised weights."""
    return -(-n // TILE_COLUMNS) * TILE_COLUMNS


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix [out_features, in_features] as kernels read it.

    kind: the struct of kernels/weights.cuh ("F32", "F16"; data [padded rows, padded(in_features)]) or of tiles.cuh
    ("Q4", ...; data and params as AffineQuant has them, column k of group k >> group_shift). With act-order perm is
    int32 [in_features], column j being of input perm[j], and place its inverse: where number k of a vector must stand.
    """

    kind: str
    data: DeviceArray
    params: DeviceArray | None
    group_shift: int
    out_features: int
    in_features: int
    place: DeviceArray | None = None
    perm: DeviceArray | None = None

    @property
    def tiled(self) -> bool:
        return self.kind.startswith("Q")

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes) + (int(self.params.nbytes) if self.params is not None else 0)


@dataclass(frozen=True)
class Part:
    """A matrix whose output o is output first + step * o of the whole."""

    matrix: DeviceMatrix
    first: int
    step: int


@dataclass(frozen=True)
class Stack:
    """Matrices that read the same vector. One part where they are of one kind: then the fused kernels take it.

    bias: float32 [out_features], in the order of the outputs. norms: float32 [head_dim], of the heads of q and k.
    """

    parts: tuple[Part, ...]
    out_features: int
    bias: DeviceArray | None = None
    norms: tuple[DeviceArray, DeviceArray] | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.matrix.nbytes for part in self.parts)


def stored(tensor: Tensor) -> Stored:
    """The tensor in a form that kernels have; what they do not have (groups under 16) becomes float32."""
    if isinstance(tensor, Deferred):
        tensor = tensor.materialize()
    if not isinstance(tensor, Int8Matrix):
        return tensor
    # groups may run over the ends of rows; cut at the largest size that divides both, they do not
    group_size = int(np.gcd(tensor.group_size, tensor.shape[1]))
    if not kernel_group_size(group_size, tensor.shape[1]):
        return tensor.dequantize()
    scales = np.repeat(tensor.scales, tensor.group_size // group_size).reshape(tensor.shape[0], -1)
    q = (tensor.q.view(np.uint8)) ^ np.uint8(128)  # int8 + 128
    return AffineQuant.pack(q, scales, np.full(scales.shape, 128), 8, group_size)


def upload_matrix(device: Device, tensor: Tensor) -> DeviceMatrix:
    """Put a matrix on the device, in the type it is stored in."""
    return upload(device, stored(tensor))


def upload(device: Memory, matrix: Stored) -> DeviceMatrix:
    out_features, in_features = matrix.shape
    if isinstance(matrix, np.ndarray):
        kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[matrix.dtype.name]
        if kind == "BF16":
            matrix = matrix.view(np.uint16)  # CuPy knows no bfloat16
        rows = matrix if out_features % 2 == 0 else np.concatenate([matrix, np.zeros_like(matrix[:1])])
        return DeviceMatrix(kind, device.upload(pad_rows(rows)), None, 0, out_features, in_features)
    if isinstance(matrix, RandomMatrix):
        return upload_random(device, matrix)
    wide = matrix.params.dtype == np.float32
    place = perm = None
    if matrix.perm is not None:
        place, perm = device.upload(np.argsort(matrix.perm).astype(np.int32)), device.upload(matrix.perm)
    return DeviceMatrix(
        tile_kind(matrix.bits, wide, matrix.group_size, in_features, matrix.has_offsets),
        device.upload(np.ascontiguousarray(matrix.q)),
        device.upload(np.ascontiguousarray(matrix.params)),
        group_shift(matrix.group_size, in_features),
        out_features,
        in_features,
        place,
        perm,
    )


def upload_random(device: Memory, matrix: RandomMatrix) -> DeviceMatrix:
    """Made on the device: one block of random bytes, copied again and again."""
    out_features, in_features = matrix.shape
    if matrix.bits == 16:
        n_bytes = 2 * (out_features + out_features % 2) * padded(in_features)
        return DeviceMatrix("F16", device.repeat(matrix.block(), n_bytes), None, 0, out_features, in_features)
    params = matrix.params()
    n_bytes = matrix.nbytes - params.nbytes
    group_size = min(matrix.group_size, in_features)
    return DeviceMatrix(
        tile_kind(matrix.bits, False, group_size, in_features),
        device.repeat(matrix.block(), n_bytes),
        device.upload(params),
        group_shift(group_size, in_features),
        out_features,
        in_features,
    )


def tile_kind(bits: int, wide: bool, group_size: int, in_features: int, has_offsets: bool = False) -> str:
    """The struct of kernels/tiles.cuh; wide: scales are float32."""
    if has_offsets:
        return f"Q{bits}Offset" + ("Shortest" if bits == 4 and group_size <= SMALLEST_GROUP < in_features else "")
    if wide:
        return f"Q{bits}F"
    whole = group_size >= TILE_COLUMNS or group_size == in_features
    return f"Q{bits}" + ("" if whole else "Short" if group_size > SMALLEST_GROUP else "Shortest")


def group_shift(group_size: int, in_features: int) -> int:
    return WHOLE_ROW if group_size == in_features else group_size.bit_length() - 1


def join(matrices: Sequence[Stored], order: NDArray[np.integer[Any]]) -> Stored | None:
    """Rows of all in the given order as one matrix; None where they are not of one kind."""
    first = matrices[0]
    if isinstance(first, RandomMatrix):
        return RandomMatrix(len(order), first.in_features, first.bits, first.group_size, first.seed)
    arrays = [matrix for matrix in matrices if isinstance(matrix, np.ndarray)]
    if len(arrays) == len(matrices) and len({array.dtype for array in arrays}) == 1:
        rows: NDArray[Any] = np.concatenate(arrays)[order]
        return rows
    quantized = [matrix for matrix in matrices if isinstance(matrix, AffineQuant)]
    if len(quantized) < len(matrices):
        return None
    kinds = {(matrix.bits, matrix.group_size, matrix.params.dtype, matrix.has_offsets) for matrix in quantized}
    perms = {None if matrix.perm is None else matrix.perm.tobytes() for matrix in quantized}
    return take_rows(quantized, order) if len(kinds) == len(perms) == 1 else None


def pair_order(config: ModelConfig) -> NDArray[np.int64]:
    """Rows of wq, wk, wv one after the other, in the order of kernels/rope.cuh: what turns together is side by side."""
    half = config.head_dim // 2
    turned = plain = np.arange(config.head_dim)
    if config.rope_layout == "half_split":
        turned = np.stack([plain[:half], plain[half:]], axis=1).reshape(-1)
    heads = [turned] * (config.n_heads + config.n_kv_heads) + [plain] * config.n_kv_heads
    return np.concatenate([head + i * config.head_dim for i, head in enumerate(heads)])


def upload_qkv(
    device: Device,
    tensors: Sequence[Tensor],
    config: ModelConfig,
    biases: Sequence[NDArray[Any]] | None = None,
    norms: Sequence[NDArray[Any]] | None = None,
) -> Stack:
    """wq, wk, wv and their biases with their rows in ``pair_order``; the norms of the heads of q and k."""
    matrices, order = [stored(tensor) for tensor in tensors], pair_order(config)
    bias = None if biases is None else device.upload(np.concatenate(biases).astype(np.float32)[order])
    q_and_k = None if norms is None else (upload_vector(device, norms[0]), upload_vector(device, norms[1]))
    together = join(matrices, order)
    if together is not None:
        return Stack((Part(upload(device, together), 0, 1),), len(order), bias, q_and_k)
    parts, first = [], 0
    for matrix in matrices:
        width = matrix.shape[0]
        own = join([matrix], order[first : first + width] - first)
        assert own is not None
        parts.append(Part(upload(device, own), first, 1))
        first += width
    return Stack(tuple(parts), len(order), bias, q_and_k)


def upload_gate_up(device: Device, gate: Tensor, up: Tensor, biases: Sequence[NDArray[Any]] | None = None) -> Stack:
    """Rows of gate and up in turn, and their biases likewise."""
    hidden = gate.shape[0]
    bias = None if biases is None else device.upload(np.stack(biases, axis=1).astype(np.float32).reshape(-1))
    together = join([stored(gate), stored(up)], np.arange(2 * hidden).reshape(2, -1).T.reshape(-1))
    if together is not None:
        return Stack((Part(upload(device, together), 0, 1),), 2 * hidden, bias)
    parts = tuple(Part(upload_matrix(device, w), first, 2) for first, w in enumerate((gate, up)))
    return Stack(parts, 2 * hidden, bias)


def upload_vector(device: Device, tensor: NDArray[np.float32] | NDArray[np.float16]) -> DeviceArray:
    """A norm's weight: float32, padded."""
    return device.upload(pad_rows(tensor.astype(np.float32)[None])[0])


def pad_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """The same rows, zeros after each; a mapped file's own memory where no padding is needed."""
    n_rows, width = rows.shape
    if width == padded(width):
        return np.ascontiguousarray(rows)
    out = np.zeros((n_rows, padded(width)), rows.dtype)
    out[:, :width] = rows
    return out
