"""What this GPU and its driver can do at best, and what a decode step makes of it: the numbers behind every claim.

Each probe returns a dictionary of figures. Times are medians; CUDA events measure what the GPU does, a clock on the
host what it costs to ask for it. Run by scripts/gpu_check.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import numpy as np

from llamagpu.backends.cuda import CUDABackend
from llamagpu.backends.cuda.cupy_device import CuPyDevice
from llamagpu.backends.cuda.kernels import read_kernel_file
from llamagpu.bench import BenchSettings, measure
from llamagpu.bench_peer import run_peer
from llamagpu.bench_shapes import SHAPES, random_checkpoint
from llamagpu.models import StateOptions, load_model
from llamagpu.sampling import SamplingParams

Figures = dict[str, Any]

KERNELS = (
    read_kernel_file("ptx.cuh").replace("#pragma once", "")
    + """
extern "C" __global__ void nothing(int* a) {}
extern "C" __global__ void dependent(int* a) {
    launch_dependents();
    wait_for_previous_kernel();
}
extern "C" __global__ void read_all(const uint4* in, unsigned* out, long long n) {
    unsigned sum = 0;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long step = (long long)gridDim.x * blockDim.x;
    for (; i + 3 * step < n; i += 4 * step) {
        const uint4 a = __ldcs(in + i), b = __ldcs(in + i + step), c = __ldcs(in + i + 2 * step);
        const uint4 d = __ldcs(in + i + 3 * step);
        sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < n; i += step) sum += in[i].x;
    if (sum == 0x12345678u) out[0] = sum;  // never, but the compiler does not know
}
"""
)


def gpu_seconds(device: CuPyDevice, work: Callable[[], None], repeats: int = 20) -> float:
    """Median time that the GPU takes for ``work``, by events."""
    cuda = device.cupy.cuda
    times: list[float] = []
    work()
    for _ in range(repeats):
        start, stop = cuda.Event(), cuda.Event()
        start.record(device.stream)
        work()
        stop.record(device.stream)
        stop.synchronize()
        times.append(float(cuda.get_elapsed_time(start, stop)) / 1e3)
    return median(times)


def bandwidth(device: CuPyDevice) -> Figures:
    """Copy and read bandwidth of device memory, GB/s; copies count bytes read and written."""
    cupy, n_bytes = device.cupy, 4 << 30
    source, target = device.zeros((n_bytes,), np.uint8), device.zeros((n_bytes,), np.uint8)
    module = cupy.RawModule(code=KERNELS, options=("-std=c++17",))
    read, out = module.get_function("read_all").kernel, device.zeros((1,), np.uint32)
    blocks = device.n_multiprocessors * 8
    to_device = 3  # cudaMemcpyDeviceToDevice

    def copy() -> None:
        cupy.cuda.runtime.memcpyAsync(target.data.ptr, source.data.ptr, n_bytes, to_device, device.stream.ptr)

    def read_all() -> None:
        read((blocks,), (512,), (source, out, np.int64(n_bytes // 16)), 0, device.stream)

    copied, was_read = gpu_seconds(device, copy), gpu_seconds(device, read_all)
    return {"copy_gb_per_s": 2 * n_bytes / copied / 1e9, "read_gb_per_s": n_bytes / was_read / 1e9}


def uploads(device: CuPyDevice) -> Figures:
    """Host to device, GB/s: from pinned memory, from pageable memory, and as weights go (CuPyDevice.copy)."""
    cupy, n_bytes = device.cupy, 1 << 30
    target = device.zeros((n_bytes,), np.uint8)
    pageable = np.ones(n_bytes, np.uint8)
    memory = cupy.cuda.PinnedMemory(n_bytes)
    ctypes.memset(memory.ptr, 1, n_bytes)

    def copy_from(address: int) -> Callable[[], None]:
        to_device = 1  # cudaMemcpyHostToDevice
        return lambda: cupy.cuda.runtime.memcpyAsync(
            target.data.ptr, address, n_bytes, to_device, device.stream.ptr
        )  # fmt: skip

    ways: dict[str, Callable[[], None]] = {
        "pinned": copy_from(memory.ptr),
        "pageable": copy_from(pageable.ctypes.data),
        "staged": lambda: device.copy(target, pageable),
    }
    figures = {}
    for name, copy in ways.items():
        times = []
        for _ in range(4):
            device.stream.synchronize()
            start = time.perf_counter()
            copy()
            device.stream.synchronize()
            times.append(time.perf_counter() - start)
        figures[f"{name}_gb_per_s"] = n_bytes / median(times) / 1e9
    return figures


def launch_costs(device: CuPyDevice) -> Figures:
    """Microseconds of an empty kernel: plain, in a graph of 200, and in one with programmatic dependent launch."""
    cupy, n = device.cupy, 200
    module = cupy.RawModule(code=KERNELS, options=("-std=c++17",))
    argument = device.zeros((1,), np.int32)
    nothing = module.get_function("nothing").kernel

    def plain() -> None:
        for _ in range(n):
            nothing((1,), (32,), (argument,), 0, device.stream)

    def graph_of(launch: Callable[[], None]) -> Any:
        device.stream.begin_capture()
        try:
            for _ in range(n):
                launch()
        finally:
            graph = device.stream.end_capture()
        return graph

    start = time.perf_counter()
    plain()
    host = (time.perf_counter() - start) / n
    graph = graph_of(lambda: nothing((1,), (32,), (argument,), 0, device.stream))
    figures: Figures = {
        "plain_host_us": host * 1e6,
        "plain_gpu_us": gpu_seconds(device, plain) / n * 1e6,
        "graph_gpu_us": gpu_seconds(device, lambda: graph.launch(device.stream)) / n * 1e6,
    }
    if device.compute_capability < (9, 0):
        return {**figures, "dependent_launch": "needs compute capability 9.0"}
    try:
        from cuda.bindings import driver
    except ImportError:
        return {**figures, "dependent_launch": "cuda-bindings is not installed"}
    function = module.get_function("dependent").kernel
    config, attribute = driver.CUlaunchConfig(), driver.CUlaunchAttribute()
    config.gridDimX = config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
    config.blockDimX, config.hStream = 32, device.stream.ptr
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    config.attrs, config.numAttrs = [attribute], 1
    handle, parameters = driver.CUfunction(function.ptr), ((argument.data.ptr,), (ctypes.c_void_p,))

    def launch() -> None:
        (status,) = driver.cuLaunchKernelEx(config, handle, parameters, 0)
        if int(status):
            raise RuntimeError(f"cuLaunchKernelEx: {status}")

    launch()
    device.stream.synchronize()
    dependent = graph_of(launch)
    figures["dependent_graph_gpu_us"] = gpu_seconds(device, lambda: dependent.launch(device.stream)) / n * 1e6
    return figures


def bench(
    shape: str,
    bits: int,
    head_bits: int,
    dependent: bool = True,
    contexts: tuple[int, ...] = (128,),
    prompts: tuple[int, ...] = (),
    kernels: bool = False,
    sparse: bool = False,
) -> Figures:
    """What `llamagpu bench --shape` measures. dependent: with programmatic dependent launch, where the GPU has it.

    sparse: decode of an RWKV skips rows that meet a zero; with random weights half of them do.
    """
    device = CuPyDevice()
    if not dependent:
        device.dependent_launch = None
    settings = BenchSettings(contexts, prompts, 64, kernels, 0)
    checkpoint = random_checkpoint(shape, bits, head_bits, 128, settings.positions, 0)
    os.environ["LLAMAGPU_SPARSE_FFN"] = str(int(sparse))
    try:
        measured = measure(checkpoint, CUDABackend(device), settings)
    finally:
        del os.environ["LLAMAGPU_SPARSE_FFN"]
        gc.collect()
        device.cupy.get_default_memory_pool().free_all_blocks()
    return {"shape": shape, "bits": bits, "head_bits": head_bits, **asdict(measured)}


def same_tokens(shape: str, n_tokens: int) -> Figures:
    """Greedy tokens and last logits of a random model with dependent launch and without: equal bits, or it is wrong.

    Kernels that overlap must not see each other's unfinished work; this is what shows it, since text hardly would.
    """
    device = CuPyDevice()
    if device.dependent_launch is None:
        return {"skipped": "this GPU, or this installation, has no dependent launch"}
    backend = CUDABackend(device)
    model = load_model(random_checkpoint(shape, 4, 4, 128, n_tokens + 16, 0), backend)
    found = []
    try:
        for launch in (device.dependent_launch, None, device.dependent_launch):
            device.dependent_launch = launch
            state = model.new_state(StateOptions(n_tokens + 16))
            sampler = backend.sampler(SamplingParams(temperature=0, seed=0), model.config.vocab_size)
            logits = model.forward([1, 2, 3], state)
            tokens = list(model.decode(state, sampler, logits, n_tokens))
            last = backend.to_host(model.forward([tokens[-1]], state), model.config.vocab_size)
            found.append((tokens, last.tobytes()))
    finally:
        gc.collect()
        device.cupy.get_default_memory_pool().free_all_blocks()
    assert found[0] == found[1] == found[2], "dependent and plain launches give different results"
    return {"tokens": n_tokens, "different_tokens": len(set(found[0][0]))}


def peer(shape: str, seconds: float) -> Figures:
    """transformers, float16 with a static cache, on the same shape."""
    found = run_peer(replace(SHAPES[shape], max_seq_len=512), "cuda:0", (128,), 64, 0, seconds)
    return {"shape": shape, **asdict(found)}
