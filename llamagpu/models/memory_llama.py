"""Llama with a memory (llama2Rnn): tokens in chunks of M, of which only M rows per layer outlast the chunk.

The keys and values of a layer have 2M slots: M of the memory, then M of the chunk. A token of the chunk's place c sees
all of the memory and the chunk up to itself, and what its attention gives becomes row c of the memory. At the end of
the chunk every row m of the memory is renewed into its slot, through a feed-forward and a norm of its own:

    m = m + w2(silu(w1 n) * (w3 n)), n = rmsnorm(m)          the row itself stays as it was
    n = rmsnorm(m);  key = rope(wk n, at its slot);  value = wv n

and the next chunk begins in the same slots. So the state has one size for ever, and positions never go past 2M.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.protocol import Array, Backend, KVCache, Weight
from llamagpu.checkpoint import ORIGIN_MEMORY, Checkpoint
from llamagpu.errors import UsageError
from llamagpu.models.base import StateOptions
from llamagpu.models.llama import Llama, Loader

MEMORY_UPDATES = ("chunk", "token")
MOST_ROWS = 512  # of a chunk or a memory that go through the layers at once


@dataclass(frozen=True)
class MemoryLayer:
    """What the rows of a layer's memory go through before they become keys and values."""

    ffn_norm: Weight
    gate_up: Weight
    w_down: Weight
    norm: Weight


class MemoryState:
    """What a sequence has left: the slots of keys and values, the memory, and how many tokens there were.

    slots: a KVCache of 2M positions. memory: [n_layers, M, dim] on the backend. all_rows: the same slots, standing at
    the rows of the memory, in pieces of MOST_ROWS. one_row: standing at one, where it is renewed after each token.
    """

    room = None
    rewindable = False  # a memory that was renewed is not what it was

    def __init__(
        self,
        backend: Backend,
        mem_len: int,
        slots: KVCache,
        memory: Array,
        all_rows: Sequence[KVCache],
        each_token: bool,
    ) -> None:
        self.backend, self.mem_len, self.slots, self.memory = backend, mem_len, slots, memory
        self.all_rows, self.each_token = all_rows, each_token
        self.one_row = backend.rows_of_cache(slots, 0, 1) if each_token else None
        self.length = 0

    @property
    def place(self) -> int:
        """Of the next token in its chunk."""
        return self.length % self.mem_len

    @property
    def cache(self) -> KVCache:
        """The slots, standing at that of the next token."""
        self.slots.length = self.mem_len + self.place
        return self.slots

    def next_step(self, length: int) -> tuple[Hashable, bool]:
        """A step that renews slots of the memory is final: they hold what the tokens before it saw."""
        renews = self.each_token or (length + 1) % self.mem_len == 0
        return renews, renews

    def begin(self, length: int) -> None:
        self.length = length
        if self.each_token or self.place == 0:  # elsewhere the sampler has moved the position on
            self.backend.place(self.slots, self.mem_len + self.place)
        if self.one_row is not None:
            self.backend.place(self.one_row, self.place)


