"""The emulator itself: right results, and the right message for each kind of fault. Kernels here are made for that."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda_on_cpu.build import EmulatorError, Module, have_compiler

pytestmark = pytest.mark.skipif(
    not have_compiler(), reason="no C++ compiler: the emulator needs g++ (CXX names another)"
)

RESULTS = """
#include <cuda_fp16.h>
template <class T> __global__ void shuffles(const T* in, T* out) {
    const T value = in[threadIdx.x];
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, value, 5);
    out[32 + threadIdx.x] = __shfl_sync(0xffffffffu, value, 3, 8);
    out[64 + threadIdx.x] = __shfl_up_sync(0xffffffffu, value, 2);
    out[96 + threadIdx.x] = __shfl_down_sync(0xffffffffu, value, 4, 16);
}
__global__ void votes(const int* in, unsigned* out) {
    out[threadIdx.x] = __ballot_sync(0xffffffffu, in[threadIdx.x] > 3);
    out[32 + threadIdx.x] = __any_sync(0xffffffffu, in[threadIdx.x] == 5);
    out[64 + threadIdx.x] = __all_sync(0xffffffffu, in[threadIdx.x] >= 0);
    out[96 + threadIdx.x] = __syncthreads_count(in[threadIdx.x] > 3);
}
__global__ void block_sums(const float* in, float* out, int n) {
    extern __shared__ float4 dynamic[];
    __shared__ float total, sums[2][32];
    float* values = reinterpret_cast<float*>(dynamic);
    for (int i = threadIdx.x; i < n; i += blockDim.x) values[i] = in[blockIdx.x * n + i];
    __syncthreads();
    float sum = 0.f;
    for (int i = n - 1 - threadIdx.x; i >= 0; i -= blockDim.x) sum += values[i];
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (threadIdx.x % 32 == 0) sums[1][threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        total = 0.f;
        for (int w = 0; w < blockDim.x / 32; w++) total += sums[1][w];
    }
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
__global__ void halves(const unsigned short* bits, float* wide, const float* in, __half* narrow, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    wide[i] = __half2float(reinterpret_cast<const __half*>(bits)[i]);
    if (i < n) narrow[i] = __float2half_rn(in[i]);
}
__global__ void high_products(const unsigned long long* in, unsigned long long* out) {
    out[threadIdx.x] = __umul64hi(in[threadIdx.x], in[threadIdx.x + 1]);
}
__global__ void histogram(const int* in, int* counts) { atomicAdd(&counts[in[blockIdx.x * 32 + threadIdx.x]], 1); }
"""
INSTANCES = (
    "shuffles<int>", "shuffles<float>", "shuffles<unsigned long long>",
    "votes", "block_sums", "halves", "high_products", "histogram",
)  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "checking"])
def results(request: pytest.FixtureRequest) -> Module:
    return Module("results.cu", RESULTS, INSTANCES, check=request.param == "checking")


@pytest.mark.parametrize(("kind", "dtype"), [("int", "i4"), ("float", "f4"), ("unsigned long long", "u8")])
def test_shuffles(kind: str, dtype: str, results: Module) -> None:
    values = (np.arange(32) * 1000003).astype(dtype)
    out = np.zeros(128, dtype)
    results.function(f"shuffles<{kind}>")((1,), (32,), (values, out))
    lanes = np.arange(32)
    up, down = np.where(lanes < 2, lanes, lanes - 2), np.where(lanes % 16 > 11, lanes, lanes + 4)
    for i, source in enumerate((lanes ^ 5, lanes // 8 * 8 + 3, up, down)):
        assert (out[i * 32 : i * 32 + 32] == values[source]).all()


def test_votes(results: Module) -> None:
    values, out = (np.arange(32) % 7).astype(np.int32), np.zeros(128, np.uint32)
    results.function("votes")((1,), (32,), (values, out))
    ballot = sum(1 << i for i in range(32) if values[i] > 3)
    assert out.tolist() == [ballot] * 32 + [1] * 64 + [int((values > 3).sum())] * 32


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_block_sums_in_any_order(seed: int, results: Module) -> None:
    values, out = np.random.default_rng(0).random((5, 100), np.float32), np.zeros((5, 96), np.float32)
    results.configure(seed=seed)
    results.function("block_sums")((5,), (96,), (values, out, np.int32(100)), 400)
    results.configure()
    assert np.abs(out - values.sum(axis=1)[:, None]).max() < 1e-4
    assert (out == out[:, :1]).all()


def test_halves_are_numpys(results: Module) -> None:
    """All 65536 float16; and floats at, just above and just below every border between two float16."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(np.float16).astype(np.float32)
    finite = np.sort(values[np.isfinite(values)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    edges = [middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, -np.float32(np.inf))]
    floats = np.concatenate([finite, *edges, np.array([np.inf, -np.inf, 65520, 65519.99, 1e-30, -1e9], np.float32)])
    n = len(floats)
    wide, narrow = np.zeros(1 << 18, np.float32), np.zeros(n, np.float16)
    padded_bits = np.zeros(1 << 18, np.uint16)
    padded_bits[: 1 << 16] = bits
    results.function("halves")((1 << 11,), (128,), (padded_bits, wide, floats, narrow, np.int32(n)))
    assert n < 1 << 18
    assert np.array_equal(wide[: 1 << 16], values, equal_nan=True)
    with np.errstate(over="ignore"):
        assert (narrow.view(np.uint16) == floats.astype(np.float16).view(np.uint16)).all()


def test_high_products(results: Module) -> None:
    values = np.random.default_rng(1).integers(0, 1 << 64, 33, np.uint64)
    out = np.zeros(32, np.uint64)
    results.function("high_products")((1,), (32,), (values, out))
    assert out.tolist() == [int(a) * int(b) >> 64 for a, b in pairwise(values)]


def test_atomics(results: Module) -> None:
    values, counts = (np.arange(96) % 5).astype(np.int32), np.zeros(5, np.int32)
    results.function("histogram")((3,), (32,), (values, counts))
    assert counts.tolist() == np.bincount(values).tolist()


# name: body of a kernel over `float* a` (64 floats), `const float* b` (64 floats); what the emulator must say
CHECKED = {
    "missing_barrier": (
        "__shared__ float s[64]; s[threadIdx.x] = b[threadIdx.x]; a[threadIdx.x] = s[(threadIdx.x + 63) % 64];",
        "read of uninitialised static shared memory",
    ),
    "read_after_write": (
        "__shared__ float s[64]; s[threadIdx.x] = 1.f; __syncthreads(); s[threadIdx.x] = 2.f;"
        "a[threadIdx.x] = s[threadIdx.x / 2];",
        "race: read of static shared memory",
    ),
    "shuffles_order_no_memory": (
        "__shared__ float s[64]; if (threadIdx.x > 31) return; s[threadIdx.x] = 1.f;"
        "__shfl_sync(0xffffffffu, 1, 0); a[threadIdx.x] = s[31 - threadIdx.x];",
        "race: read of static shared memory",
    ),
    "write_after_read": (
        "__shared__ float s[65]; s[threadIdx.x] = s[64] = 1.f; __syncthreads(); float v = s[threadIdx.x + 1];"
        "s[threadIdx.x] = v;",
        "race: write of static shared memory",
    ),
    "template_race": ("race_in_template<float>(a);", "race: read of static shared memory"),
    "dynamic_race": (
        "extern __shared__ float d[]; d[threadIdx.x] = 1.f; a[threadIdx.x] = d[threadIdx.x / 2];",
        "race: read of dynamic shared memory",
    ),
    "between_blocks": ("if (threadIdx.x == 0) a[0] = blockIdx.x;", "race: write of argument 0"),
    "aliases": ("a[threadIdx.x] = 1.f; a[threadIdx.x] = b[threadIdx.x / 2];", "race: read of argument"),
    "read_past_end": ("a[threadIdx.x] = b[threadIdx.x + 1];", "out-of-bounds 4-byte read, 0 bytes past the end"),
    "write_before_start": ("a[(int)threadIdx.x - 1] = 1.f;", "out-of-bounds 4-byte write, 4 bytes before argument 0"),
    "past_shared_array": (
        "__shared__ float s[8], t[8]; if (threadIdx.x == 8) s[threadIdx.x] = t[0] = 1.f;",
        "index 8 is outside a fixed-size array",
    ),
    "misaligned": (
        "const float4 v = *reinterpret_cast<const float4*>(b + 1); a[threadIdx.x] = v.x + v.y + v.z + v.w;",
        "misaligned access",
    ),
    "misaligned_half": ("a[threadIdx.x] = *reinterpret_cast<const float*>((const char*)b + 2);", "misaligned"),
    "past_own_array": ("float v[4] = {1, 2, 3, 4}; a[threadIdx.x] = v[threadIdx.x % 5];", "index 4 is outside a fixed"),
    "uninitialised": (
        "__shared__ float s[64]; a[threadIdx.x] = s[threadIdx.x];",
        "read of uninitialised static shared",
    ),
    "nowhere": ("a[threadIdx.x] = *reinterpret_cast<float*>(0x1000);", "which is in no argument"),
}
PLAIN = {
    "divergent_barrier": (
        "if (threadIdx.x < 32) __syncthreads();\n else\n __syncthreads();",
        "meet at different barriers",
    ),
    "exit_before_barrier": ("if (threadIdx.x == 5) return; __syncthreads();", "exited"),
    "some_never_come": ("if (threadIdx.x < 40) __shfl_sync(0xffffffffu, 1, 0); __syncthreads();", "deadlock"),
    "not_in_mask": ("__shfl_sync(0x0000ffffu, 1, 0);", "is not in the mask 0xffff"),
    "exited_lanes": (
        "if (threadIdx.x % 2) return; __shfl_sync(0xffffffffu, 1, 0);",
        "the mask names lanes that exited",
    ),
    "different_collectives": (
        "if (threadIdx.x % 2) __shfl_sync(0xffffffffu, 1, 0);\n else __ballot_sync(0xffffffffu, 1);",
        "different collectives",
    ),
}
FAULTY = (
    "template <class T> __device__ void race_in_template(T* a) {\n"
    "__shared__ T s[64]; s[threadIdx.x] = 1; a[threadIdx.x] = s[threadIdx.x / 2]; }\n"
    + "".join(
        f"__global__ void {name}(float* a, const float* b) {{\n{body}\n}}\n"
        for name, (body, _) in (CHECKED | PLAIN).items()
    )
)


@pytest.fixture(scope="module")
def faulty() -> dict[bool, Module]:
    return {check: Module("faulty.cu", FAULTY, [*CHECKED, *PLAIN], check=check) for check in (False, True)}


def run(module: Module, name: str, a: NDArray[Any] | None = None, b: NDArray[Any] | None = None) -> None:
    grid = (2,) if name == "between_blocks" else (1,)
    own = np.ones(64, np.float32)
    module.function(name)(grid, (64,), (own if a is None else a, np.ones(64, np.float32) if b is None else b), 256)


@pytest.mark.parametrize("name", CHECKED)
def test_the_checking_build_names_the_fault_and_its_line(name: str, faulty: dict[bool, Module]) -> None:
    shared = np.ones(64, np.float32)
    arrays = (shared, shared) if name == "aliases" else (None, None)
    with pytest.raises(EmulatorError, match=CHECKED[name][1]) as caught:
        run(faulty[True], name, *arrays)
    line = FAULTY[: FAULTY.index(CHECKED[name][0])].count("\n") + 1
    expected = 2 if name == "template_race" else line
    assert f"at faulty.cu:{expected} " in str(caught.value)


@pytest.mark.parametrize("check", [False, True], ids=["plain", "checking"])
@pytest.mark.parametrize("name", PLAIN)
def test_every_build_names_what_never_meets(name: str, check: bool, faulty: dict[bool, Module]) -> None:
    for seed in (0, 1, 2):
        faulty[check].configure(seed=seed)
        with pytest.raises(EmulatorError, match=PLAIN[name][1] if seed == 0 else "."):
            run(faulty[check], name)
        faulty[check].configure()


def test_random_orders_show_a_missing_barrier_without_the_checker(faulty: dict[bool, Module]) -> None:
    """Shared memory begins as NaN, so a thread that reads too early is seen in the result."""
    seen = set()
    for seed in range(6):
        out = np.zeros(64, np.float32)
        faulty[False].configure(seed=seed)
        run(faulty[False], "missing_barrier", out)
        faulty[False].configure()
        seen.add(bool(np.isnan(out).any()))
    assert True in seen


def test_wrong_arguments(results: Module) -> None:
    votes, numbers = results.function("votes"), np.zeros(128, np.int32)
    with pytest.raises(EmulatorError, match="1 arguments given, 2 expected"):
        votes((1,), (32,), (numbers,))
    with pytest.raises(EmulatorError, match="argument 1 has 4 bytes, the kernel takes 8"):
        votes((1,), (32,), (numbers, np.int32(5)))
    with pytest.raises(EmulatorError, match="argument 0 is a int: no size in C"):
        votes((1,), (32,), (5, numbers))
    with pytest.raises(EmulatorError, match="argument 0 is not contiguous"):
        votes((1,), (32,), (numbers[::2], numbers))
    with pytest.raises(EmulatorError, match="invalid launch configuration"):
        votes((1,), (1025,), (numbers, numbers))
    with pytest.raises(EmulatorError, match="more than 227 KiB"):
        votes((1,), (32,), (numbers, numbers), 240_000)


def test_a_source_that_does_not_compile() -> None:
    with pytest.raises(EmulatorError, match=r"wrong\.cu:2.*no_such_function"):
        Module("wrong.cu", "__global__ void wrong() {\nno_such_function(); }", ["wrong"])
