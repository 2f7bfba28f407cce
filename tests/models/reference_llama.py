"""A Llama forward pass in float64, one token and one head at a time, from llama2.c's block names. Shares no code."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tests.small_files import Shape


def reference_logits(
    shape: Shape, weights: dict[str, NDArray[np.float32]], ids: list[int], half_split: bool = False
) -> NDArray[np.float64]:
    """Logits after each token, [len(ids), vocab_size]."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    head_dim = shape.dim // shape.n_heads
    group = shape.n_heads // shape.n_kv_heads
    keys: list[list[NDArray[np.float64]]] = [[] for _ in range(shape.n_layers)]
    values: list[list[NDArray[np.float64]]] = [[] for _ in range(shape.n_layers)]

    def norm(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(x / math.sqrt((x @ x) / len(x) + 1e-5) * weight)

    def turn(x: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        out = x.copy()
        for head in range(len(x) // head_dim):
            for j in range(head_dim // 2):
                a, b = (j, j + head_dim // 2) if half_split else (2 * j, 2 * j + 1)
                a, b = a + head * head_dim, b + head * head_dim
                angle = position * 10000 ** (-2 * j / head_dim)
                out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
                out[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
        return out

    rows = []
    for position, token in enumerate(ids):
        x = w["tok_emb"][token]
        for i in range(shape.n_layers):
            h = norm(x, w["att_norm"][i])
            q = turn(w["wq"][i] @ h, position)
            keys[i].append(turn(w["wk"][i] @ h, position))
            values[i].append(w["wv"][i] @ h)
            mixed = np.empty(shape.dim)
            for head in range(shape.n_heads):
                own = slice(head * head_dim, (head + 1) * head_dim)
                shared = slice((head // group) * head_dim, (head // group + 1) * head_dim)
                scores = np.exp([q[own] @ k[shared] / math.sqrt(head_dim) for k in keys[i]])
                mixed[own] = sum(s * v[shared] for s, v in zip(scores, values[i], strict=True)) / scores.sum()
            x = x + w["wo"][i] @ mixed
            h = norm(x, w["ffn_norm"][i])
            gate = w["w1"][i] @ h
            x = x + w["w2"][i] @ (gate / (1 + np.exp(-gate)) * (w["w3"][i] @ h))
        rows.append(w["tok_emb" if shape.tied else "wcls"] @ norm(x, w["final_norm"]))
    return np.array(rows)
