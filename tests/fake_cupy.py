"""As much of CuPy as llamagpu/backends/cuda/cupy_device.py uses, over NumPy and the emulator: for tests without a GPU.

It shows that the driver code above it runs, asks for things in the right order and gets the right numbers. It does not
show that CuPy itself behaves so: that is for a GPU.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from tests.cuda_on_cpu.build import Module


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):
    pass


class Array(np.ndarray[Any, Any]):
    """cupy.ndarray: NumPy's with an address, and no way to it but get()."""

    @property
    def data(self) -> Any:
        base: Any = self
        while isinstance(base.base, np.ndarray):
            base = base.base
        return SimpleNamespace(ptr=self.ctypes.data, mem=SimpleNamespace(ptr=base.ctypes.data))

    def get(self, stream: Stream | None = None) -> np.ndarray[Any, Any]:
        assert stream is not None, "a copy on another stream"
        assert stream.recorded is None, "a copy while a graph is captured"
        return np.array(self)


STREAMS: dict[int, Stream] = {}  # by handle, as the driver knows them
KERNELS: dict[int, Callable[..., None]] = {}


class Stream:
    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking, "a stream that waits for the default stream"
        self.ptr = 7 + len(STREAMS)
        STREAMS[self.ptr] = self
        self.recorded: list[Callable[[], None]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        assert self.recorded is None, "a wait while a graph is captured"

    def begin_capture(self) -> None:
        self.recorded = []

    def end_capture(self) -> Any:
        launches, self.recorded = self.recorded, None
        assert launches
        return SimpleNamespace(launch=lambda stream: [run() for run in launches])


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        self.recorded = False
        self.disable_timing, self.time = disable_timing, 0.0

    def record(self, stream: Stream) -> None:
        assert stream.recorded is None, "an event while a graph is captured"
        self.recorded = True
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass


def elapsed_milliseconds(start: Event, stop: Event) -> float:
    assert not start.disable_timing, "the time of an event that keeps none"
    assert not stop.disable_timing, "the time of an event that keeps none"
    assert start.recorded, "the time of an event that was not recorded"
    assert stop.recorded, "the time of an event that was not recorded"
    return 1e3 * (stop.time - start.time)


class PinnedMemory:
    def __init__(self, size: int) -> None:
        self.buffer = ctypes.create_string_buffer(size)


def pinned_pointer(memory: PinnedMemory, offset: int) -> Any:
    pointer = memory.buffer
    pointer.ptr = ctypes.addressof(pointer) + offset  # type: ignore[attr-defined]
    return pointer


class RawModule:
    def __init__(self, code: str, options: tuple[str, ...], name_expressions: tuple[str, ...]) -> None:
        assert options == ("-std=c++17",)
        self.module = Module("fake.cu", code, name_expressions)

    def get_function(self, name: str) -> Any:
        function = self.module.function(name)

        def kernel(
            grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_memory: int, stream: Stream
        ) -> None:
            assert None not in [arg for arg in args if not isinstance(arg, np.ndarray)], "CuPy has no null pointers"
            if stream.recorded is None:
                function(grid, block, args, shared_memory)
            else:
                stream.recorded.append(lambda: function(grid, block, args, shared_memory))

        handle = 1000 + len(KERNELS)
        KERNELS[handle] = kernel
        return SimpleNamespace(kernel=Function(kernel, handle))


class Function:
    """cupy.cuda.function.Function: called, or launched by its handle through the driver."""

    def __init__(self, kernel: Callable[..., None], handle: int) -> None:
        self.ptr, self.kernel = handle, kernel

    def __call__(self, *call: Any) -> None:
        self.kernel(*call)


def fake_driver(launched: list[int]) -> ModuleType:
    """cuda.bindings.driver, as far as dependent_launch.py uses it. launched: gets the handle of every launch."""

    def launch(
        config: Any, function: int, parameters: tuple[tuple[Any, ...], tuple[Any, ...]], extra: int
    ) -> tuple[int]:
        (attribute,) = config.attrs
        assert (attribute.id, attribute.value.programmaticStreamSerializationAllowed, config.numAttrs) == (6, 1, 1)
        kinds = {
            ctypes.c_void_p: np.uint64,
            ctypes.c_uint64: np.uint64,
            ctypes.c_int32: np.int32,
            ctypes.c_float: np.float32,
        }
        args = [kinds[kind](value) for value, kind in zip(*parameters, strict=True)]
        grid, block = ((c.X, c.Y, c.Z) for c in (Dim(config, "grid"), Dim(config, "block")))
        launched.append(function)
        KERNELS[function](grid, block, args, config.sharedMemBytes, STREAMS[config.hStream])
        return (0,)

    module = ModuleType("cuda.bindings.driver")
    module.__dict__.update(
        CUlaunchConfig=SimpleNamespace,
        CUlaunchAttribute=lambda: SimpleNamespace(value=SimpleNamespace()),
        CUlaunchAttributeID=SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION=6),
        CUfunction=int,
        cuLaunchKernelEx=launch,
    )
    return module


class Dim:
    def __init__(self, config: Any, name: str) -> None:
        self.X, self.Y, self.Z = (getattr(config, f"{name}Dim{axis}") for axis in "XYZ")


def fake_cupy(memory_bytes: int = 1 << 30) -> ModuleType:
    """A module to be put in sys.modules as "cupy", with one GPU of so much memory."""

    taken = [0]

    def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if n_bytes > memory_bytes:
            raise OutOfMemoryError
        taken[0] = min(taken[0] + n_bytes, memory_bytes)  # nothing is given back
        start = np.full(n_bytes + 256, 255, np.uint8)
        offset = -start.ctypes.data % 256
        return start[offset : offset + n_bytes].view(dtype).reshape(shape).view(Array)

    def properties(index: int) -> dict[str, Any]:
        if index:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        return {"name": b"Fake GPU", "multiProcessorCount": 2, "major": 9, "minor": 0}

    current = [0]
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDevice=lambda: current[0],
        setDevice=lambda index: current.__setitem__(0, index),
        getDeviceProperties=properties,
        memGetInfo=lambda: (memory_bytes - taken[0], memory_bytes),
        memcpyAsync=lambda target, source, n, kind, stream: ctypes.memmove(target, source, n),
        memsetAsync=lambda target, value, n, stream: ctypes.memset(target, value, n),
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        Stream=Stream,
        Event=Event,
        get_elapsed_time=elapsed_milliseconds,
        PinnedMemory=PinnedMemory,
        PinnedMemoryPointer=pinned_pointer,
        alloc_pinned_memory=lambda n: pinned_pointer(PinnedMemory(n), 0),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        compiler=SimpleNamespace(CompileException=CompileException),
        set_allocator=lambda allocator: None,
    )
    module = ModuleType("cupy")
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    module.__dict__.update(
        cuda=cuda, empty=empty, ndarray=Array, RawModule=RawModule, get_default_memory_pool=lambda: pool
    )
    return module
