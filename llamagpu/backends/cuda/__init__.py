"""The CUDA backend: a model that lives on a GPU, driven by launches alone.

Activations are float32; weights stay in the type they are stored in; keys and values are float16, or float32 where the
weights are. A decode step is captured once as a graph and replayed: the token, the position and the random state are in
device memory, so the host only launches, several steps ahead, and reads tokens behind the GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.backends.cpu.attention_window import Ring
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.cache import MAX_PROMPT_CHUNK, CUDACache
from llamagpu.backends.cuda.device import Device, DeviceArray, Graph
from llamagpu.backends.cuda.matrix import (
    WHOLE_ROW,
    DeviceMatrix,
    Stack,
    pad_rows,
    padded,
    tiled,
    upload_gate_up,
    upload_matrix,
    upload_qkv,
    upload_vector,
)
from llamagpu.backends.cuda.recurrent import FEW_COLUMNS, CUDARecurrentOps
from llamagpu.backends.cuda.rows import CUDARows
from llamagpu.backends.cuda.sampler import RING_SIZE, CUDASampler
from llamagpu.backends.cuda.vectors import Coming, Residual, Target, Vectors
from llamagpu.backends.cuda.window_cache import CUDAWindowCache
from llamagpu.backends.protocol import DecodeState, Forward
from llamagpu.checkpoint import Tensor
from llamagpu.config import ModelConfig
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.option_names import option
from llamagpu.sampling import DAMAGED_LOGITS, SamplingParams

AnyCache = CUDACache | CUDAWindowCache
STEPS_AHEAD = 4  # decode steps that wait on the GPU while the host looks at earlier tokens
LARGEST_HEAD_DIM = 1024  # kernels/attention.cu


class CUDABackend(CUDARecurrentOps):
    """The operations of backends/protocol.py as launches on one device, real or emulated.

    Up to FEW_COLUMNS tokens take the fused kernels: a product is finished, normed, added and laid out for its reader
    where it is made. More tokens, and layers that mix types of weights, take one kernel for each of these.
    """

    name = "cuda"

    def __init__(self, device: Device, kv_dtype: DTypeLike | None = None) -> None:
        """kv_dtype: of keys and values; None takes float32 if wq, wk, wv of all layers are, else float16."""
        self.device = device
        self.kv_dtype = kv_dtype
        self._scratch: dict[str, DeviceArray] = {}
        self._qkv_kinds: set[str] = set()
        self.has_tiles = False

    def weight(self, tensor: Tensor) -> DeviceMatrix | DeviceArray:
        if len(tensor.shape) == 1:
            assert isinstance(tensor, np.ndarray)
            return upload_vector(self.device, tensor)
        matrix = upload_matrix(self.device, tensor)
        self.has_tiles |= matrix.tiled
        return matrix

    def qkv(
        self,
        wq: Tensor,
        wk: Tensor,
        wv: Tensor,
        config: ModelConfig,
        biases: Sequence[NDArray[Any]] | None = None,
        norms: Sequence[NDArray[Any]] | None = None,
    ) -> Stack:
        stack = upload_qkv(self.device, (wq, wk, wv), config, biases, norms)
        self._qkv_kinds |= {part.matrix.kind for part in stack.parts}
        return stack

    def gate_up(self, gate: Tensor, up: Tensor, biases: Sequence[NDArray[Any]] | None = None) -> Stack:
        return upload_gate_up(self.device, gate, up, biases)

    def kv_cache(self, config: ModelConfig, capacity: int, kv_bits: int = 16) -> CUDACache:
        if config.head_dim > LARGEST_HEAD_DIM:
            raise UsageError(
                f"heads of {config.head_dim} elements are too wide for the GPU kernels"
                f" (at most {LARGEST_HEAD_DIM}): {option('device', 'cpu')} runs this model"
            )
        dtype = np.int8 if kv_bits == 8 else self.type_of_keys(config)
        return CUDACache(self.device, config, capacity, dtype)

    def window_cache(self, config: ModelConfig, window: int, sinks: int) -> CUDAWindowCache:
        if config.head_dim > launches.WIDEST_DECODE_HEAD:
            raise UsageError(
                f"heads of {config.head_dim} elements are too wide for windows on a GPU"
                f" (at most {launches.WIDEST_DECODE_HEAD}): {option('device', 'cpu')} runs this model"
            )
        return CUDAWindowCache(self.device, config, Ring(window, sinks), self.type_of_keys(config))

    def type_of_keys(self, config: ModelConfig) -> DTypeLike:
        # what a memory rounds goes round for ever, and it is small
        is_wide = self._qkv_kinds == {"F32"} or config.mem_len > 0
        return self.kv_dtype or (np.float32 if is_wide else np.float16)

    def save_cache(self, cache: CUDACache | CUDAWindowCache) -> dict[str, NDArray[Any]]:
        if isinstance(cache, CUDAWindowCache):
            return cache.save(self.device)
        return cache.save(self.device, cache.angles.shape[1])

    def load_cache(self, cache: CUDACache | CUDAWindowCache, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        if isinstance(cache, CUDAWindowCache):
            return cache.load(self.device, arrays, length)
        cache.load(self.device, arrays)

    def sampler(self, params: SamplingParams, vocab_size: int) -> CUDASampler:
        return CUDASampler(self.device, params, vocab_size)

    def scratch(self, name: str, n: int, width: int, dtype: DTypeLike = np.float32) -> DeviceArray:
        """An array [n, padded(width)] that is used again and again; its padding stays zero."""
        have = self._scratch.get(name)
        if have is None or have.shape[0] < n or have.shape[1] != padded(width):
            have = self._scratch[name] = self.device.zeros((n, padded(width)), dtype)
        return have[:n]

    def target(self, name: str, n: int, width: int, reader: DeviceMatrix | None) -> Target:
        """Scratch for vectors in the form that ``reader`` wants, or as float32 rows."""
        if reader is None or not reader.tiled:
            return Target(rows=self.scratch(f"{name} rows {width}", n, width))
        split = self.scratch(f"{name} split {width}", n, 2 * tiled(width), np.uint16)
        return Target(split=split, place=reader.place)

    def read(self, name: str, x: Coming, reader: DeviceMatrix) -> Vectors:
        """Launch what makes x, for ``reader``."""
        target = self.target(name, x.n, x.width, reader)
        x.write(target)
        return Vectors(target.split if reader.tiled else target.rows)

    def read_normed(self, x: Residual, norm: DeviceArray, eps: float, reader: DeviceMatrix) -> Vectors:
        """Launch what completes the residual, and leave x * norm and the sums of squares for ``reader``."""
        target = self.target("normed", x.n, x.width, reader)
        squares = self.scratch(f"squares {x.n_squares}", 1, FEW_COLUMNS * x.n_squares)[0]
        x.write(replace(target, norm=norm, squares=squares))
        return Vectors(target.split if reader.tiled else target.rows, squares, x.n_squares, eps)

    def normed_rows(self, x: Residual, norm: DeviceArray, eps: float) -> DeviceArray:
        """rmsnorm(x) * norm, float32 [n, padded(width)], by a kernel of its own."""
        y = self.scratch(f"rmsnorm {x.width}", x.n, x.width)
        launches.add_rmsnorm(self.device, x.x, x.plain(), x.bias, norm, x.width, eps, x.n, y)
        return y

    def products(self, x: DeviceArray, n: int, stack: Stack, name: str) -> DeviceArray:
        """x @ w.T for all parts of a stack, float32 [n, padded(stack.out_features)]; x: rows."""
        y = self.scratch(name, n, stack.out_features)
        for part in stack.parts:
            self.product(x, n, part.matrix, y, stack.out_features, part.first, part.step)
        return y

    def product(
        self, x: DeviceArray, n: int, w: DeviceMatrix, y: DeviceArray, y_width: int, first: int = 0, step: int = 1
    ) -> None:
        """y[:, first + step * o] = output o of x @ w.T; x: rows."""
        dim = w.in_features
        if n <= FEW_COLUMNS:
            if w.tiled:
                rows, x = x, self.scratch(f"split {dim}", n, 2 * tiled(dim), np.uint16)
                launches.split_bf16(self.device, rows, dim, n, x, w.place)
            return launches.linear(self.device, w, Vectors(x), n, y, y_width, first, step)
        high = self.scratch(f"high {dim}", n, dim, np.float16)
        low = self.scratch(f"low {dim}", n, dim, np.float16)
        inverse_scales = self.scratch("inverse_scales", 1, MAX_PROMPT_CHUNK)
        launches.split_halves(self.device, x, dim, n, high, low, inverse_scales, w.place)
        launches.linear_prompt(self.device, w, high, low, inverse_scales, n, y, y_width, first, step)

    def embedding(self, table: DeviceMatrix, tokens: Sequence[int] | DeviceArray, cache: AnyCache) -> Residual:
        n = len(tokens)
        if isinstance(tokens, Sequence):
            assert n <= MAX_PROMPT_CHUNK, "the caller cuts prompts into chunks"
            self.device.copy(cache.tokens[:n], np.asarray(tokens, np.int32))
            self.device.copy(cache.position, np.asarray([cache.position_of(cache.length)], np.int32))
            cache.limit = cache.bucket_of(cache.length + n)
        return self.rows_of(table, cache.tokens, n)

    def rows_of(self, table: DeviceMatrix, rows: DeviceArray, n: int) -> Residual:
        """x: n rows of a table, whose numbers are in device memory."""
        width = table.in_features
        x = self.scratch("x", n, width)

        def write(target: Target) -> None:
            launches.embedding(self.device, table, rows, n, x, target)

        return Residual(x, n, width, 1, write, lambda: write(Target()))

    def rmsnorm_qkv_rope(
        self, x: Residual, norm: DeviceArray, w: Stack, cache: AnyCache, layer: int, config: ModelConfig
    ) -> DeviceArray:
        q = self.scratch("q", x.n, config.q_dim)
        place = (cache.angles, cache.position, x.n, config, cache.keys[layer], cache.values[layer])
        if is_fused(x.n, w):
            matrix = w.parts[0].matrix
            vectors = self.read_normed(x, norm, config.norm_eps, matrix)
            if w.norms is None and cache.ring is None and launches.appends_in_qkv_rope(matrix, cache.keys):
                launches.qkv_rope(self.device, matrix, vectors, w.bias, *place, q)
                return q
            # the norm of a head, and its scale of 8 bits, need all of it, which no block of the product has; and
            # keys and values of float32 beside quantised weights, which only a memory_llama has, are not worth a kernel
            qkv = self.scratch("qkv", x.n, w.out_features)
            launches.linear(self.device, matrix, vectors, x.n, qkv, w.out_features)
        else:
            qkv = self.products(self.normed_rows(x, norm, config.norm_eps), x.n, w, "qkv")
        launches.rope_append(self.device, qkv, w.bias, w.norms, *place, cache.scales(layer), q, cache.ring)
        return q

    def attention(
        self, q: DeviceArray, cache: AnyCache, layer: int, config: ModelConfig, memory: DeviceArray | None = None
    ) -> Coming:
        n, window = q.shape[0], config.window_of(layer)
        limit = min(cache.limit, window + n) if window else cache.limit
        splits_of = launches.attention_splits if cache.ring is None else launches.window_splits
        n_splits = splits_of(self.device, n, limit, config)
        n_queries = n_splits * n * config.n_heads
        partial = self.scratch("partial", n_queries, config.head_dim)
        stats = self.scratch("stats", -(-n_queries // 8), 16)  # two numbers a query, in rows of 16
        keys, values = cache.keys[layer], cache.values[layer]
        if cache.ring is None:
            launches.attention_split(
                self.device, q, keys, values, cache.scales(layer), cache.position, n, n_splits, config, window,
                partial, stats,
            )  # fmt: skip
        else:
            launches.attention_window(
                self.device, q, keys, values, cache.angles, cache.position, n, n_splits, config, cache.ring,
                partial, stats,
            )  # fmt: skip

        def write(target: Target) -> None:
            kept = None if memory is None else (memory[layer], cache.position)
            launches.attention_merge(self.device, partial, stats, n, n_splits, config, target, kept)

        return Coming(n, config.q_dim, write)

    def linear_add(self, residual: Residual, x: Coming, w: DeviceMatrix, bias: DeviceArray | None = None) -> Residual:
        n, width = residual.n, residual.width
        if n > FEW_COLUMNS:
            target = self.target("hidden", n, x.width, None)
            x.write(target)
            delta = self.scratch("delta", n, width)
            self.product(target.rows, n, w, delta, width)
            return Residual(residual.x, n, width, 0, never, lambda: delta, bias)
        vectors = self.read("hidden", x, w)

        def plain() -> DeviceArray:
            delta = self.scratch("delta", n, width)
            launches.linear(self.device, w, vectors, n, delta, width)
            return delta

        def write(target: Target) -> None:
            launches.linear_add(self.device, w, vectors, n, residual.x, target, bias)

        return Residual(residual.x, n, width, launches.n_squares(w), write, plain, bias)

    def rmsnorm_gate_up_swiglu(self, x: Residual, norm: DeviceArray, w: Stack, eps: float) -> Coming:
        n, hidden = x.n, w.out_features // 2
        if is_fused(n, w):
            matrix = w.parts[0].matrix
            vectors = self.read_normed(x, norm, eps, matrix)
            return Coming(n, hidden, lambda target: launches.gate_up(self.device, matrix, vectors, n, target, w.bias))
        both = self.products(self.normed_rows(x, norm, eps), n, w, "gate_up")

        def write(target: Target) -> None:
            rows = target.rows if target.rows is not None else self.scratch(f"swiglu {hidden}", n, hidden)
            launches.swiglu(self.device, both, hidden, n, rows, w.bias)
            if target.split is not None:
                launches.split_bf16(self.device, rows, hidden, n, target.split, target.place)

        return Coming(n, hidden, write)

    def rmsnorm_head(
        self, x: Residual, norm: DeviceArray, w: DeviceMatrix, eps: float, n_logits: int, out: DeviceArray | None = None
    ) -> DeviceArray:
        logits = self.scratch("logits", n_logits, w.out_features) if out is None else out
        if n_logits and x.n <= FEW_COLUMNS:
            vectors = self.read_normed(x, norm, eps, w).last(n_logits)
            launches.linear(self.device, w, vectors, n_logits, logits, w.out_features)
        elif n_logits:
            h = self.normed_rows(x, norm, eps)[x.n - n_logits :]
            self.product(h, n_logits, w, logits, w.out_features)
        return logits

    def logits(self, n: int, config: ModelConfig) -> DeviceArray:
        return self.scratch("logits", n, config.vocab_size)

    def place(self, cache: CUDACache, position: int) -> None:
        cache.length = position
        self.device.copy(cache.position, np.asarray([position], np.int32))

    def rows_of_cache(self, cache: CUDACache, first: int, n: int) -> CUDACache:
        return cache.rows(self.device, first, n)

    def memory(self, rows: NDArray[np.float32]) -> DeviceArray:
        return self.device.upload(pad_memory(rows))

    def memory_rows(self, memory: DeviceArray, layer: int, rows: CUDACache, config: ModelConfig) -> Residual:
        """The kernel of embeddings takes rows of any table. It is no dependent launch, so the memory is all written."""
        table = DeviceMatrix("F32", memory[layer], None, WHOLE_ROW, config.mem_len, config.dim)
        return self.rows_of(table, rows.tokens, len(rows.tokens))

    def save_memory(self, memory: DeviceArray, config: ModelConfig) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.device.download(memory)[..., : config.dim])

    def load_memory(self, memory: DeviceArray, rows: NDArray[np.float32]) -> None:
        self.device.copy(memory, pad_memory(rows))

    def to_host(self, logits: DeviceArray, vocab_size: int) -> NDArray[np.float32]:
        host: NDArray[Any] = self.device.download(logits)
        return host[:, :vocab_size]

    def wait(self) -> None:
        self.device.event().wait()

    def decode(
        self, forward: Forward, state: DecodeState, sampler: CUDASampler, logits: DeviceArray, n_tokens: int
    ) -> Iterator[int]:
        """The host stays STEPS_AHEAD steps ahead of the tokens that it reads; what it does not read is dropped.

        Not ahead of a final step: see ``DecodeState``.
        """
        device, cache = self.device, state.cache
        token = cache.tokens[:1]
        # the sampler moves the position on, and the prompt is at its end already
        device.copy(cache.position, np.asarray([cache.position_of(cache.length) - 1], np.int32))
        sampler.launch(logits[-1], token, cache.position)

        def step() -> None:
            sampler.launch(forward(token, state)[-1], token, cache.position)

        length, kept = state.length, list[DeviceArray]()
        graphs: dict[Hashable, Graph | None] = {}  # by kind of step, such as the bucket of the context
        events = deque([device.event()])
        n_launched = 1
        try:
            for n_read in range(n_tokens):
                while n_launched < n_tokens and n_launched - n_read <= STEPS_AHEAD:
                    kind, is_final = state.next_step(length + n_launched - 1)
                    if is_final and n_launched > n_read:
                        break
                    state.begin(length + n_launched - 1)
                    if cache.counts_anew(at := length + n_launched - 1):
                        device.copy(cache.position, np.asarray([cache.position_of(at)], np.int32))
                    if kind not in graphs:
                        step()  # once as it is: compiles what is new, makes the scratch arrays
                        graphs[kind] = None
                    else:
                        graph = graphs[kind]
                        if graph is None:
                            kept += self._scratch.values()  # the graph's own, should a longer prompt replace them
                            graph = graphs[kind] = capture(device, step)
                        graph.launch()
                    events.append(device.event())
                    n_launched += 1
                state.length = length + n_read
                events.popleft().wait()
                made = int(sampler.ring[n_read % RING_SIZE])
                if made < 0:
                    raise LlamaGPUError(DAMAGED_LOGITS)
                yield made
        finally:
            if events:
                events[-1].wait()  # the steps ahead write to memory that goes with this function
            del kept

    def decode_each(
        self,
        forward: Callable[[Sequence[int], Any], DeviceArray],
        state: Any,
        sampler: CUDASampler,
        logits: DeviceArray,
        n_tokens: int,
    ) -> Iterator[int]:
        token, position = self.device.zeros((1,), np.int32), self.device.zeros((1,), np.int32)
        for n_made in range(n_tokens):
            sampler.launch(logits[-1], token, position)
            self.wait()
            made = int(sampler.ring[n_made % RING_SIZE])
            if made < 0:
                raise LlamaGPUError(DAMAGED_LOGITS)
            yield made
            if n_made + 1 < n_tokens:
                logits = forward([made], state)

    def rows(self) -> CUDARows:
        return CUDARows(self)


def capture(device: Device, step: Callable[[], None]) -> Graph:
    with device.capture() as finish:
        step()
    return finish()


def is_fused(n: int, w: Stack) -> bool:
    """Whether the fused kernels take it."""
    return n <= FEW_COLUMNS and len(w.parts) == 1


def pad_memory(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [n_layers, mem_len, dim] as they lie in device memory."""
    return pad_rows(rows.reshape(-1, rows.shape[2])).reshape(*rows.shape[:2], -1)


def never(target: Target) -> None:
    raise AssertionError("the residual of a prompt has no reader behind a norm")
