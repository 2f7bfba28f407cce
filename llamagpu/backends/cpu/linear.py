"""Twins of kernels/linear_*.cu: matrix products with weights [out_features, in_features]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.activate import activate
from llamagpu.backends.cpu.linear_affine import linear_affine
from llamagpu.backends.recurrent import Activation
from llamagpu.quantization import AffineQuant, Int8Matrix

Matrix = NDArray[np.float32] | Int8Matrix | AffineQuant
# Of a group of products: x, matrix, activation, bias
Product = tuple[NDArray[np.float32], Matrix, Activation, NDArray[np.float32] | None]

# Rows of an 8-bit matrix are widened to float32 this many elements at a time, so that they stay in the L2 cache.
BLOCK_ELEMENTS = 1 << 17


def linear(x: NDArray[np.float32], w: Matrix) -> NDArray[np.float32]:
    """x @ w.T. x: [n, in_features]; result: [n, out_features]."""
    if isinstance(w, AffineQuant):
        return linear_affine(x, w)
    return linear_q8(x, w) if isinstance(w, Int8Matrix) else x @ w.T


def linear_q8(x: NDArray[np.float32], w: Int8Matrix) -> NDArray[np.float32]:
    """x @ w.T with 8-bit weights, which stay 8-bit in memory: only a block of rows at a time is float32."""
    out_features, in_features = w.shape
    y = np.empty((x.shape[0], out_features), np.float32)
    rows = max(1, BLOCK_ELEMENTS // in_features)
    for start in range(0, out_features, rows):
        block = w.dequantize(start, min(start + rows, out_features))
        np.matmul(x, block.T, out=y[:, start : start + len(block)])
    return y


def linear_group(products: Sequence[Product]) -> list[NDArray[np.float32]]:
    """activation(x @ w.T + bias) of each, [n, out_features]. Twin of kernels/linear_group.cu."""
    return [activate(linear(x, w), activation, bias) for x, w, activation, bias in products]


def linear_squared_relu(x: NDArray[np.float32], w: Matrix) -> NDArray[np.float32]:
    """relu(x @ w.T)^2. Twin of kernels/squared_relu.cu."""
    return activate(linear(x, w), Activation.SQUARED_RELU)


def embedding(table: Matrix, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows ``tokens`` of ``table`` [vocab_size, dim], as float32 [n, dim]. Twin of kernels/embedding.cu."""
    if isinstance(table, np.ndarray):
        return table[tokens]
    rows = np.concatenate([table.dequantize(token, token + 1) for token in tokens.tolist()])
    if isinstance(table, AffineQuant) and table.perm is not None:
        rows[:, table.perm] = rows.copy()
    return rows
