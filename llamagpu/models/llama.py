"""Llama (1 and 2, and models of that shape): which operations run in what order, on any backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamagpu.backends.protocol import Array, Backend, KVCache, Weight
from llamagpu.checkpoint import Checkpoint


@dataclass(frozen=True)
class Layer:
    """The weights of one layer; matrices are [out_features, in_features]."""

    attention_norm: Weight
    wq: Weight
    wk: Weight
    wv: Weight
    wo: Weight
    ffn_norm: Weight
    w_gate: Weight
    w_down: Weight
    w_up: Weight


class Llama:
    """A pre-norm decoder with grouped-query attention, RoPE and SwiGLU. Its only state is the KV cache it is given."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None] = lambda n: None
    ) -> None:
        """on_loaded_bytes: called with the size of each weight once the backend has it."""
        self.config = checkpoint.config
        self.backend = backend
        weights: dict[str, Weight] = {}
        for name, tensor in checkpoint.tensors.items():
            weights[name] = backend.weight(tensor)
            on_loaded_bytes(tensor.nbytes)
        self.embedding = weights["tok_embeddings.weight"]
        self.norm = weights["norm.weight"]
        self.head = self.embedding if self.config.tied_head else weights["output.weight"]
        self.layers = [
            Layer(
                attention_norm=weights[f"layers.{i}.attention_norm.weight"],
                wq=weights[f"layers.{i}.attention.wq.weight"],
                wk=weights[f"layers.{i}.attention.wk.weight"],
                wv=weights[f"layers.{i}.attention.wv.weight"],
                wo=weights[f"layers.{i}.attention.wo.weight"],
                ffn_norm=weights[f"layers.{i}.ffn_norm.weight"],
                w_gate=weights[f"layers.{i}.feed_forward.w1.weight"],
                w_down=weights[f"layers.{i}.feed_forward.w2.weight"],
                w_up=weights[f"layers.{i}.feed_forward.w3.weight"],
            )
            for i in range(self.config.n_layers)
        ]

    def forward(self, tokens: Any, cache: KVCache, n_logits: int = 1) -> Array:
        """Run n tokens at the next n positions; logits after the last ``n_logits`` of them, [n_logits, vocab_size].

        tokens: ids, or the backend's own array of them.
        """
        with np.errstate(all="ignore"):  # damaged weights overflow: the sampler says so, in one line
            return self._forward(tokens, cache, n_logits)

    def _forward(self, tokens: Any, cache: KVCache, n_logits: int) -> Array:
        backend, config = self.backend, self.config
        assert cache.length + len(tokens) <= cache.capacity, "the caller keeps within the context"
        x = backend.embedding(self.embedding, tokens, cache)
        for i, layer in enumerate(self.layers):
            q = backend.rmsnorm_qkv_rope(x, layer.attention_norm, layer.wq, layer.wk, layer.wv, cache, i, config)
            x = backend.linear_add(x, backend.attention(q, cache, i, config), layer.wo)
            h = backend.rmsnorm_gate_up_swiglu(x, layer.ffn_norm, layer.w_gate, layer.w_up, config.norm_eps)
            x = backend.linear_add(x, h, layer.w_down)
        cache.length += len(tokens)
        return backend.rmsnorm_head(x, self.norm, self.head, config.norm_eps, n_logits)
