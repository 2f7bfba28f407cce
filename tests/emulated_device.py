"""The emulator as a device: NumPy buffers, kernels compiled by g++, the same driver code above as on a GPU.

Stricter than a GPU where that finds mistakes: every array stands between guard bands that are looked at after each
launch and whose bits are NaN, memory that was not asked to be zero is NaN, and while a graph is captured, allocation,
copies and kernels that never ran are errors.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.backends.cuda.device import Graph, Launch
from llamagpu.backends.cuda.kernels import INSTANCES, source
from tests.cuda_on_cpu.build import EmulatorError, Module, have_compiler

GUARD_BYTES = 512
GUARD = 0xFF  # all bits set is NaN in every float type


def reason_for_no_emulator() -> str:
    """Why kernels cannot be run on this CPU; empty if they can."""
    return "" if have_compiler() else "no C++ compiler: the emulator needs g++ (CXX names another)"


def guarded(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """An array of NaN bits, 256-byte aligned as CuPy's are, with GUARD_BYTES of the same before and after it."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = np.full(n_bytes + 2 * GUARD_BYTES + 256, GUARD, np.uint8)
    start = GUARD_BYTES + -(whole.ctypes.data + GUARD_BYTES) % 256
    return whole[start : start + n_bytes].view(dtype).reshape(shape)


def whole_of(array: NDArray[Any]) -> NDArray[np.uint8] | None:
    """The allocation that an array of ``guarded`` is part of."""
    base: Any = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return base if base.dtype == np.uint8 else None


def first_argument(instance: str) -> str:
    """Of ``linear<F16, 4>`` it is F16."""
    return instance.partition("<")[2].partition(",")[0].rstrip(">")


@cache
def load(family: str, text: str, instances: tuple[str, ...], check: bool) -> Module:
    return Module(f"{family}.cu", text, instances, check=check)


class EmulatedEvent:
    def wait(self) -> None:
        """Everything runs at once here."""


class EmulatedGraph:
    def __init__(self, launches: list[Callable[[], None]]) -> None:
        self.launches = launches

    def launch(self) -> None:
        for launch in self.launches:
            launch()


class EmulatedDevice:
    """llamagpu.backends.cuda.device.Device on the CPU. seed: order of threads and blocks; 0: first come, first served.

    check: run the checking build (races, bounds, reads of what was never written). sources: text of a family.
    instances: what to compile along with an instance of a family; compiling takes longer than running.
    """

    name = "emulator"
    description = "the CUDA emulator"
    dependent_launch = None
    n_multiprocessors = 3  # a few blocks per attention head, and not a round number

    def __init__(
        self,
        seed: int = 0,
        check: bool = False,
        sources: Callable[[str], str] = source,
        instances: Callable[[str], tuple[str, ...]] | None = None,
    ) -> None:
        self.seed, self.check, self.sources, self.instances = seed, check, sources, instances
        self.used: set[tuple[str, str]] = set()  # family, instance
        self.recorded: list[Callable[[], None]] | None = None
        self.allocations: dict[int, tuple[NDArray[np.uint8], int, int]] = {}
        self.n_launches = 0
        self.last_blocks = 0  # of each grid, that are run; 0: all

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Memory as cudaMalloc gives it: anything may be in it."""
        self._not_while_capturing("allocation")
        array = guarded(shape, dtype)
        whole = whole_of(array)
        assert whole is not None
        start = array.ctypes.data - whole.ctypes.data
        self.allocations[whole.ctypes.data] = (whole, start, start + array.nbytes)
        return array

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        array = self.empty(shape, dtype)
        array[...] = np.zeros((), dtype)
        return array

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def sparse(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Zeros without guard bands, of which only what is touched is kept: for arrays of many gigabytes."""
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with tempfile.TemporaryFile() as file:  # with holes: unlike memory, it may be larger than the machine has
            file.truncate(n_bytes)
            whole = np.frombuffer(mmap.mmap(file.fileno(), n_bytes), np.uint8)
        self.allocations[whole.ctypes.data] = (whole, 0, n_bytes)
        return whole.view(dtype).reshape(shape)

    def repeat(self, block: NDArray[np.uint8], n_bytes: int) -> NDArray[Any]:
        return self.upload(np.resize(block, n_bytes))

    def copy(self, target: NDArray[Any], array: NDArray[Any]) -> None:
        self._not_while_capturing("a copy")
        assert target.shape == array.shape, "a copy of another size"
        assert target.dtype == array.dtype, "a copy of another type"
        target[...] = array

    def download(self, array: NDArray[Any]) -> NDArray[Any]:
        self._not_while_capturing("a copy")
        return array.copy()

    def pinned(self, n: int, dtype: DTypeLike) -> tuple[NDArray[Any], NDArray[Any]]:
        array = self.zeros((n,), dtype)
        return array, array

    def kernel(self, family: str, instance: str) -> Launch:
        assert self.instances or instance in INSTANCES[family], f"{instance} is not in the list of instances"
        if (family, instance) not in self.used:
            self._not_while_capturing("the first use of a kernel")
            self.used.add((family, instance))
        # the checking build is slow to compile, so it is made of what is used; the plain one of all that differ only in
        # what follows the first template argument
        alike = tuple(i for i in INSTANCES.get(family, ()) if first_argument(i) == first_argument(instance))
        instances = (instance,) if self.check else alike
        if self.instances:
            instances = self.instances(family)
        module = load(family, self.sources(family), instances, self.check)
        function = module.function(instance)

        def launch(
            grid: tuple[int, ...],
            block: tuple[int, ...],
            args: Sequence[Any],
            shared_memory: int = 0,
            dependent: bool = False,
        ) -> None:
            def run() -> None:
                left_out = math.prod(grid) - self.last_blocks if self.last_blocks else 0
                module.configure(seed=self.seed, first_block=max(0, left_out))
                function(grid, block, args, shared_memory)
                self._check_guards(instance, args)
                self.n_launches += 1

            if self.recorded is None:
                run()
            else:
                self.recorded.append(run)

        return launch

    @contextmanager
    def capture(self) -> Iterator[Callable[[], Graph]]:
        launches: list[Callable[[], None]] = []
        self.recorded = launches
        try:
            yield lambda: EmulatedGraph(launches)
        finally:
            self.recorded = None

    def event(self) -> EmulatedEvent:
        return EmulatedEvent()

    def seconds(self, work: Callable[[], None], repeats: int) -> float:
        """By the host's clock: here the host does the work."""
        times = []
        work()
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return median(times)

    def copy_bandwidth(self) -> float:
        source = np.ones(1 << 20, np.uint8)
        target = np.zeros_like(source)
        return 2 * source.nbytes / self.seconds(lambda: np.copyto(target, source), 5)

    def memory_in_use(self) -> int:
        """Of all arrays ever made: the guard bands are looked at until the end."""
        return sum(stop - start for _, start, stop in self.allocations.values())

    def _not_while_capturing(self, what: str) -> None:
        if self.recorded is not None:
            raise EmulatorError(f"{what} while a graph is captured")

    def _check_guards(self, instance: str, args: Sequence[Any]) -> None:
        for i, arg in enumerate(args):
            if not isinstance(arg, np.ndarray):
                continue
            whole = whole_of(arg)
            if whole is None or whole.ctypes.data not in self.allocations:
                raise EmulatorError(f"{instance}: argument {i} is memory that this device did not allocate")
            _, start, stop = self.allocations[whole.ctypes.data]
            if (whole[:start] != GUARD).any() or (whole[stop:] != GUARD).any():
                raise EmulatorError(f"{instance}: wrote outside argument {i}")
