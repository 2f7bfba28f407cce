"""The NumPy backend: the fallback where there is no GPU, and the specification of every CUDA kernel.

Everything is float32; quantised weights stay as they are in memory. One file per kernel family, named as the kernel is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention import attention
from llamagpu.backends.cpu.attention_window import CPUWindowCache, Ring, attention_window
from llamagpu.backends.cpu.kv_int8 import in_type, quantize_rows, widen_rows
from llamagpu.backends.cpu.linear import embedding, linear
from llamagpu.backends.cpu.recurrent import CPURecurrentOps
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.backends.cpu.rows import CPURows
from llamagpu.backends.cpu.sample import sample
from llamagpu.backends.cpu.swiglu import swiglu
from llamagpu.backends.protocol import Forward
from llamagpu.checkpoint import Tensor
from llamagpu.config import ModelConfig
from llamagpu.errors import OutOfMemoryError
from llamagpu.option_names import option
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix, RandomMatrix
from llamagpu.sampling import SamplingParams

Floats = NDArray[np.float32]
Weight = Floats | Int8Matrix | AffineQuant


@dataclass
class CPUCache:
    """keys, values: float32 or int8 [n_layers, n_kv_heads, capacity, head_dim]; memory is taken as they are written.

    scales: of int8 keys and values, float32 [2, n_layers, n_kv_heads, capacity]. n_rows: see ``rows_of_cache``.
    """

    keys: NDArray[Any]
    values: NDArray[Any]
    scales: Floats | None = None
    length: int = 0
    n_rows: int = 0
    rewindable = True
    ring: None = None

    @property
    def capacity(self) -> int:
        return int(self.keys.shape[2])

    @property
    def room(self) -> int:
        return self.capacity - self.length

    def append(self, layer: int, keys: Floats, values: Floats) -> None:
        """Put keys and values [n, n_kv_heads, head_dim] at the next n positions, without moving on."""
        place = slice(self.length, self.length + len(keys))
        for i, (cached, rows) in enumerate(((self.keys, keys), (self.values, values))):
            by_head = rows.transpose(1, 0, 2)
            if self.scales is None:
                cached[layer, :, place] = by_head
            else:
                cached[layer, :, place], self.scales[i, layer, :, place] = quantize_rows(by_head)

    def read(self, layer: int, n: int, window: int) -> tuple[Floats, Floats]:
        """Keys and values of a layer; of int8 float32 copies, in which only what n queries see is filled."""
        if self.scales is None:
            return self.keys[layer], self.values[layer]
        first = max(0, self.length + 1 - window) if window else 0
        filled = slice(first, self.length + n)
        parts = []
        for i, cached in enumerate((self.keys, self.values)):
            wide = np.empty((cached.shape[1], self.length + n, cached.shape[3]), np.float32)
            wide[:, filled] = widen_rows(cached[layer, :, filled], self.scales[i, layer, :, filled])
            parts.append(wide)
        return parts[0], parts[1]


@dataclass(frozen=True)
class GateUp:
    """The matrices of gate and up, and their biases where the model has them."""

    matrices: tuple[Weight, Weight]
    biases: Sequence[Floats] | None


@dataclass(frozen=True)
class QKV:
    """wq, wk, wv, their biases, and the weights of the norms of q and k where the model has them."""

    matrices: tuple[Weight, Weight, Weight]
    biases: Sequence[Floats] | None
    norms: Sequence[Floats] | None

    @property
    def nbytes(self) -> int:
        """Of the matrices."""
        return sum(matrix.nbytes for matrix in self.matrices)


class CPUSampler:
    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self.params = params.with_seed()
        self.counts = np.zeros(vocab_size, np.int32)
        self.n_drawn = 0

    def see(self, tokens: Sequence[int]) -> None:
        np.add.at(self.counts, np.asarray(tokens, np.int64), 1)

    def skip(self, n_drawn: int) -> None:
        self.n_drawn = n_drawn

    def sample(self, logits: Floats) -> int:
        token = sample(logits, self.counts, self.params, self.n_drawn)
        self.counts[token] += 1
        self.n_drawn += 1
        return token


class CPUBackend(CPURecurrentOps):
    name = "cpu"

    def weight(self, tensor: Tensor) -> Weight:
        """float32 is used in place, straight from the mapped file, unless it lies at an odd byte: NumPy would copy it
        each time. 16 bits are widened: NumPy is slow with them."""
        if isinstance(tensor, RandomMatrix | Deferred):
            return self.weight(tensor.materialize())
        if isinstance(tensor, Int8Matrix | AffineQuant):
            return tensor
        return np.require(tensor, np.float32, "A")

    def qkv(
        self,
        wq: Tensor,
        wk: Tensor,
        wv: Tensor,
        config: ModelConfig,
        biases: Sequence[NDArray[Any]] | None = None,
        norms: Sequence[NDArray[Any]] | None = None,
    ) -> QKV:
        as_floats = [part and [vector.astype(np.float32) for vector in part] for part in (biases, norms)]
        return QKV((self.weight(wq), self.weight(wk), self.weight(wv)), *as_floats)

    def gate_up(self, gate: Tensor, up: Tensor, biases: Sequence[NDArray[Any]] | None = None) -> GateUp:
        floats = biases and [bias.astype(np.float32) for bias in biases]
        return GateUp((self.weight(gate), self.weight(up)), floats)

    def kv_cache(self, config: ModelConfig, capacity: int, kv_bits: int = 16) -> CPUCache:
        shape = (config.n_layers, config.n_kv_heads, capacity, config.head_dim)
        try:
            if kv_bits == 8:
                scales = np.zeros((2, *shape[:3]), np.float32)
                return CPUCache(np.zeros(shape, np.int8), np.zeros(shape, np.int8), scales)
            return CPUCache(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        except MemoryError:
            gib = capacity * config.kv_bytes_per_token() / 2**30
            raise OutOfMemoryError(
                f"a context of {capacity} tokens needs {gib:.2f} GiB of memory: give a smaller {option('context')}"
            ) from None

    def window_cache(self, config: ModelConfig, window: int, sinks: int) -> CPUWindowCache:
        ring = Ring(window, sinks)
        shape = (config.n_layers, config.n_kv_heads, ring.n_places, config.head_dim)
        return CPUWindowCache(np.zeros(shape, np.float32), np.zeros(shape, np.float32), ring)

    def save_cache(self, cache: CPUCache | CPUWindowCache) -> dict[str, NDArray[Any]]:
        if isinstance(cache, CPUWindowCache):
            return cache.save()
        filled = slice(cache.length)
        arrays = {"keys": cache.keys[:, :, filled].copy(), "values": cache.values[:, :, filled].copy()}
        return arrays if cache.scales is None else arrays | {"scales": cache.scales[..., filled].copy()}

    def load_cache(self, cache: CPUCache | CPUWindowCache, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        if isinstance(cache, CPUWindowCache):
            return cache.load(arrays, length)
        filled = slice(arrays["keys"].shape[2])
        parts = in_type(arrays, scaled=cache.scales is not None)
        cache.keys[:, :, filled], cache.values[:, :, filled] = parts["keys"], parts["values"]
        if cache.scales is not None:
            cache.scales[..., filled] = parts["scales"]

    def sampler(self, params: SamplingParams, vocab_size: int) -> CPUSampler:
        return CPUSampler(params, vocab_size)

    def linear(self, x: Floats, w: Weight) -> Floats:
        """x @ w.T: every product with a matrix goes through here."""
        return linear(x, w)

    def embedding(self, table: Weight, tokens: Sequence[int], cache: CPUCache) -> Floats:
        return embedding(table, np.asarray(tokens, np.int64))

    def rmsnorm_qkv_rope(
        self,
        x: Floats,
        norm: Floats,
        w: QKV,
        cache: CPUCache | CPUWindowCache,
        layer: int,
        config: ModelConfig,
    ) -> Floats:
        n, start = x.shape[0], cache.length
        h = rmsnorm(x, norm, config.norm_eps)
        products = [self.linear(h, matrix) for matrix in w.matrices]
        if w.biases is not None:
            products = [product + bias for product, bias in zip(products, w.biases, strict=True)]
        q, k, v = (product.reshape(n, -1, config.head_dim) for product in products)
        if w.norms is not None:
            q, k = (rmsnorm(x, norm, config.norm_eps) for x, norm in zip((q, k), w.norms, strict=True))
        if isinstance(cache, CPUWindowCache):
            cache.append(layer, k, v)
            return q  # RoPE comes with attention
        cos, sin = rope_angles(start, n, config)
        cache.append(layer, rope(k, cos, sin, config.rope_layout), v)
        return rope(q, cos, sin, config.rope_layout)

    def attention(
        self,
        q: Floats,
        cache: CPUCache | CPUWindowCache,
        layer: int,
        config: ModelConfig,
        memory: Floats | None = None,
    ) -> Floats:
        if isinstance(cache, CPUWindowCache):
            return attention_window(q, *cache.read(layer, len(q)), cache.length, cache.ring, config)
        window = config.window_of(layer)
        out = attention(q, *cache.read(layer, len(q), window), cache.length, window)
        if memory is not None:
            first = cache.length - config.mem_len
            memory[layer, first : first + len(q)] = out
        return out

    def linear_add(self, residual: Floats, x: Floats, w: Weight, bias: Floats | None = None) -> Floats:
        if bias is not None:
            residual += bias
        residual += self.linear(x, w)
        return residual

    def rmsnorm_gate_up_swiglu(self, x: Floats, norm: Floats, w: GateUp, eps: float) -> Floats:
        h = rmsnorm(x, norm, eps)
        gate, up = (self.linear(h, matrix) for matrix in w.matrices)
        return swiglu(gate, up, w.biases)

    def rmsnorm_head(
        self, x: Floats, norm: Floats, w: Weight, eps: float, n_logits: int, out: Floats | None = None
    ) -> Floats:
        logits = self.linear(rmsnorm(x[len(x) - n_logits :], norm, eps), w)
        if out is None:
            return logits
        out[:] = logits
        return out

    def logits(self, n: int, config: ModelConfig) -> Floats:
        return np.empty((n, config.vocab_size), np.float32)

    def place(self, cache: CPUCache, position: int) -> None:
        cache.length = position

    def rows_of_cache(self, cache: CPUCache, first: int, n: int) -> CPUCache:
        return replace(cache, length=first, n_rows=n)

    def memory(self, rows: Floats) -> Floats:
        return rows.copy()

    def memory_rows(self, memory: Floats, layer: int, rows: CPUCache, config: ModelConfig) -> Floats:
        return memory[layer, rows.length : rows.length + rows.n_rows].copy()

    def save_memory(self, memory: Floats, config: ModelConfig) -> Floats:
        return memory.copy()

    def load_memory(self, memory: Floats, rows: Floats) -> None:
        memory[:] = rows

    def to_host(self, logits: Floats, vocab_size: int) -> Floats:
        return logits

    def wait(self) -> None:
        """Nothing runs behind the caller here."""

    def decode(self, forward: Forward, state: Any, sampler: CPUSampler, logits: Floats, n_tokens: int) -> Iterator[int]:
        for n_made in range(n_tokens):
            token = sampler.sample(logits[-1])
            yield token
            if n_made + 1 < n_tokens:
                logits = forward([token], state)

    decode_each = decode

    def rows(self) -> CPURows:
        return CPURows(self)
