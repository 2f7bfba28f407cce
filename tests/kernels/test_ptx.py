"""kernels/ptx.cuh: what each lane gets from ldmatrix and mma, as the PTX manual says it, on the emulator and on a GPU.

The emulator computes these instructions itself. Each register of each lane is compared here with one statement of the
layout, on both, so the emulator's layout is the hardware's where the test has run on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import read_kernel_file
from tests.emulated_device import EmulatedDevice
from tests.kernels.harness import random, unwritten

PROBE = """
#include <cuda_fp16.h>
%s
extern "C" __global__ void probe_ldmatrix(const uint4* rows, unsigned* registers) {
    __shared__ uint4 shared[32];
    shared[threadIdx.x] = rows[threadIdx.x];
    __syncthreads();
    unsigned matrices[4];
    ldmatrix_x4(matrices, &shared[threadIdx.x]);
    for (int i = 0; i < 4; i++) registers[threadIdx.x * 4 + i] = matrices[i];
}
extern "C" __global__ void probe_mma(const unsigned* a, const unsigned* b, float* d) {
    const int lane = threadIdx.x;
    unsigned of_a[4], of_b[2];
    float of_d[4];
    for (int i = 0; i < 4; i++) of_a[i] = a[lane * 4 + i], of_d[i] = d[lane * 4 + i];
    for (int i = 0; i < 2; i++) of_b[i] = b[lane * 2 + i];
    mma_m16n8k16(of_d, of_a, of_b);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = of_d[i];
}
extern "C" __global__ void probe_mma_bf16(const unsigned* a, const unsigned* b, float* d) {
    const int lane = threadIdx.x;
    unsigned of_a[4], of_b[2];
    float of_d[4];
    for (int i = 0; i < 4; i++) of_a[i] = a[lane * 4 + i], of_d[i] = d[lane * 4 + i];
    for (int i = 0; i < 2; i++) of_b[i] = b[lane * 2 + i];
    mma_bf16(of_d, of_a, of_b);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = of_d[i];
}
extern "C" __global__ void probe_bf16(const float* x, unsigned* pairs, unsigned* differences, unsigned* masked) {
    const int lane = threadIdx.x;
    pairs[lane] = bf16_pair(x[2 * lane], x[2 * lane + 1]);
    differences[lane] = subtract_bf16(pairs[lane], bf16_pair(3.f, -130.f));
    masked[lane] = and_or(pairs[lane], 0x0ff00ff0u, 0x40000003u);
}
extern "C" __global__ void probe_cp_async(const uint4* in, uint4* out) {
    __shared__ uint4 shared[2][32];
    for (int i = 0; i < 2; i++) {
        cp_async16(&shared[i][threadIdx.x], in + i * 32 + threadIdx.x);
        cp_async_commit();
    }
    cp_async_wait<1>();
    __syncthreads();
    out[threadIdx.x] = shared[0][31 - threadIdx.x];
    cp_async_wait<0>();
    __syncthreads();
    out[32 + threadIdx.x] = shared[1][31 - threadIdx.x];
}
extern "C" __global__ void probe_streaming(const uint4* in, uint4* out) {
    out[threadIdx.x] = load_streaming(in + threadIdx.x);
}
"""
KERNELS = ("probe_ldmatrix", "probe_mma", "probe_mma_bf16", "probe_bf16", "probe_cp_async", "probe_streaming")


def probe_source(_: str) -> str:
    return PROBE % read_kernel_file("ptx.cuh").replace("#pragma once", "")


@pytest.fixture
def probe(device: Device) -> Any:
    """The device of the other tests, with the probe as its only family."""
    if isinstance(device, EmulatedDevice):
        return EmulatedDevice(sources=probe_source, instances=lambda _: KERNELS, check=True)
    from tests.guarded_gpu import GuardedGPU

    return GuardedGPU(sources=probe_source)


def launch(device: Device, kernel: str, *args: Any) -> None:
    device.kernel("probe", kernel)((1,), (32,), args, 0)


def halves(*shape: int, seed: int) -> NDArray[np.float16]:
    return random(*shape, seed=seed).astype(np.float16)


def test_ldmatrix_gives_each_lane_its_pairs(probe: Device) -> None:
    matrices = halves(4, 8, 8, seed=1)
    registers = unwritten(probe, 32, 4, dtype=np.uint32)
    launch(probe, "probe_ldmatrix", probe.upload(matrices.reshape(32, 8)), registers)
    got = probe.download(registers).view(np.float16).reshape(32, 4, 2)
    for lane in range(32):
        for i in range(4):
            pair = matrices[i, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert got[lane, i].tobytes() == pair.tobytes()


def test_mma_takes_and_gives_each_lane_its_part(probe: Device) -> None:
    a, b, d = halves(16, 16, seed=2), halves(16, 8, seed=3), random(16, 8, seed=4)
    lanes_a, lanes_b = np.empty((32, 4, 2), np.float16), np.empty((32, 2, 2), np.float16)
    lanes_d = np.empty((32, 4), np.float32)
    for lane in range(32):
        row, pair = lane // 4, lane % 4 * 2
        for i in range(4):
            lanes_a[lane, i] = a[row + i % 2 * 8, pair + i // 2 * 8 : pair + i // 2 * 8 + 2]
            lanes_d[lane, i] = d[row + i // 2 * 8, pair + i % 2]
        for i in range(2):
            lanes_b[lane, i] = b[pair + i * 8 : pair + i * 8 + 2, row]
    on_device = probe.upload(lanes_d)
    launch(probe, "probe_mma", probe.upload(lanes_a), probe.upload(lanes_b), on_device)
    expected, got = d + a.astype(np.float32) @ b.astype(np.float32), probe.download(on_device)
    for lane in range(32):
        for i in range(4):
            assert abs(got[lane, i] - expected[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2]) < 1e-5


def bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of x rounded to bfloat16, to nearest, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_mma_of_bfloat16_has_the_same_layout(probe: Device) -> None:
    a, b, d = bf16(random(16, 16, seed=2)), bf16(random(16, 8, seed=3)), random(16, 8, seed=4)
    lanes_a, lanes_b = np.empty((32, 4, 2), np.uint16), np.empty((32, 2, 2), np.uint16)
    lanes_d = np.empty((32, 4), np.float32)
    for lane in range(32):
        row, pair = lane // 4, lane % 4 * 2
        for i in range(4):
            lanes_a[lane, i] = a[row + i % 2 * 8, pair + i // 2 * 8 : pair + i // 2 * 8 + 2]
            lanes_d[lane, i] = d[row + i // 2 * 8, pair + i % 2]
        for i in range(2):
            lanes_b[lane, i] = b[pair + i * 8 : pair + i * 8 + 2, row]
    on_device = probe.upload(lanes_d)
    launch(probe, "probe_mma_bf16", probe.upload(lanes_a), probe.upload(lanes_b), on_device)
    expected, got = d + from_bf16(a) @ from_bf16(b), probe.download(on_device)
    for lane in range(32):
        for i in range(4):
            assert abs(got[lane, i] - expected[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2]) < 1e-5


def test_bfloat16_is_rounded_and_subtracted_as_numpy_does(probe: Device) -> None:
    x = random(64, seed=6) * np.float32(200)
    x[:4] = [1.00390625, 1.01171875, -133.0, 255.0]  # two ties
    pairs, differences, masked = (unwritten(probe, 32, dtype=np.uint32) for _ in range(3))
    launch(probe, "probe_bf16", probe.upload(x), pairs, differences, masked)
    got = probe.download(pairs).view(np.uint16)
    np.testing.assert_array_equal(got, bf16(x))
    less = np.tile(np.asarray([3, -130], np.float32), 32)
    np.testing.assert_array_equal(probe.download(differences).view(np.uint16), bf16(from_bf16(got) - less))
    np.testing.assert_array_equal(probe.download(masked), (probe.download(pairs) & 0x0FF00FF0) | 0x40000003)


def test_asynchronous_copies_arrive(probe: Device) -> None:
    values = np.arange(64 * 4, dtype=np.uint32).reshape(64, 4)
    out = unwritten(probe, 64, 4, dtype=np.uint32)
    launch(probe, "probe_cp_async", probe.upload(values), out)
    assert (probe.download(out) == np.concatenate([values[31::-1], values[:31:-1]])).all()


def test_streaming_loads(probe: Device) -> None:
    values = np.arange(32 * 4, dtype=np.uint32).reshape(32, 4)
    out = unwritten(probe, 32, 4, dtype=np.uint32)
    launch(probe, "probe_streaming", probe.upload(values), out)
    assert (probe.download(out) == values).all()