class MemoryLlama(Llama):
    """A Llama whose attention sees a memory and a chunk. Its state never grows."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None] = lambda n: None
    ) -> None:
        super().__init__(checkpoint, backend, on_loaded_bytes)
        load = Loader(checkpoint.tensors, on_loaded_bytes)
        self.memory_layers, origin = [], []
        for i in range(self.config.n_layers):
            attention = f"layers.{i}.attention"
            self.memory_layers.append(
                MemoryLayer(
                    ffn_norm=load(backend.weight, f"{attention}.ffn_norm"),
                    gate_up=load(backend.gate_up, f"{attention}.feed_forward.w1", f"{attention}.feed_forward.w3"),
                    w_down=load(backend.weight, f"{attention}.feed_forward.w2"),
                    norm=load(backend.weight, f"{attention}.memory_norm"),
                )
            )
            rows = checkpoint.tensors[f"{attention}.{ORIGIN_MEMORY}"]
            assert isinstance(rows, np.ndarray)
            origin.append(rows.astype(np.float32))
            on_loaded_bytes(rows.nbytes)
        self.origin_memory = np.stack(origin)

    def new_state(self, options: StateOptions) -> MemoryState:
        """The state before the first token; ``n_positions`` does not matter."""
        if options.memory_update not in MEMORY_UPDATES:
            raise UsageError(f"memory_update must be chunk or token, not {options.memory_update!r}")
        backend, mem_len = self.backend, self.config.mem_len
        slots = backend.kv_cache(self.config, 2 * mem_len, options.kv_bits)
        pieces = [
            backend.rows_of_cache(slots, first, min(MOST_ROWS, mem_len - first))
            for first in range(0, mem_len, MOST_ROWS)
        ]
        memory = backend.memory(self.origin_memory)
        state = MemoryState(backend, mem_len, slots, memory, pieces, options.memory_update == "token")
        with np.errstate(all="ignore"):
            self._renew(state, pieces)
        return state

    def forward(self, tokens: Any, state: Any, n_logits: int = 1) -> Array:
        """Run n tokens after those of the state, as many at once as the chunk has room for: see Llama.forward."""
        n, config, done = len(tokens), self.config, 0
        logits = self.backend.logits(n_logits, config) if n_logits else None
        with np.errstate(all="ignore"):  # damaged weights overflow: the sampler says so, in one line
            while done < n:
                room = 1 if state.each_token else min(MOST_ROWS, config.mem_len - state.place)
                piece = tokens[done : done + room] if n > 1 else tokens
                done += len(piece)
                wanted = min(len(piece), max(0, done - (n - n_logits)))  # of this piece
                end = n_logits - (n - done)
                out = logits[end - wanted : end] if logits is not None and wanted else None
                self._run(piece, state, wanted, out, on_host=n > 1 or isinstance(tokens, Sequence))
        return logits

    def _run(self, tokens: Any, state: MemoryState, n_logits: int, out: Array | None, on_host: bool) -> None:
        """Tokens of one chunk through the layers, and the memory renewed where they end it."""
        backend, config = self.backend, self.config
        if on_host and state.one_row is not None:
            backend.place(state.one_row, state.place)
        cache = state.cache
        x = backend.embedding(self.embedding, tokens, cache)
        for i, layer in enumerate(self.layers):
            q = backend.rmsnorm_qkv_rope(x, layer.attention_norm, layer.qkv, cache, i, config)
            x = backend.linear_add(x, backend.attention(q, cache, i, config, state.memory), layer.wo)
            h = backend.rmsnorm_gate_up_swiglu(x, layer.ffn_norm, layer.gate_up, config.norm_eps)
            x = backend.linear_add(x, h, layer.w_down)
        if n_logits:
            backend.rmsnorm_head(x, self.norm, self.head, config.norm_eps, n_logits, out)
        state.length += len(tokens)
        if state.one_row is not None:
            self._renew(state, [state.one_row])
        elif state.place == 0:
            self._renew(state, state.all_rows)

    def _renew(self, state: MemoryState, pieces: Sequence[KVCache]) -> None:
        """Rows of the memory into their slots, in all layers. (Their queries are computed too, and left alone.)"""
        backend, config = self.backend, self.config
        for rows in pieces:
            for i, (layer, memory_layer) in enumerate(zip(self.layers, self.memory_layers, strict=True)):
                x = backend.memory_rows(state.memory, i, rows, config)
                h = backend.rmsnorm_gate_up_swiglu(x, memory_layer.ffn_norm, memory_layer.gate_up, config.norm_eps)
                x = backend.linear_add(x, h, memory_layer.w_down)
                backend.rmsnorm_qkv_rope(x, memory_layer.norm, layer.qkv, rows, i, config)

    def decode(self, state: Any, sampler: Any, logits: Array, n_tokens: int) -> Iterator[int]:
        return self.backend.decode(self.forward, state, sampler, logits, n_tokens)

    def save_state(self, state: Any) -> dict[str, NDArray[Any]]:
        """memory [n_layers, M, dim]; keys, values [n_layers, n_kv_heads, M + c, head_dim] of the memory's slots and of
        the chunk's c tokens so far; of 8 bits also scales.

        Rows of the memory from c on are of the chunk before, or of a step that was run ahead: nothing reads them again.
        """
        return {"memory": self.backend.save_memory(state.memory, self.config), **self.backend.save_cache(state.cache)}

    def load_state(self, state: Any, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        """Arrays of ``save_state``, or the memory alone where a chunk begins: then keys and values are made from it."""
        config = self.config
        n_slots = config.mem_len + length % config.mem_len
        shape = (config.n_layers, config.n_kv_heads, n_slots, config.head_dim)
        expected = {"memory": self.origin_memory.shape, "keys": shape, "values": shape}
        expected |= {"scales": (2, *shape[:3])} if "scales" in arrays else {}
        found = {name: array.shape for name, array in arrays.items()}
        is_memory_alone = length % config.mem_len == 0 and found == {"memory": expected["memory"]}
        if found != expected and not is_memory_alone:
            raise ValueError(f"holds arrays of {found}, this model has {expected}")
        self.backend.load_memory(state.memory, arrays["memory"].astype(np.float32))
        if is_memory_alone:
            self._renew(state, state.all_rows)
        else:
            self.backend.load_cache(state.slots, {name: arrays[name] for name in found if name != "memory"}, n_slots)
        state.length = length
