"""What a sequence keeps on the device: keys and values, where it is, and the token that comes next."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.backends.cpu.kv_int8 import PARTS, in_type
from llamagpu.backends.cpu.rope import rope_angles
from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.matrix import padded
from llamagpu.config import ModelConfig

MAX_PROMPT_CHUNK = 512  # tokens that one call may read
SMALLEST_BUCKET = 512


def bucket_of(n_positions: int, capacity: int, smallest: int = SMALLEST_BUCKET) -> int:
    """The number of positions that attention is launched for when n_positions are filled: 512, 2048, 8192, ...

    One graph is captured for each, so that a short text is not cut into the many parts that a long one needs.
    """
    bucket = smallest
    while bucket < n_positions:
        bucket *= 4
    return min(bucket, capacity)


class CUDACache:
    """keys, values: float16, float32 or int8 [n_layers, n_kv_heads, capacity, padded(head_dim)]; int8 times a scale,
    float32 [n_layers, n_kv_heads, capacity].

    position: int32 [1], positions filled, as kernels see it; ``length`` is the host's count. The two agree except while
    tokens are decoded ahead of the host. tokens: int32 [MAX_PROMPT_CHUNK], the tokens of a call; the first is where the
    sampler puts the next one. limit: the bucket of what is launched now. angles: float32 [capacity, head_dim], cos then
    sin of RoPE. A memory_llama has one bucket: its capacity is fixed.
    """

    rewindable = True
    ring = None

    def __init__(self, device: Device, config: ModelConfig, capacity: int, dtype: DTypeLike) -> None:
        self.smallest_bucket = capacity if config.mem_len else SMALLEST_BUCKET
        shape = (config.n_layers, config.n_kv_heads, capacity, padded(config.head_dim))
        self.capacity, self.length, self.limit = capacity, 0, capacity
        self.keys = device.zeros(shape, dtype)
        self.values = device.zeros(shape, dtype)
        scaled = np.dtype(dtype) == np.int8
        self._scales = [device.zeros(shape[:3], np.float32) for _ in range(2)] if scaled else None
        self.position = device.zeros((1,), np.int32)
        self.tokens = device.zeros((MAX_PROMPT_CHUNK,), np.int32)
        cos, sin = rope_angles(0, capacity, config)
        self.angles = device.upload(np.concatenate([cos, sin], axis=1))

    @property
    def room(self) -> int:
        return self.capacity - self.length

    def position_of(self, n: int) -> int:
        return n

    def counts_anew(self, n: int) -> bool:
        """Never: what is counted on the device ends with the capacity."""
        return False

    @property
    def cache(self) -> CUDACache:
        """For ``Backend.decode``: of an ordinary model the cache is the whole state."""
        return self

    def bucket_of(self, n_positions: int) -> int:
        return bucket_of(n_positions, self.capacity, self.smallest_bucket)

    def next_step(self, length: int) -> tuple[Hashable, bool]:
        return self.bucket_of(length + 1), False

    def begin(self, length: int) -> None:
        self.limit = self.bucket_of(length + 1)

    def rows(self, device: Device, first: int, n: int) -> CUDACache:
        """See ``Backend.rows_of_cache``. tokens are then the rows themselves; one row follows the position."""
        view = copy(self)
        view.length = first
        view.position = device.upload(np.asarray([first], np.int32))
        view.tokens = view.position if n == 1 else device.upload(np.arange(first, first + n, dtype=np.int32))
        return view

    def save(self, device: Device, head_dim: int) -> dict[str, NDArray[Any]]:
        """The filled positions as host arrays: see ``Backend.save_cache``."""
        parts = {name: device.download(getattr(self, name))[:, :, : self.length, :head_dim] for name in PARTS}
        if self._scales is not None:
            parts["scales"] = np.stack([device.download(scales)[..., : self.length] for scales in self._scales])
        return {name: np.ascontiguousarray(part) for name, part in parts.items()}

    def load(self, device: Device, arrays: Mapping[str, NDArray[Any]]) -> None:
        parts = in_type(arrays, scaled=self._scales is not None)
        n, head_dim = parts["keys"].shape[2:]
        for name in PARTS:
            target: DeviceArray = getattr(self, name)
            whole = np.zeros(target.shape, target.dtype)
            whole[:, :, :n, :head_dim] = parts[name]
            device.copy(target, whole)
        for scales, part in zip(self._scales or (), parts.get("scales", ()), strict=True):
            whole = np.zeros(scales.shape, np.float32)
            whole[..., :n] = part
            device.copy(scales, whole)

    def scales(self, layer: int) -> tuple[DeviceArray, DeviceArray] | None:
        """Of keys and values of 8 bits; else None."""
        return None if self._scales is None else (self._scales[0][layer], self._scales[1][layer])
