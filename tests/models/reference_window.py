"""A forward pass in float64 that forgets: at each token only the first and the last tokens are kept, and everything is
turned anew at the places that it has in that list. It shares no code with the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.config import ModelConfig

Doubles = NDArray[np.float64]


def turned(head: Doubles, place: int, config: ModelConfig) -> Doubles:
    """RoPE of one head."""
    out, half = head.copy(), config.head_dim // 2
    for j in range(half):
        a, b = (j, j + half) if config.rope_layout == "half_split" else (2 * j, 2 * j + 1)
        divisor = config.rope_factors[j] if config.rope_factors else 1.0
        z = complex(head[a], head[b]) * np.exp(1j * place * config.rope_theta ** (-j / half) / divisor)
        out[a], out[b] = z.real * config.rope_attention_factor, z.imag * config.rope_attention_factor
    return out


def forward_in_window(
    tensors: Mapping[str, Any], config: ModelConfig, ids: Sequence[int], window: int, sinks: int
) -> Doubles:
    """Logits after each token, [len(ids), vocab_size]."""
    w = {name: np.asarray(tensor).astype(np.float64) for name, tensor in tensors.items()}

    def norm(x: Doubles, name: str) -> Doubles:
        return np.asarray(x / np.sqrt(np.mean(x * x) + config.norm_eps) * w[name])

    kept: list[list[tuple[Doubles, Doubles]]] = [[] for _ in range(config.n_layers)]  # keys before RoPE, and values
    rows = []
    for token in ids:
        x = w["tok_embeddings.weight"][token]
        for i, past in enumerate(kept):
            of = f"layers.{i}.attention"
            h = norm(x, f"{of}_norm.weight")
            q, k, v = (
                (w[f"{of}.{name}.weight"] @ h + w.get(f"{of}.{name}.bias", 0.0)).reshape(-1, config.head_dim)
                for name in ("wq", "wk", "wv")
            )
            if config.qk_norm:
                q = np.array([norm(head, f"{of}.q_norm.weight") for head in q])
                k = np.array([norm(head, f"{of}.k_norm.weight") for head in k])
            past.append((k, v))
            if len(past) > sinks + window:
                del past[sinks]
            keys = [[turned(head, place, config) for head in k] for place, (k, _) in enumerate(past)]
            mixed = []
            for n, head in enumerate(q):
                shared = n * config.n_kv_heads // config.n_heads
                asking = turned(head, len(past) - 1, config)
                scores = np.array([asking @ of_token[shared] for of_token in keys]) / np.sqrt(config.head_dim)
                weights = np.exp(scores - scores.max())
                mixed.append(sum(p * v[shared] for p, (_, v) in zip(weights, past, strict=True)) / weights.sum())
            x = x + w[f"{of}.wo.weight"] @ np.concatenate(mixed)
            h = norm(x, f"layers.{i}.ffn_norm.weight")
            gate, up = (w[f"layers.{i}.feed_forward.{name}.weight"] @ h for name in ("w1", "w3"))
            x = x + w[f"layers.{i}.feed_forward.w2.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        head_matrix = w["tok_embeddings.weight" if config.tied_head else "output.weight"]
        rows.append(head_matrix @ norm(x, "norm.weight"))
    return np.array(rows)
