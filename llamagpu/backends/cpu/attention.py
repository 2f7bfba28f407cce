"""Twins of kernels/attention_decode.cu and kernels/attention_prefill.cu: causal attention over the KV cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def attention(
    q: NDArray[np.float32], keys: NDArray[np.float32], values: NDArray[np.float32], start: int, window: int = 0
) -> NDArray[np.float32]:
    """softmax(q k^T / sqrt(head_dim)) v, where the query at row i sees positions 0 ... start + i.

    window: only that many of them, the last ones; 0 for all.
    q: [n, n_heads, head_dim]; keys, values: [n_kv_heads, >= start + n, head_dim], shared by n_heads / n_kv_heads
    consecutive query heads each. Result: [n, n_heads * head_dim].
    """
    n, n_heads, head_dim = q.shape
    n_kv_heads = keys.shape[0]
    first = max(0, start + 1 - window) if window else 0  # that the first query sees
    keys, values = keys[:, first : start + n], values[:, first : start + n]
    group, n_keys = n_heads // n_kv_heads, start + n - first
    scale = np.float32(1 / np.sqrt(head_dim))
    # [n_kv_heads, group * n, head_dim]: all queries that share a key head as one matrix
    queries = (q * scale).transpose(1, 0, 2).reshape(n_kv_heads, group * n, head_dim)
    behind = np.arange(start, start + n)[:, None] - np.arange(first, start + n)  # how far a key is behind a query
    hidden = (behind < 0) | (behind >= (window or start + n)) if n > 1 else None
    out = np.empty((n_kv_heads, group * n, head_dim), np.float32)
    for head in range(n_kv_heads):  # one head at a time: the scores of a long prompt are the largest array there is
        scores = queries[head] @ keys[head].T
        if hidden is not None:
            np.copyto(scores.reshape(group, n, n_keys), -np.inf, where=hidden)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        np.matmul(scores, values[head], out=out[head])
        out[head] /= scores.sum(axis=-1, keepdims=True)
    return out.reshape(n_heads, n, head_dim).transpose(1, 0, 2).reshape(n, n_heads * head_dim)
