"""The CUDA backend: a model that lives on a GPU, driven by launches alone.

Activations are float32; weights stay in the type they are stored in; keys and values are float16, or float32 where the
weights are. A decode step is captured once as a graph and replayed: the token, the position and the random state are in
device memory, so the host only launches, several steps ahead, and reads tokens behind the GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.cache import MAX_PROMPT_CHUNK, CUDACache
from llamagpu.backends.cuda.device import Device, DeviceArray, Graph
from llamagpu.backends.cuda.matrix import DeviceMatrix, padded, upload_matrix, upload_vector
from llamagpu.backends.cuda.sampler import RING_SIZE, CUDASampler
from llamagpu.backends.protocol import Forward
from llamagpu.checkpoint import Tensor
from llamagpu.config import ModelConfig
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.quantization.random import RandomMatrix
from llamagpu.sampling import DAMAGED_LOGITS, SamplingParams

STEPS_AHEAD = 4  # decode steps that wait on the GPU while the host looks at earlier tokens
LARGEST_HEAD_DIM = 1024  # kernels/attention.cu
FEW_COLUMNS = 8  # up to here one pass over the weights does; above, tensor cores


class Residual:
    """The residual stream x [n, padded(dim)] and a ``delta`` yet to be added: the next RMSNorm adds it on its way."""

    def __init__(self, x: DeviceArray, n: int) -> None:
        self.x, self.n = x, n
        self.delta: DeviceArray | None = None


class CUDABackend:
    """The operations of backends/protocol.py as launches on one device, real or emulated."""

    name = "cuda"

    def __init__(self, device: Device, kv_dtype: DTypeLike | None = None) -> None:
        """kv_dtype: of keys and values; None takes float32 if a matrix of the model is float32, else float16."""
        self.device = device
        self.kv_dtype = kv_dtype
        self._scratch: dict[str, DeviceArray] = {}
        self._float32_weights = False

    def weight(self, tensor: Tensor) -> DeviceMatrix | DeviceArray:
        if isinstance(tensor, RandomMatrix):
            tensor = tensor.materialize()
        if len(tensor.shape) == 1:
            assert isinstance(tensor, np.ndarray)
            return upload_vector(self.device, tensor)
        matrix = upload_matrix(self.device, tensor)
        self._float32_weights |= matrix.kind == "F32"
        return matrix

    def kv_cache(self, config: ModelConfig, capacity: int) -> CUDACache:
        if config.head_dim > LARGEST_HEAD_DIM:
            raise UsageError(
                f"heads of {config.head_dim} elements are too wide for the GPU kernels"
                f" (at most {LARGEST_HEAD_DIM}): --device cpu runs this model"
            )
        dtype = self.kv_dtype or (np.float32 if self._float32_weights else np.float16)
        return CUDACache(self.device, config, capacity, dtype)

    def sampler(self, params: SamplingParams, vocab_size: int) -> CUDASampler:
        return CUDASampler(self.device, params, vocab_size)

    def scratch(self, name: str, n: int, width: int, dtype: DTypeLike = np.float32) -> DeviceArray:
        """An array [n, padded(width)] that is used again and again; its padding stays zero."""
        have = self._scratch.get(name)
        if have is None or have.shape[0] < n or have.shape[1] != padded(width):
            have = self._scratch[name] = self.device.zeros((n, padded(width)), dtype)
        return have[:n]

    def embedding(self, table: DeviceMatrix, tokens: Sequence[int] | DeviceArray, cache: CUDACache) -> Residual:
        n = len(tokens)
        if isinstance(tokens, Sequence):
            assert n <= MAX_PROMPT_CHUNK, "the caller cuts prompts into chunks"
            self.device.copy(cache.tokens[:n], np.asarray(tokens, np.int32))
            self.device.copy(cache.position, np.asarray([cache.length], np.int32))
        x = self.scratch("x", n, table.in_features)
        launches.embedding(self.device, table, cache.tokens, n, x)
        return Residual(x, n)

    def _rmsnorm(self, x: Residual, weight: DeviceArray, dim: int, eps: float) -> DeviceArray:
        y = self.scratch("normed", x.n, dim)
        launches.add_rmsnorm(self.device, x.x, x.delta, weight, dim, eps, x.n, y)
        x.delta = None
        return y

    def _linear(self, x: DeviceArray, w: DeviceMatrix, n: int, y: DeviceArray) -> None:
        """y = x @ w.T by the kernel for few columns or the one for many."""
        if n <= FEW_COLUMNS:
            launches.linear(self.device, w, x, n, y)
        else:
            self._prompt_products(x, n, (w, y))

    def _prompt_products(self, x: DeviceArray, n: int, *products: tuple[DeviceMatrix, DeviceArray]) -> None:
        """y = x @ w.T on tensor cores for each (w, y), all with the same x."""
        dim = products[0][0].in_features
        high = self.scratch(f"high {dim}", n, dim, np.float16)
        low = self.scratch(f"low {dim}", n, dim, np.float16)
        inverse_scales = self.scratch("inverse_scales", 1, MAX_PROMPT_CHUNK)
        launches.split_halves(self.device, x, dim, n, high, low, inverse_scales)
        for w, y in products:
            launches.linear_prompt(self.device, w, high, low, inverse_scales, n, y)

    def rmsnorm_qkv_rope(
        self,
        x: Residual,
        norm: DeviceArray,
        wq: DeviceMatrix,
        wk: DeviceMatrix,
        wv: DeviceMatrix,
        cache: CUDACache,
        layer: int,
        config: ModelConfig,
    ) -> DeviceArray:
        require_same_type(wq, wk, wv)
        h = self._rmsnorm(x, norm, config.dim, config.norm_eps)
        q = self.scratch("q", x.n, config.q_dim)
        keys, values = cache.keys[layer], cache.values[layer]
        place = (cache.angles, cache.position, x.n, config, keys, values, q)
        if x.n <= FEW_COLUMNS:
            launches.qkv_rope(self.device, wq, wk, wv, h, *place)
        else:
            k, v = self.scratch("k", x.n, config.kv_dim), self.scratch("v", x.n, config.kv_dim)
            self._prompt_products(h, x.n, (wq, q), (wk, k), (wv, v))
            launches.rope_append(self.device, k, v, *place)
        return q

    def attention(self, q: DeviceArray, cache: CUDACache, layer: int, config: ModelConfig) -> DeviceArray:
        n = q.shape[0]
        n_splits = launches.attention_splits(self.device, n, cache.capacity, config)
        out = self.scratch("attention", n, config.q_dim)
        n_queries = n_splits * n * config.n_heads
        partial = self.scratch("partial", n_queries, config.head_dim)
        stats = self.scratch("stats", -(-n_queries // 8), 16)  # two numbers a query, in rows of 16
        keys, values = cache.keys[layer], cache.values[layer]
        launches.attention(
            self.device, q, keys, values, cache.position, n, n_splits, config, partial, stats, out
        )  # fmt: skip
        return out

    def linear_add(self, residual: Residual, x: DeviceArray, w: DeviceMatrix) -> Residual:
        residual.delta = self.scratch("delta", residual.n, w.out_features)
        self._linear(x, w, residual.n, residual.delta)
        return residual

    def rmsnorm_gate_up_swiglu(
        self, x: Residual, norm: DeviceArray, w_gate: DeviceMatrix, w_up: DeviceMatrix, eps: float
    ) -> DeviceArray:
        require_same_type(w_gate, w_up)
        h = self._rmsnorm(x, norm, w_gate.in_features, eps)
        y = self.scratch("hidden", x.n, w_gate.out_features)
        if x.n <= FEW_COLUMNS:
            launches.gate_up(self.device, w_gate, w_up, h, x.n, y)
        else:
            up = self.scratch("up", x.n, w_up.out_features)
            self._prompt_products(h, x.n, (w_gate, y), (w_up, up))
            launches.swiglu(self.device, y, up, w_up.out_features, x.n, y)
        return y

    def rmsnorm_head(self, x: Residual, norm: DeviceArray, w: DeviceMatrix, eps: float, n_logits: int) -> DeviceArray:
        logits = self.scratch("logits", n_logits, w.out_features)
        if n_logits:
            h = self._rmsnorm(x, norm, w.in_features, eps)[x.n - n_logits :]
            self._linear(h, w, n_logits, logits)
        return logits

    def to_host(self, logits: DeviceArray, vocab_size: int) -> NDArray[np.float32]:
        host: NDArray[Any] = self.device.download(logits)
        return host[:, :vocab_size]

    def wait(self) -> None:
        self.device.event().wait()

    def decode(
        self, forward: Forward, cache: CUDACache, sampler: CUDASampler, logits: DeviceArray, n_tokens: int
    ) -> Iterator[int]:
        """The host stays STEPS_AHEAD steps ahead of the tokens that it reads; what it does not read is dropped."""
        device, token = self.device, cache.tokens[:1]
        # the sampler moves the position on, and the prompt is at its end already
        device.copy(cache.position, np.asarray([cache.length - 1], np.int32))
        sampler.launch(logits[-1], token, cache.position)

        def step() -> None:
            sampler.launch(forward(token, cache)[-1], token, cache.position)

        length, graph, kept = cache.length, None, []
        events = deque([device.event()])
        n_launched = 1
        try:
            for n_read in range(n_tokens):
                while n_launched < n_tokens and n_launched - n_read <= STEPS_AHEAD:
                    if n_launched == 1:
                        step()  # once as it is: compiles what is new, makes the scratch arrays
                    else:
                        if graph is None:
                            kept = list(self._scratch.values())  # the graph's own, should a longer prompt replace them
                            graph = capture(device, step)
                        graph.launch()
                    events.append(device.event())
                    n_launched += 1
                events.popleft().wait()
                made = int(sampler.ring[n_read % RING_SIZE])
                if made < 0:
                    raise LlamaGPUError(DAMAGED_LOGITS)
                cache.length = length + n_read
                yield made
        finally:
            if events:
                events[-1].wait()  # the steps ahead write to memory that goes with this function
            del kept


def capture(device: Device, step: Callable[[], None]) -> Graph:
    with device.capture() as finish:
        step()
    return finish()


def require_same_type(*matrices: DeviceMatrix) -> None:
    """Matrices that one kernel reads together must be of one type."""
    if len({(matrix.kind, matrix.group_size) for matrix in matrices}) > 1:
        kinds = ", ".join(matrix.kind for matrix in matrices)
        raise UsageError(f"a layer mixes weight types ({kinds}), which the GPU kernels do not: --device cpu runs it")
