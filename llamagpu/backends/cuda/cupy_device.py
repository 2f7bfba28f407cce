"""A GPU through CuPy: the one file that imports it. Works with cupy-cuda12x and cupy-cuda13x."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.backends.cuda import dependent_launch
from llamagpu.backends.cuda.device import DeviceArray, Event, Graph, Launch
from llamagpu.backends.cuda.kernels import source
from llamagpu.errors import DeviceError, LlamaGPUError, first_line

STAGING_BYTES = 32 << 20  # of each of two pinned buffers: one is filled while the other is copied
COPY_BYTES = 1 << 30  # of the copy that measures bandwidth: many times the L2 cache
HOST_TO_DEVICE, DEVICE_TO_DEVICE = 1, 3  # cudaMemcpyKind
DEFAULT_SHARED_MEMORY = 48 << 10  # a kernel that wants more must ask for it first
OPTIONS = ("-std=c++17",)  # CuPy adds -ftz=true, the architecture and the include paths


def import_cupy() -> Any:
    """The cupy module. It makes its kernel cache at import, so a HOME that cannot be written would make that fail."""
    if "CUPY_CACHE_DIR" not in os.environ and not can_write(Path("~/.cupy").expanduser()):
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        os.environ["CUPY_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"llamagpu-cupy-{user}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional parts that it does not find
        import cupy

    return cupy


def can_write(folder: Path) -> bool:
    """Whether files can be made in ``folder``, or it can be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


class CuPyEvent:
    def __init__(self, event: Any) -> None:
        self.event = event

    def wait(self) -> None:
        self.event.synchronize()


class CuPyGraph:
    def __init__(self, device: CuPyDevice, graph: Any) -> None:
        self.device, self.graph = device, graph

    def launch(self) -> None:
        self.device.use()
        self.graph.launch(self.device.stream)


