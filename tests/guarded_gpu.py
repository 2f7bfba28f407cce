"""A GPU whose arrays stand between guard bands, as the emulator's do: a write outside an array is found at once.

With LLAMAGPU_PLAIN_MEMORY set there are no guard bands and no memory pool: every array is an allocation of its own
size, so that compute-sanitizer sees its true bounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from llamagpu.backends.cuda.cupy_device import CuPyDevice
from llamagpu.backends.cuda.device import DeviceArray, Launch
from llamagpu.backends.cuda.kernels import source
from tests.emulated_device import GUARD, GUARD_BYTES


class GuardedGPU(CuPyDevice):
    """CuPyDevice that looks at the guard bands of a kernel's arrays after each launch. Slow: for small tests."""

    def __init__(self, index: int = 0, sources: Callable[[str], str] = source) -> None:
        super().__init__(index, sources)
        self.plain = bool(os.environ.get("LLAMAGPU_PLAIN_MEMORY"))
        if self.plain:
            self.cupy.cuda.set_allocator(None)
        self.whole: dict[int, tuple[DeviceArray, int]] = {}  # by address of the allocation: bytes, size of the array

    @staticmethod
    @cache
    def shared() -> GuardedGPU:
        """One for all tests, so that each kernel is compiled once."""
        return GuardedGPU()

    def _empty(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        if self.plain:
            return super()._empty(shape, dtype)
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        padding = -n_bytes % 256
        whole = super()._empty((n_bytes + padding + 2 * GUARD_BYTES,), np.uint8)
        self.cupy.cuda.runtime.memsetAsync(whole.data.ptr, GUARD, whole.nbytes, self.stream.ptr)
        self.whole[whole.data.mem.ptr] = (whole, n_bytes)
        return whole[GUARD_BYTES : GUARD_BYTES + n_bytes].view(dtype).reshape(tuple(shape))

    def kernel(self, family: str, instance: str) -> Launch:
        launch = super().kernel(family, instance)

        def guarded(
            grid: tuple[int, ...],
            block: tuple[int, ...],
            args: Sequence[Any],
            shared_memory: int = 0,
            dependent: bool = False,
        ) -> None:
            launch(grid, block, args, shared_memory, dependent)
            if not self._capturing and not self.plain:
                for i, arg in enumerate(args):
                    if isinstance(arg, self.cupy.ndarray):
                        self._check_guards(instance, i, arg)

        return guarded

    def _check_guards(self, instance: str, index: int, array: DeviceArray) -> None:
        whole, n_bytes = self.whole[array.data.mem.ptr]
        host = self.download(whole)
        outside = np.concatenate([host[:GUARD_BYTES], host[GUARD_BYTES + n_bytes :]])
        assert (outside == GUARD).all(), f"{instance}: wrote outside argument {index}"
