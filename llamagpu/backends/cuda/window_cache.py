"""What an endless sequence keeps on the device: the first and the last tokens, and where the next one goes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.backends.cpu.attention_window import LONGEST_CHUNK, Ring, places_seen, saved
from llamagpu.backends.cpu.rope import rope_angles
from llamagpu.backends.cuda.cache import bucket_of
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded
from llamagpu.config import ModelConfig

LARGEST_NUMBER = 1 << 30  # tokens are counted on the device up to here, then anew: an int would end


class CUDAWindowCache:
    """keys, before RoPE, and values: float16 or float32 [n_layers, n_kv_heads, ring.n_places, padded(head_dim)].

    Of keys the two elements of a pair are side by side (kernels/attention_window.cu).
    The rest is as in CUDACache; capacity: what a token sees at most; *position: of ``position_of``.
    """

    room = None
    rewindable = False  # what left the window is gone

    def __init__(self, device: Device, config: ModelConfig, ring: Ring, dtype: DTypeLike) -> None:
        shape = (config.n_layers, config.n_kv_heads, ring.n_places, padded(config.head_dim))
        self.ring, self.config = ring, config
        self.capacity = self.limit = ring.n_kept
        self.length = 0
        self.keys = device.zeros(shape, dtype)
        self.values = device.zeros(shape, dtype)
        self.position = device.zeros((1,), np.int32)
        self.tokens = device.zeros((LONGEST_CHUNK,), np.int32)
        cos, sin = rope_angles(0, ring.n_kept, config)
        self.angles = device.upload(np.concatenate([cos, sin], axis=1))
        self.period = (LARGEST_NUMBER - ring.n_kept) // ring.n_turns * ring.n_turns

    @property
    def cache(self) -> CUDAWindowCache:
        """For ``Backend.decode``: it is the whole state."""
        return self

    def bucket_of(self, n_positions: int) -> int:
        return bucket_of(n_positions, self.capacity)

    def next_step(self, length: int) -> tuple[Hashable, bool]:
        """Never final: the ring has places to spare, so a few steps that are dropped overwrite nothing still seen."""
        return self.bucket_of(length + 1), False

    def begin(self, length: int) -> None:
        self.limit = self.bucket_of(length + 1)

    def position_of(self, n: int) -> int:
        """What stands for token n on the device: a number that fits, with the same place in the ring."""
        return n if n < LARGEST_NUMBER else LARGEST_NUMBER - self.period + (n - LARGEST_NUMBER) % self.period

    def counts_anew(self, n: int) -> bool:
        """Whether token n is not the one behind n - 1 on the device."""
        return n >= LARGEST_NUMBER and (n - LARGEST_NUMBER) % self.period == 0

    def scales(self, layer: int) -> None:
        """There are no 8 bits here."""

    def save(self, device: Device) -> dict[str, NDArray[Any]]:
        """What is kept, as host arrays: see ``Llama.save_state``."""
        places, order = places_seen(self.ring, self.length - 1, self.length), self.order()
        keys, values = (device.download(array)[:, :, places] for array in (self.keys, self.values))
        natural = np.empty_like(keys[..., : len(order)])
        natural[..., order] = keys[..., : len(order)]
        return saved(self.ring, natural, np.ascontiguousarray(values[..., : len(order)]))

    def load(self, device: Device, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        places, order = places_seen(self.ring, length - 1, length), self.order()
        for target, part in (
            (self.keys, arrays["window_keys"][..., order]),
            (self.values, arrays["window_values"]),
        ):
            whole = np.zeros(target.shape, target.dtype)
            whole[:, :, places, : len(order)] = part
            device.copy(target, whole)

    def order(self) -> NDArray[np.int64]:
        """Which element of a key stands where: pairs side by side."""
        elements = np.arange(self.config.head_dim)
        return elements.reshape(2, -1).T.reshape(-1) if self.config.rope_layout == "half_split" else elements
