"""Twin of kernels/attention_window.cu: attention over the first and the last tokens, positions counted among them.

What is kept of an endless sequence (StreamingLLM, Xiao et al. 2023): the first S tokens, on which attention leans, and
the last W. Token t sees those of them that are not after it, at positions counted in the cache: the sinks at 0 ... S-1,
the others by age, itself at min(t, S + W - 1). So no position is larger than in a text of S + W tokens, and a key's
position falls by one with each token: keys are kept as they are before RoPE, and turned as they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention import attention
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.config import ModelConfig

LONGEST_CHUNK = 512  # tokens of one call

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Ring:
    """Where tokens are kept: the first ``sinks`` each at its own place, the others by turns at the places behind.

    The tokens of a chunk are stored before any of them is read, and the first still sees ``window`` tokens: so there
    are LONGEST_CHUNK - 1 places more than any token sees.
    """

    window: int
    sinks: int

    @property
    def n_kept(self) -> int:
        """Tokens that one sees, at most: S + W."""
        return self.sinks + self.window

    @property
    def n_turns(self) -> int:
        return self.window + LONGEST_CHUNK - 1

    @property
    def n_places(self) -> int:
        return self.sinks + self.n_turns

    def seen(self, start: int, end: int) -> Places:
        """The tokens that tokens start ... end - 1 see between them, in order, themselves included."""
        n_sinks = min(self.sinks, end)
        oldest = max(n_sinks, start + 1 - self.window)
        return np.concatenate([np.arange(n_sinks), np.arange(oldest, end)])

    def places(self, tokens: Places) -> Places:
        return np.where(tokens < self.sinks, tokens, self.sinks + (tokens - self.sinks) % self.n_turns)


@lru_cache(maxsize=1)  # all layers of a step ask for the same
def places_seen(ring: Ring, start: int, end: int) -> Places:
    return ring.places(ring.seen(start, end))


@dataclass
class CPUWindowCache:
    """keys, before RoPE, and values: float32 [n_layers, n_kv_heads, ring.n_places, head_dim].

    length: tokens so far, of which the ring holds the first and the last.
    """

    keys: Floats
    values: Floats
    ring: Ring
    length: int = 0
    room: None = None
    rewindable = False  # what left the window is gone

    @property
    def capacity(self) -> int:
        """Positions that a token sees, at most."""
        return self.ring.n_kept

    def append(self, layer: int, keys: Floats, values: Floats) -> None:
        """Keep keys and values [n, n_kv_heads, head_dim] of the next n tokens, without moving on."""
        assert len(keys) <= LONGEST_CHUNK, "the caller cuts prompts into chunks"
        places = self.ring.places(np.arange(self.length, self.length + len(keys)))
        self.keys[layer][:, places], self.values[layer][:, places] = keys.transpose(1, 0, 2), values.transpose(1, 0, 2)

    def read(self, layer: int, n: int) -> tuple[Floats, Floats]:
        """Keys and values [n_kv_heads, n_seen, head_dim] of what the next n tokens see, in order."""
        places = places_seen(self.ring, self.length, self.length + n)
        return self.keys[layer][:, places], self.values[layer][:, places]

    def save(self) -> dict[str, NDArray[Any]]:
        places = places_seen(self.ring, self.length - 1, self.length)
        return saved(self.ring, self.keys[:, :, places], self.values[:, :, places])

    def load(self, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        places = places_seen(self.ring, length - 1, length)
        self.keys[:, :, places], self.values[:, :, places] = arrays["window_keys"], arrays["window_values"]


def saved(ring: Ring, keys: NDArray[Any], values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """keys, before RoPE, and values [n_layers, n_kv_heads, kept, head_dim], in order, under names of their own."""
    of_ring = np.asarray([ring.window, ring.sinks], np.int64)
    return {"window_keys": keys, "window_values": values, "window_and_sinks": of_ring}


def attention_window(
    q: Floats, keys: Floats, values: Floats, start: int, ring: Ring, config: ModelConfig
) -> NDArray[np.float32]:
    """Attention of tokens start ... start + n - 1 over what each of them sees, RoPE at positions in the cache.

    q: [n, n_heads, head_dim]; keys, values: [n_kv_heads, n_seen, head_dim] of the tokens ring.seen(start, start + n); q
    and keys before RoPE. Result: [n, n_heads * head_dim].

    While nothing is forgotten, and for one token at a time, that is attention at positions 0 ... n_seen - 1. In a chunk
    that goes on from there the same key has another position for each token. RoPE knows differences alone: those
    between tokens of the window are what they are in the text, so such keys are turned by their place in this list, as
    if it went on; for the sinks a second copy of the queries is turned by their positions in the cache.
    """
    n, n_seen, end, layout = len(q), keys.shape[1], start + len(q), config.rope_layout
    turned = rope(keys.transpose(1, 0, 2), *rope_angles(0, n_seen, config), layout).transpose(1, 0, 2)
    of_window = rope(q, *rope_angles(n_seen - n, n, config), layout)
    if n == 1 or end <= ring.n_kept:
        return attention(of_window, turned, values, n_seen - n)
    positions = np.minimum(np.arange(start, end), ring.n_kept - 1)
    cos, sin = rope_angles(0, ring.n_kept, config)
    of_sinks = rope(q, cos[positions], sin[positions], layout)

    (n_kv_heads, _, head_dim), n_heads, n_sinks = keys.shape, q.shape[1], min(ring.sinks, end)
    group = n_heads // n_kv_heads
    scale = np.float32(1 / np.sqrt(head_dim))
    # [n_kv_heads, group * n, head_dim]: all queries that share a key head as one matrix
    for_window, for_sinks = (
        (x * scale).transpose(1, 0, 2).reshape(n_kv_heads, group * n, head_dim) for x in (of_window, of_sinks)
    )
    tokens = ring.seen(start, end)
    behind = np.arange(start, end)[:, None] - tokens
    hidden = (behind < 0) | ((behind >= ring.window) & (tokens >= ring.sinks))
    out = np.empty((n_kv_heads, group * n, head_dim), np.float32)
    for head in range(n_kv_heads):
        sinks, window = turned[head, :n_sinks], turned[head, n_sinks:]
        scores = np.concatenate([for_sinks[head] @ sinks.T, for_window[head] @ window.T], axis=1)
        scores.reshape(group, n, n_seen)[:, hidden] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        np.matmul(scores, values[head], out=out[head])
        out[head] /= scores.sum(axis=-1, keepdims=True)
    return out.reshape(n_heads, n, head_dim).transpose(1, 0, 2).reshape(n, n_heads * head_dim)
