// The only file with inline PTX. Under the CPU emulator the same functions come from tests/cuda_on_cpu instead.
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool HAS_BF16 = false;  // arithmetic of bfloat16 is done in float32: right, but slow and large
#else
constexpr bool HAS_BF16 = true;
#endif

#ifndef LLAMAGPU_EMULATOR

// 16 bytes that are read once: past the L1 cache, which is left to the activations that every warp reads again.
// `place` is read-only for the whole kernel and aligned to 16 bytes.
__device__ __forceinline__ uint4 load_streaming(const void* place) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(place));
    return value;
}

// The same for what an earlier kernel of the same step has written.
__device__ __forceinline__ uint4 load_once(const void* place) {
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(place));
    return value;
}

// Programmatic dependent launch (sm_90 and later): let the next kernel of the stream begin now; wait until the kernel
// before has ended and its writes are seen. Nothing where the launch did not ask for it.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ unsigned shared_address(const void* place) {
    return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

// Copy 16 bytes from global to shared memory without waiting; visible to this thread after cp_async_wait.
__device__ __forceinline__ void cp_async16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *reinterpret_cast<uint4*>(shared) = *reinterpret_cast<const uint4*>(global);
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most PENDING of the committed groups of this thread are still on their way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four 8x8 matrices of f16 from shared memory: lane l gives the address of row l % 8 of matrix l / 8 and receives, of
// each matrix, elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&matrices)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d [16, 8] float32 += a [16, 16] f16 @ b [16, 8] f16, spread over a warp as the PTX manual's m16n8k16 says.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // sm_75 has half of it: columns 0 to 7 of a, then 8 to 15
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// a & mask | bits in one instruction: of two constants the compiler makes two.
__device__ __forceinline__ unsigned and_or(unsigned a, unsigned mask, unsigned bits) {
    unsigned result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
    return result;
}

// Two bfloat16 in a word, `low` in the lower half, each rounded to nearest.
__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else  // sm_75 has no bfloat16
    const unsigned a = __float_as_uint(low), b = __float_as_uint(high);
    return (a + 0x7fffu + (a >> 16 & 1u)) >> 16 | (b + 0x7fffu + (b >> 16 & 1u)) & 0xffff0000u;
#endif
}

// a - b for both halves of two pairs of bfloat16.
__device__ __forceinline__ unsigned subtract_bf16(unsigned a, unsigned b) {
#if __CUDA_ARCH__ >= 800
    unsigned difference;  // b * -1 + a: there is no subtraction before sm_90
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(b), "r"(0xbf80bf80u), "r"(a));
    return difference;
#else
    return bf16_pair(__uint_as_float(a << 16) - __uint_as_float(b << 16),
                     __uint_as_float(a & 0xffff0000u) - __uint_as_float(b & 0xffff0000u));
#endif
}

// As mma_m16n8k16, with a and b of bfloat16.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // sm_75 has no bfloat16: the 16 products of each of this lane's four sums, one lane of its row after another
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int t = 0; t < 4; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned row = __shfl_sync(0xffffffffu, a[half * 2], lane / 4 * 4 + t);
            const unsigned row8 = __shfl_sync(0xffffffffu, a[half * 2 + 1], lane / 4 * 4 + t);
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const unsigned column = __shfl_sync(0xffffffffu, b[half], (lane % 4 * 2 + c) * 4 + t);
                const float low = __uint_as_float(column << 16), high = __uint_as_float(column & 0xffff0000u);
                d[c] = fmaf(__uint_as_float(row << 16), low, d[c]);
                d[c] = fmaf(__uint_as_float(row & 0xffff0000u), high, d[c]);
                d[2 + c] = fmaf(__uint_as_float(row8 << 16), low, d[2 + c]);
                d[2 + c] = fmaf(__uint_as_float(row8 & 0xffff0000u), high, d[2 + c]);
            }
        }
#endif
}

#endif
