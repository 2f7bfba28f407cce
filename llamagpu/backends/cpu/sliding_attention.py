"""Twin of kernels/sliding_attention.cu: MicroRWKV's attention of 256 rows, which does not slide and is not causal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW = 256  # rows of a head, whatever the number of tokens


def sliding_attention(qkv: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Softmax attention of every row of a head over all its 256 rows, each of W = ceil(n / 256) tokens in turn.

    So up to 256 tokens each is a row and sees all others, and those that are missing as rows of zeros, which take part
    with a score of 0. Of more tokens, W that stand one after another are one row, W * head_dim wide.
    qkv: [n, 3 * dim], q, k and v side by side, heads within each; result: [n, dim].
    """
    n, dim = qkv.shape[0], qkv.shape[1] // 3
    width, head_dim = -(-n // WINDOW), dim // n_heads
    n_rows = -(-n // width)  # that are not zeros alone
    rows = np.zeros((3, n_heads, n_rows * width, head_dim), np.float32)
    rows[:, :, :n] = qkv.reshape(n, 3, n_heads, head_dim).transpose(1, 2, 0, 3)
    q, k, v = rows.reshape(3, n_heads, n_rows, width * head_dim)
    scores = q * np.float32(head_dim**-0.5) @ k.transpose(0, 2, 1)
    largest = scores.max(axis=-1, keepdims=True)
    if n_rows < WINDOW:
        largest = np.maximum(largest, np.float32(0))
    weights = np.exp(scores - largest)
    weights /= weights.sum(axis=-1, keepdims=True) + (WINDOW - n_rows) * np.exp(-largest)
    by_head = (weights @ v).reshape(n_heads, n_rows * width, head_dim)[:, :n]
    out: NDArray[np.float32] = by_head.transpose(1, 0, 2).reshape(n, dim)
    return out
