// What all kernels share: names of sizes, sums over a warp and a block in a fixed order, element types.
//
// Layout rule of every array of numbers here: a row is padded with zeros to a multiple of ROW_PADDING elements, so that
// every row begins on a 16-byte boundary and loops over a row take whole 16-byte vectors with no tail. Padding times
// padding is zero, so sums may run over it. Kernels never write padding, or write zeros there.
#pragma once
#include <cuda_fp16.h>

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;
constexpr int ROW_PADDING = 16;

#define NEGATIVE_INFINITY __int_as_float(0xff800000)  // NVRTC has no <math.h>, hence no INFINITY

__host__ __device__ constexpr int padded(int n) { return (n + ROW_PADDING - 1) / ROW_PADDING * ROW_PADDING; }
__host__ __device__ constexpr int padded_rows(int n) { return (n + 1) / 2 * 2; }  // of weights: whole pairs

// The sum over the lanes of a warp, the same bits in every lane: a butterfly, so the order of additions is fixed.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset >>= 1) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset >>= 1)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, offset));
    return value;
}

// The sum over a block of THREADS, the same bits in every thread. `scratch` is shared, THREADS / WARP floats.
template <int THREADS>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int warp = 0; warp < THREADS / WARP; warp++) total += scratch[warp];
    return total;
}

// Eight neighbouring numbers of a row as float32; `row` is aligned to 16 bytes.
__device__ __forceinline__ void load8(const float* row, float (&values)[8]) {
    const float4 low = *reinterpret_cast<const float4*>(row), high = *reinterpret_cast<const float4*>(row + 4);
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
}

__device__ __forceinline__ void load8(const __half* row, float (&values)[8]) {
    const uint4 packed = *reinterpret_cast<const uint4*>(row);
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
    }
}

// Keys and values of 8 bits: whole numbers, which a scale per head and position turns into floats.
__device__ __forceinline__ void widen8(uint2 packed, float (&values)[8]) {
    const unsigned words[2] = {packed.x, packed.y};
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = static_cast<float>(static_cast<signed char>(words[i / 4] >> (8 * (i % 4))));
}

__device__ __forceinline__ void load8(const signed char* row, float (&values)[8]) {
    widen8(__ldcg(reinterpret_cast<const uint2*>(row)), values);
}

__device__ __forceinline__ float silu(float a) { return a / (1.f + expf(-a)); }

__device__ __forceinline__ void store(float* place, float value) { *place = value; }
__device__ __forceinline__ void store(__half* place, float value) { *place = __float2half_rn(value); }
__device__ __forceinline__ void store(signed char* place, float value) {
    *place = static_cast<signed char>(__float2int_rn(value));
}
