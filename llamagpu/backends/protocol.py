"""The operations that a model is written in. A model file calls these and nothing else; a backend provides them.

Arrays are the backend's own (NumPy on the CPU, device arrays on a GPU) and leave it by ``to_host`` alone. n is the
number of tokens of one call: 1 while decoding, up to a chunk while reading a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.recurrent import RecurrentOps
from llamagpu.backends.rows import RowOperations
from llamagpu.checkpoint import Tensor
from llamagpu.config import ModelConfig
from llamagpu.sampling import SamplingParams

Array = Any  # of the backend
Weight = Any  # a matrix or vector as the backend keeps it


# Keys and values of the tokens so far, as the backend keeps them: ``length`` of ``capacity`` positions are filled.
KVCache = Any

# Runs tokens after those of a state; logits after the last of them. Tokens are ids of the host, or the backend's own
# array of them.
Forward = Callable[[Any, Any], Array]


class DecodeState(Protocol):
    """What ``Backend.decode`` asks of a state, if it runs ahead of the tokens that are taken. A KVCache is one.

    length: tokens before the next one. cache: where the next one goes.
    """

    length: int

    @property
    def cache(self) -> KVCache: ...

    def next_step(self, length: int) -> tuple[Hashable, bool]:
        """The step that runs a token after ``length`` others: its kind, and whether it is final.

        Steps of one kind are the same work, which a backend may capture once. What other steps write is written again
        when they are run again; a final one overwrites what the steps before it need, so it waits until its own token
        has been taken.
        """
        ...

    def begin(self, length: int) -> None:
        """Stand after ``length`` tokens: that step comes now."""


class Sampler(Protocol):
    """Chooses tokens for ``Backend.decode``; remembers the draws made and the tokens seen."""

    def see(self, tokens: Sequence[int]) -> None:
        """Count tokens of the prompt, for the repetition penalty."""

    def skip(self, n_drawn: int) -> None:
        """Go on as after so many draws. Before the first."""


class Backend(RecurrentOps, Protocol):
    """One device. What recurrent models ask of it beside this: ``recurrent.py``."""

    name: str

    def weight(self, tensor: Tensor) -> Weight:
        """Make a stored tensor usable by the operations below."""

    def qkv(
        self,
        wq: Tensor,
        wk: Tensor,
        wv: Tensor,
        config: ModelConfig,
        biases: Sequence[NDArray[Any]] | None = None,
        norms: Sequence[NDArray[Any]] | None = None,
    ) -> Weight:
        """The three matrices that read one vector, as ``rmsnorm_qkv_rope`` takes them.

        biases: of q, k, v. norms: weights [head_dim] of the RMSNorm of each head of q and of k.
        """

    def gate_up(self, gate: Tensor, up: Tensor, biases: Sequence[NDArray[Any]] | None = None) -> Weight:
        """The two matrices that read one vector, as ``rmsnorm_gate_up_swiglu`` takes them, and the biases of both."""

    def kv_cache(self, config: ModelConfig, capacity: int, kv_bits: int = 16) -> KVCache:
        """kv_bits: 16 for keys and values as the backend keeps them, 8 for whole numbers with a scale per head."""

    def window_cache(self, config: ModelConfig, window: int, sinks: int) -> KVCache:
        """A cache of the first ``sinks`` and the last ``window`` tokens, that never fills. Its ``room`` is None, its
        ``ring`` says where tokens are; of a cache as above ``ring`` is None."""

    def save_cache(self, cache: KVCache) -> dict[str, NDArray[Any]]:
        """The filled positions of keys and values [n_layers, n_kv_heads, length, head_dim], and of the scales."""
        ...

    def load_cache(self, cache: KVCache, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        """The inverse, for arrays of the same shapes, saved after ``length`` tokens; types are converted."""

    def sampler(self, params: SamplingParams, vocab_size: int) -> Sampler: ...

    def embedding(self, table: Weight, tokens: Any, cache: KVCache) -> Array:
        """Rows ``tokens`` of the table: x [n, dim]. The first operation of a call."""

    def rmsnorm_qkv_rope(
        self, x: Array, norm: Weight, w: Weight, cache: KVCache, layer: int, config: ModelConfig
    ) -> Array:
        """h = rmsnorm(x) * norm; q, k, v of it with bias; q, k normed by head and turned by RoPE at positions
        cache.length ...; k, v stored in the cache.

        Returns q [n, n_heads, head_dim]. Does not move ``cache.length``: all layers of a step share it.
        """

    def attention(
        self, q: Array, cache: KVCache, layer: int, config: ModelConfig, memory: Array | None = None
    ) -> Array:
        """Causal attention of n queries at positions cache.length ... over the cache: [n, n_heads * head_dim].

        A token sees config.window_of(layer) positions, its own included. memory: of ``memory``, where this layer's
        results are kept as well, that of position p in row p - config.mem_len.
        """

    def linear_add(self, residual: Array, x: Array, w: Weight, bias: Weight | None = None) -> Array:
        """residual + bias + x @ w.T, [n, dim]; may reuse the memory of ``residual``. bias [dim], None for none."""

    def rmsnorm_gate_up_swiglu(self, x: Array, norm: Weight, w: Weight, eps: float) -> Array:
        """silu(h @ gate.T) * (h @ up.T) with h = rmsnorm(x) * norm, products with bias: [n, hidden_dim]."""

    def rmsnorm_head(
        self, x: Array, norm: Weight, w: Weight, eps: float, n_logits: int, out: Array | None = None
    ) -> Array:
        """Logits of the last ``n_logits`` rows of x: (rmsnorm(x) * norm) @ w.T, [n_logits, vocab_size].

        out: where to write them, as many rows of ``logits``.
        """

    def logits(self, n: int, config: ModelConfig) -> Array:
        """Room for n rows of logits, for a call that computes them in parts; good until the next call."""

    def place(self, cache: KVCache, position: int) -> None:
        """Let the cache stand at a position, as if so many were filled, in device memory too."""

    def rows_of_cache(self, cache: KVCache, first: int, n: int) -> KVCache:
        """The same keys and values, standing at position ``first``, for ``memory_rows`` of n rows."""

    def memory(self, rows: NDArray[np.float32]) -> Array:
        """Rows [n_layers, mem_len, dim] that are changed as tokens go by: see ``attention``."""

    def memory_rows(self, memory: Array, layer: int, rows: KVCache, config: ModelConfig) -> Array:
        """x [n, dim]: a copy of the memory's rows at the position of ``rows`` (``rows_of_cache``) and after it."""

    def save_memory(self, memory: Array, config: ModelConfig) -> NDArray[np.float32]: ...

    def load_memory(self, memory: Array, rows: NDArray[np.float32]) -> None: ...

    def to_host(self, logits: Array, vocab_size: int) -> NDArray[np.float32]:
        """Logits as a NumPy array [n_logits, vocab_size], good until the next call."""
        ...

    def wait(self) -> None:
        """Return once all work so far is done: for clocks and progress bars."""

    def decode(self, forward: Forward, state: DecodeState, sampler: Any, logits: Array, n_tokens: int) -> Iterator[int]:
        """Sample a token from the last row of ``logits``, run it, sample the next: n_tokens in all.

        As each is given, ``state.length`` counts the tokens before it. The last one is not run. Tokens may be computed
        ahead of those taken, where the state allows it (see ``DecodeState``); leaving early drops them. Raises
        LlamaGPUError for logits that are not numbers.
        """
        ...

    def decode_each(
        self, forward: Callable[[Sequence[int], Any], Array], state: Any, sampler: Any, logits: Array, n_tokens: int
    ) -> Iterator[int]:
        """The same for any state: each token is taken before it is run, and nothing is computed ahead."""
        ...

    def rows(self) -> RowOperations:
        """The operations of models that are written over whole rows."""
        ...