class CuPyDevice:
    """One GPU and one non-blocking stream on it: the Device of backends/cuda/device.py.

    sources: text of a family. on_compiled: called after each kernel that was made ready (CuPy keeps the machine code on
    disk, so that takes long only the first time).
    """

    def __init__(
        self, index: int = 0, sources: Callable[[str], str] = source, on_compiled: Callable[[], None] = lambda: None
    ) -> None:
        self.cupy = cupy = import_cupy()
        self.index, self.sources, self.on_compiled = index, sources, on_compiled
        self.name = f"cuda:{index}"
        try:
            properties = cupy.cuda.runtime.getDeviceProperties(index)
            self.use()
            self.stream = cupy.cuda.Stream(non_blocking=True)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(f"GPU {index} cannot be used: {first_line(error)}") from None
        self.description = properties["name"].decode()
        self.n_multiprocessors = int(properties["multiProcessorCount"])
        self.compute_capability = (int(properties["major"]), int(properties["minor"]))
        self.dependent_launch = dependent_launch.find(self.compute_capability)
        self._functions: dict[tuple[str, str], Any] = {}
        self._staging: list[tuple[NDArray[np.uint8], int, Any]] = []
        self._next_staging = 0
        self._capturing = False

    def use(self) -> None:
        """Make this GPU the thread's current one: another model may have taken another."""
        if self.cupy.cuda.runtime.getDevice() != self.index:
            self.cupy.cuda.runtime.setDevice(self.index)

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        array = self._empty(shape, dtype)
        if array.nbytes:
            self.cupy.cuda.runtime.memsetAsync(array.data.ptr, 0, array.nbytes, self.stream.ptr)
        return array

    def upload(self, array: NDArray[Any]) -> DeviceArray:
        target = self._empty(array.shape, array.dtype)
        self.copy(target, array)
        return target

    def repeat(self, block: NDArray[np.uint8], n_bytes: int) -> DeviceArray:
        array = self._empty((n_bytes,), np.uint8)
        done = min(block.size, n_bytes)
        self.copy(array[:done], block[:done])
        while done < n_bytes:  # what is there, copied behind itself
            n = min(done, n_bytes - done)
            place = array.data.ptr
            self.cupy.cuda.runtime.memcpyAsync(place + done, place, n, DEVICE_TO_DEVICE, self.stream.ptr)
            done += n
        return array

    def _empty(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        assert not self._capturing, "an allocation while a graph is captured"
        self.use()
        try:
            with self.stream:
                return self.cupy.empty(tuple(shape), dtype)
        except self.cupy.cuda.memory.OutOfMemoryError:
            free, total = self.cupy.cuda.runtime.memGetInfo()
            wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
            raise LlamaGPUError(
                f"the GPU has too little memory: {wanted / 2**30:.2f} GiB wanted, {free / 2**30:.2f} of"
                f" {total / 2**30:.2f} GiB free: take a smaller --context or model, or --device cpu"
            ) from None

    def copy(self, target: DeviceArray, array: NDArray[Any]) -> None:
        """Through two pinned buffers in turn: straight from a mapped file the driver copies several times slower."""
        assert not self._capturing, "a copy while a graph is captured"
        assert target.nbytes == array.nbytes, "a copy of another size"
        self.use()
        bytes_left = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address = target.data.ptr
        while bytes_left.size:
            host, pointer, event = self._staging_buffer()
            n = min(bytes_left.size, host.size)
            event.synchronize()  # the copy that last used this buffer
            host[:n] = bytes_left[:n]
            self.cupy.cuda.runtime.memcpyAsync(address, pointer, n, HOST_TO_DEVICE, self.stream.ptr)
            event.record(self.stream)
            address, bytes_left = address + n, bytes_left[n:]

    def _staging_buffer(self) -> tuple[NDArray[np.uint8], int, Any]:
        if len(self._staging) < 2:
            memory = self.cupy.cuda.PinnedMemoryPointer(self.cupy.cuda.PinnedMemory(STAGING_BYTES), 0)
            event = self.cupy.cuda.Event(disable_timing=True)
            self._staging.append((np.frombuffer(memory, np.uint8, STAGING_BYTES), memory.ptr, event))
        self._next_staging = (self._next_staging + 1) % len(self._staging)
        return self._staging[self._next_staging]

    def download(self, array: DeviceArray) -> NDArray[Any]:
        self.use()
        with self.stream:
            host: NDArray[Any] = array.get(stream=self.stream)
        self.stream.synchronize()
        return host

    def pinned(self, n: int, dtype: DTypeLike) -> tuple[NDArray[Any], DeviceArray]:
        self.use()
        memory = self.cupy.cuda.alloc_pinned_memory(max(n * np.dtype(dtype).itemsize, 1))
        host = np.frombuffer(memory, dtype, n)
        host[...] = 0
        return host, np.uint64(memory.ptr)  # host and device share addresses; the array keeps the memory

    def kernel(self, family: str, instance: str) -> Launch:
        key = (family, instance)
        function = self._functions.get(key)
        if function is None:
            assert not self._capturing, "the first use of a kernel while a graph is captured"
            function = self._functions[key] = self.compile(family, instance)
        stream = self.stream

        def launch(
            grid: tuple[int, ...],
            block: tuple[int, ...],
            args: Sequence[Any],
            shared_memory: int = 0,
            dependent: bool = False,
        ) -> None:
            assert shared_memory <= DEFAULT_SHARED_MEMORY, "more shared memory than a kernel has by default"
            self.use()
            if dependent and self.dependent_launch:
                self.dependent_launch(function.ptr, grid, block, args, shared_memory, stream.ptr)
            else:
                # CuPy takes None for an argument that is missing, not for a null pointer
                function(grid, block, tuple(np.uint64(0) if a is None else a for a in args), shared_memory, stream)

        return launch

    def compile(self, family: str, instance: str) -> Any:
        """The cupy Function of one instance: RawKernel.__call__ would look up device and cache at each call."""
        self.use()
        try:
            module = self.cupy.RawModule(code=self.sources(family), options=OPTIONS, name_expressions=(instance,))
            function = module.get_function(instance).kernel
        except self.cupy.cuda.compiler.CompileException as error:
            raise LlamaGPUError(f"kernel {instance} does not compile here: {first_line(error)}") from error
        except Exception as error:  # no NVRTC, no CUDA headers: CuPy tells which, and what to install
            problem = f"CuPy cannot compile kernels: {first_line(error)} (--device cpu runs on the CPU)"
            raise LlamaGPUError(problem) from error
        self.on_compiled()
        return function

    @contextmanager
    def capture(self) -> Iterator[Callable[[], Graph]]:
        self.use()
        graphs: list[Graph] = []
        self.stream.begin_capture()
        self._capturing = True
        try:
            yield lambda: graphs[0]
        finally:
            self._capturing = False
            graphs.append(CuPyGraph(self, self.stream.end_capture()))

    def event(self) -> Event:
        self.use()
        event = self.cupy.cuda.Event(disable_timing=True)
        event.record(self.stream)
        return CuPyEvent(event)

    def seconds(self, work: Callable[[], None], repeats: int) -> float:
        """By events, so that what the host takes to launch does not count unless the GPU has to wait for it."""
        self.use()
        times = []
        work()
        for _ in range(repeats):
            start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            start.record(self.stream)
            work()
            stop.record(self.stream)
            stop.synchronize()
            times.append(float(self.cupy.cuda.get_elapsed_time(start, stop)) / 1e3)
        return median(times)

    def copy_bandwidth(self) -> float:
        self.use()
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        n_bytes = min(COPY_BYTES, free // 4)
        seconds = self._copy_seconds(n_bytes)
        self.cupy.get_default_memory_pool().free_all_blocks()  # or it would keep them, and they count as memory in use
        return float(2 * n_bytes / seconds)

    def _copy_seconds(self, n_bytes: int) -> float:
        source, target = self.zeros((n_bytes,), np.uint8), self.zeros((n_bytes,), np.uint8)
        arguments = (target.data.ptr, source.data.ptr, n_bytes, DEVICE_TO_DEVICE, self.stream.ptr)
        return self.seconds(lambda: self.cupy.cuda.runtime.memcpyAsync(*arguments), 20)

    def memory_in_use(self) -> int:
        self.use()
        free, total = self.cupy.cuda.runtime.memGetInfo()
        return int(total - free)
