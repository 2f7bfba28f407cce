"""A forward pass of Llama, Mistral, Qwen2 or Qwen3 in float64, one token and one head at a time, from weights by Meta's
names. It shares no code with the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def forward_by_names(
    weights: Mapping[str, NDArray[np.float32]],
    ids: Sequence[int],
    head_dim: int,
    eps: float,
    theta: float,
    half_split: bool,
    divisors: Sequence[float] | None = None,
    attention_factor: float = 1.0,
    window: int = 0,
) -> Doubles:
    """Logits after each token, [len(ids), vocab_size]. divisors: of the frequencies of RoPE."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    n_layers = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("layers."))
    keys: list[list[Doubles]] = [[] for _ in range(n_layers)]
    values: list[list[Doubles]] = [[] for _ in range(n_layers)]

    def norm(x: Doubles, weight: Doubles) -> Doubles:
        return np.asarray(x / math.sqrt((x @ x) / len(x) + eps) * weight)

    def turn(head: Doubles, position: int) -> Doubles:
        out = head.copy()
        for j in range(head_dim // 2):
            a, b = (j, j + head_dim // 2) if half_split else (2 * j, 2 * j + 1)
            angle = position * theta ** (-2 * j / head_dim) / (divisors[j] if divisors else 1)
            cos, sin = attention_factor * math.cos(angle), attention_factor * math.sin(angle)
            out[a], out[b] = head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos
        return out

    rows = []
    for position, token in enumerate(ids):
        x = w["tok_embeddings.weight"][token]
        for i in range(n_layers):
            layer = f"layers.{i}.attention"
            h = norm(x, w[f"{layer}_norm.weight"])
            q, k, v = (
                (w[f"{layer}.{name}.weight"] @ h + w.get(f"{layer}.{name}.bias", 0)).reshape(-1, head_dim)
                for name in ("wq", "wk", "wv")
            )
            if f"{layer}.q_norm.weight" in w:
                q = np.array([norm(head, w[f"{layer}.q_norm.weight"]) for head in q])
                k = np.array([norm(head, w[f"{layer}.k_norm.weight"]) for head in k])
            keys[i].append(np.array([turn(head, position) for head in k]))
            values[i].append(v)
            first = max(0, position + 1 - window) if window else 0
            mixed = []
            for n, head in enumerate(q):
                shared = n * len(k) // len(q)
                turned = turn(head, position)
                scores = np.exp([turned @ past[shared] / math.sqrt(head_dim) for past in keys[i][first:]])
                seen = np.array([past[shared] for past in values[i][first:]])
                mixed.append(scores @ seen / scores.sum())
            x = x + w[f"{layer}.wo.weight"] @ np.concatenate(mixed) + w.get(f"{layer}.wo.bias", 0)
            h = norm(x, w[f"layers.{i}.ffn_norm.weight"])
            ffn = f"layers.{i}.feed_forward"
            gate, up = (w[f"{ffn}.{name}.weight"] @ h + w.get(f"{ffn}.{name}.bias", 0) for name in ("w1", "w3"))
            hidden = gate / (1 + np.exp(-gate)) * up
            x = x + w[f"{ffn}.w2.weight"] @ hidden + w.get(f"{ffn}.w2.bias", 0)
        head_matrix = w["output.weight" if "output.weight" in w else "tok_embeddings.weight"]
        rows.append(head_matrix @ norm(x, w["norm.weight"]))
    return np.array(rows)
