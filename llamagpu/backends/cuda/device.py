"""What the CUDA backend needs of a device, and nothing more: memory, kernels, graphs, events.

Two implementations: CuPy on a GPU (cupy_device.py), and the emulator of the tests (tests/cuda_on_cpu). Everything above
this line, launch shapes and argument lists included, is the same on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

# An array on the device: shape, dtype, nbytes, slices along the first axis and reshape, as of NumPy. cupy.ndarray on a
# GPU; numpy.ndarray in the emulator.
DeviceArray = Any


class Launch(Protocol):
    """A kernel, ready to be launched."""

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared_memory: int = 0,
        dependent: bool = False,
    ) -> None:
        """args: device arrays (passed as pointers), NumPy scalars of the exact C type, or None for a null pointer.

        shared_memory: bytes of dynamic shared memory. dependent: the kernel waits for the one before it by itself
        (wait_for_previous_kernel of kernels/ptx.cuh), so it may begin earlier where the GPU can do that.
        """


class Event(Protocol):
    def wait(self) -> None:
        """Return once everything launched before the event has run."""


class Graph(Protocol):
    def launch(self) -> None:
        """Run the captured launches again, in order, with the same arguments."""


class Memory(Protocol):
    """What arrays are uploaded to."""

    def upload(self, array: NDArray[Any]) -> DeviceArray:
        """A new device array with a copy of ``array``."""
        ...

    def repeat(self, block: NDArray[np.uint8], n_bytes: int) -> DeviceArray:
        """A new array of n_bytes: ``block`` again and again, copied on the device."""
        ...


class Device(Memory, Protocol):
    """One GPU and one stream on it. Work runs in the order it is given; only ``download`` and events wait for it."""

    name: str
    description: str
    n_multiprocessors: int
    dependent_launch: Any  # None where ``dependent`` of a launch does nothing

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray: ...

    def copy(self, target: DeviceArray, array: NDArray[Any]) -> None:
        """Overwrite ``target`` with a host array of its size; ``array`` may be changed as soon as this returns."""

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """A host copy, once all work before it is done."""
        ...

    def pinned(self, n: int, dtype: DTypeLike) -> tuple[NDArray[Any], DeviceArray]:
        """Host memory that kernels can write: as the host sees it, and as an argument of kernels."""
        ...

    def kernel(self, family: str, instance: str) -> Launch:
        """A compiled kernel. The first use of a family compiles it; later ones are quick."""
        ...

    def capture(self) -> AbstractContextManager[Callable[[], Graph]]:
        """Launches inside the block are not run but recorded; calling what it gives, after it, is the graph.

        Inside, nothing may be allocated or copied, and every kernel must have been launched once before.
        """
        ...

    def event(self) -> Event:
        """An event after all work so far."""
        ...

    def seconds(self, work: Callable[[], None], repeats: int) -> float:
        """Median time that the device takes for what ``work`` launches, after one run of it that does not count."""
        ...

    def copy_bandwidth(self) -> float:
        """Bytes per second of a large copy within the device's memory; bytes read and bytes written both count."""
        ...

    def memory_in_use(self) -> int:
        """Bytes of the device's memory that are taken, by whomever."""
        ...


def i32(value: int) -> np.int32:
    """A C int argument."""
    return np.int32(value)


def f32(value: float) -> np.float32:
    """A C float argument."""
    return np.float32(value)
