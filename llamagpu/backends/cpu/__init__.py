"""The NumPy backend: the fallback where there is no GPU, and the specification of every CUDA kernel.

Everything is float32; 8-bit weights stay 8-bit in memory. One file per kernel family, named as the kernel is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention import attention
from llamagpu.backends.cpu.linear import embedding, linear
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.backends.cpu.sample import sample
from llamagpu.backends.cpu.swiglu import swiglu
from llamagpu.backends.protocol import Forward
from llamagpu.checkpoint import Tensor
from llamagpu.config import ModelConfig
from llamagpu.errors import UsageError
from llamagpu.quantization import Int8Matrix
from llamagpu.quantization.random import RandomMatrix
from llamagpu.sampling import SamplingParams

Floats = NDArray[np.float32]
Weight = Floats | Int8Matrix


@dataclass
class CPUCache:
    """keys, values: float32 [n_layers, n_kv_heads, capacity, head_dim]; memory is taken as positions are written."""

    keys: Floats
    values: Floats
    length: int = 0

    @property
    def capacity(self) -> int:
        return int(self.keys.shape[2])


class CPUSampler:
    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self.params = params.with_seed()
        self.counts = np.zeros(vocab_size, np.int32)
        self.n_drawn = 0

    def see(self, tokens: Sequence[int]) -> None:
        np.add.at(self.counts, np.asarray(tokens, np.int64), 1)

    def sample(self, logits: Floats) -> int:
        token = sample(logits, self.counts, self.params, self.n_drawn)
        self.counts[token] += 1
        self.n_drawn += 1
        return token


class CPUBackend:
    name = "cpu"

    def weight(self, tensor: Tensor) -> Weight:
        """float32 is used in place, straight from the mapped file; float16 is widened, since NumPy is slow with it."""
        if isinstance(tensor, RandomMatrix):
            return tensor.materialize().astype(np.float32)
        if isinstance(tensor, Int8Matrix) or tensor.dtype == np.float32:
            return tensor
        return tensor.astype(np.float32)

    def kv_cache(self, config: ModelConfig, capacity: int) -> CPUCache:
        shape = (config.n_layers, config.n_kv_heads, capacity, config.head_dim)
        try:
            return CPUCache(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        except MemoryError:
            gib = capacity * config.kv_bytes_per_token() / 2**30
            raise UsageError(
                f"a context of {capacity} tokens needs {gib:.1f} GiB of memory: give a smaller --context"
            ) from None

    def sampler(self, params: SamplingParams, vocab_size: int) -> CPUSampler:
        return CPUSampler(params, vocab_size)

    def embedding(self, table: Weight, tokens: Sequence[int], cache: CPUCache) -> Floats:
        return embedding(table, np.asarray(tokens, np.int64))

    def rmsnorm_qkv_rope(
        self,
        x: Floats,
        norm: Floats,
        wq: Weight,
        wk: Weight,
        wv: Weight,
        cache: CPUCache,
        layer: int,
        config: ModelConfig,
    ) -> Floats:
        n, start = x.shape[0], cache.length
        h = rmsnorm(x, norm, config.norm_eps)
        cos, sin = rope_angles(start, n, config.head_dim, config.rope_theta)
        q = rope(linear(h, wq).reshape(n, config.n_heads, config.head_dim), cos, sin, config.rope_layout)
        k = rope(linear(h, wk).reshape(n, config.n_kv_heads, config.head_dim), cos, sin, config.rope_layout)
        v = linear(h, wv).reshape(n, config.n_kv_heads, config.head_dim)
        cache.keys[layer, :, start : start + n] = k.transpose(1, 0, 2)
        cache.values[layer, :, start : start + n] = v.transpose(1, 0, 2)
        return q

    def attention(self, q: Floats, cache: CPUCache, layer: int, config: ModelConfig) -> Floats:
        return attention(q, cache.keys[layer], cache.values[layer], cache.length)

    def linear_add(self, residual: Floats, x: Floats, w: Weight) -> Floats:
        residual += linear(x, w)
        return residual

    def rmsnorm_gate_up_swiglu(self, x: Floats, norm: Floats, w_gate: Weight, w_up: Weight, eps: float) -> Floats:
        h = rmsnorm(x, norm, eps)
        return swiglu(linear(h, w_gate), linear(h, w_up))

    def rmsnorm_head(self, x: Floats, norm: Floats, w: Weight, eps: float, n_logits: int) -> Floats:
        return linear(rmsnorm(x[len(x) - n_logits :], norm, eps), w)

    def to_host(self, logits: Floats, vocab_size: int) -> Floats:
        return logits

    def wait(self) -> None:
        """Nothing runs behind the caller here."""

    def decode(
        self, forward: Forward, cache: CPUCache, sampler: CPUSampler, logits: Floats, n_tokens: int
    ) -> Iterator[int]:
        for n_made in range(n_tokens):
            token = sampler.sample(logits[-1])
            yield token
            if n_made + 1 < n_tokens:
                logits = forward([token], cache)
