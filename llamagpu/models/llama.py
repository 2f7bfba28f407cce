"""Llama and models of that shape (Mistral, Qwen2, Qwen3): which operations run in what order, on any backend.

They differ in details that ModelConfig names (biases; norms of q and k; window; RoPE) and that the backend's operations
take: the order is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.protocol import Array, Backend, KVCache, Weight
from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.models.base import StateOptions
from llamagpu.models.window import check_window


@dataclass(frozen=True)
class Layer:
    """The weights of one layer; matrices are [out_features, in_features]. Biases of what is added are [dim] or None."""

    attention_norm: Weight
    qkv: Weight
    wo: Weight
    ffn_norm: Weight
    gate_up: Weight
    w_down: Weight
    wo_bias: Weight | None = None
    w_down_bias: Weight | None = None


@dataclass(frozen=True)
class Loader:
    """Puts weights of a checkpoint on a backend. on_loaded_bytes: called with the size of each once it is there."""

    tensors: Mapping[str, Tensor]
    on_loaded_bytes: Callable[[int], None]

    def __call__(self, make: Callable[..., Weight], *names: str, **rest: Any) -> Weight:
        parts = [self.tensors[f"{name}.weight"] for name in names]
        weight = make(*parts, **rest)
        self.on_loaded_bytes(sum(part.nbytes for part in parts))
        return weight


class Llama:
    """A pre-norm decoder with grouped-query attention, RoPE and SwiGLU. Its only state is the KV cache it is given."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None] = lambda n: None
    ) -> None:
        """on_loaded_bytes: called with the size of each weight once the backend has it."""
        self.config = checkpoint.config
        self.backend = backend
        tensors = checkpoint.tensors
        load = Loader(tensors, on_loaded_bytes)

        def vectors(*names: str) -> Sequence[Any] | None:
            """Those of ``names`` together: a model has them all or none."""
            return [tensors[name] for name in names] if names[0] in tensors else None

        def vector(name: str) -> Weight | None:
            return backend.weight(tensors[name]) if name in tensors else None

        self.embedding = load(backend.weight, "tok_embeddings")
        self.layers = []
        for i in range(self.config.n_layers):
            attention, feed_forward = f"layers.{i}.attention", f"layers.{i}.feed_forward"
            self.layers.append(
                Layer(
                    attention_norm=load(backend.weight, f"{attention}_norm"),
                    qkv=load(
                        backend.qkv, f"{attention}.wq", f"{attention}.wk", f"{attention}.wv", config=self.config,
                        biases=vectors(f"{attention}.wq.bias", f"{attention}.wk.bias", f"{attention}.wv.bias"),
                        norms=vectors(f"{attention}.q_norm.weight", f"{attention}.k_norm.weight"),
                    ),
                    wo=load(backend.weight, f"{attention}.wo"),
                    ffn_norm=load(backend.weight, f"layers.{i}.ffn_norm"),
                    gate_up=load(
                        backend.gate_up, f"{feed_forward}.w1", f"{feed_forward}.w3",
                        biases=vectors(f"{feed_forward}.w1.bias", f"{feed_forward}.w3.bias"),
                    ),
                    w_down=load(backend.weight, f"{feed_forward}.w2"),
                    wo_bias=vector(f"{attention}.wo.bias"),
                    w_down_bias=vector(f"{feed_forward}.w2.bias"),
                )
            )  # fmt: skip
        self.norm = load(backend.weight, "norm")
        self.head = self.embedding if self.config.tied_head else load(backend.weight, "output")

    def new_state(self, options: StateOptions) -> KVCache:
        if options.window:
            check_window(self.config, options.window, options.sinks, options.kv_bits)
            return self.backend.window_cache(self.config, options.window, options.sinks)
        return self.backend.kv_cache(self.config, options.n_positions, options.kv_bits)

    def decode(self, state: KVCache, sampler: Any, logits: Array, n_tokens: int) -> Iterator[int]:
        return self.backend.decode(self.forward, state, sampler, logits, n_tokens)

    def save_state(self, state: KVCache) -> dict[str, NDArray[Any]]:
        """keys, values [n_layers, n_kv_heads, length, head_dim]; of 8 bits also scales, of both without head_dim.

        With a window: window_keys (before RoPE), window_values of the tokens that are kept, window_and_sinks [2].
        """
        return self.backend.save_cache(state)

    def load_state(self, state: KVCache, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        config, ring = self.config, state.ring
        n_kept = length if ring is None else min(length, ring.n_kept)
        shape = (config.n_layers, config.n_kv_heads, n_kept, config.head_dim)
        expected: dict[str, tuple[int, ...]] = {"keys": shape, "values": shape}
        if ring is not None:
            if "window_and_sinks" in arrays and arrays["window_and_sinks"].tolist() != [ring.window, ring.sinks]:
                found_ring = " and ".join(map(str, arrays["window_and_sinks"].tolist()))
                raise ValueError(f"holds a window and sinks of {found_ring}, not {ring.window} and {ring.sinks}")
            expected = {"window_keys": shape, "window_values": shape, "window_and_sinks": (2,)}
        elif "scales" in arrays:
            expected["scales"] = (2, *shape[:3])
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected:
            raise ValueError(f"holds arrays of {found}, this model has {expected}")
        if ring is None and length > state.capacity:
            raise ValueError(f"holds {length} tokens, the context {state.capacity}")
        self.backend.load_cache(state, arrays, length)
        state.length = length

    def forward(self, tokens: Any, cache: KVCache, n_logits: int = 1) -> Array:
        """Run n tokens at the next n positions; logits after the last ``n_logits`` of them, [n_logits, vocab_size].

        tokens: ids, or the backend's own array of them.
        """
        with np.errstate(all="ignore"):  # damaged weights overflow: the sampler says so, in one line
            return self._forward(tokens, cache, n_logits)

    def _forward(self, tokens: Any, cache: KVCache, n_logits: int) -> Array:
        backend, config = self.backend, self.config
        assert cache.room is None or len(tokens) <= cache.room, "the caller keeps within the context"
        x = backend.embedding(self.embedding, tokens, cache)
        for i, layer in enumerate(self.layers):
            q = backend.rmsnorm_qkv_rope(x, layer.attention_norm, layer.qkv, cache, i, config)
            x = backend.linear_add(x, backend.attention(q, cache, i, config), layer.wo, layer.wo_bias)
            h = backend.rmsnorm_gate_up_swiglu(x, layer.ffn_norm, layer.gate_up, config.norm_eps)
            x = backend.linear_add(x, h, layer.w_down, layer.w_down_bias)
        cache.length += len(tokens)
        return backend.rmsnorm_head(x, self.norm, self.head, config.norm_eps, n_logits)
