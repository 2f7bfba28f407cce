// A float32 row as the sum of two float16 rows, for tensor cores: x * scale = high + low, to about 22 bits.
//
// scale is the power of two that brings the row's largest element to 2^14 ... 2^15, so nothing overflows and small rows
// keep their bits; multiplying by it, and by its inverse later, is exact.
//
// Shapes    x float32 [n][dim]; high, low float16 [n][dim]; inverse_scales float32 [n]; rows padded, padding zero.
//           place int32 [dim]: number k goes to place[k], null for order.
// Threads   one block of SPLIT_THREADS per row; a thread takes every SPLIT_THREADS-th float4.
// Bytes     x read twice (the second time from L1), the same number written.
#include "common.cuh"

constexpr int SPLIT_THREADS = 256;

extern "C" __global__ void __launch_bounds__(SPLIT_THREADS)
    split_halves(const float* __restrict__ x, __half* __restrict__ high, __half* __restrict__ low,
                 float* __restrict__ inverse_scales, const int* __restrict__ place, int dim) {
    __shared__ float scratch[SPLIT_THREADS / WARP];
    const int stride = padded(dim);
    const size_t row = static_cast<size_t>(blockIdx.x) * stride;
    float largest = 0.f;
    for (int i = threadIdx.x * 4; i < stride; i += SPLIT_THREADS * 4) {
        const float4 v = *reinterpret_cast<const float4*>(x + row + i);
        largest = fmaxf(fmaxf(fmaxf(largest, fabsf(v.x)), fmaxf(fabsf(v.y), fabsf(v.z))), fabsf(v.w));
    }
    largest = warp_max(largest);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = largest;
    __syncthreads();
    for (int warp = 0; warp < SPLIT_THREADS / WARP; warp++) largest = fmaxf(largest, scratch[warp]);
    // the exponent of the largest element is e; that of the scale 14 - e, within what float32 has
    const int e = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
    const int exponent = largest == 0.f ? 0 : min(14 - e, 126);
    const float scale = __uint_as_float(static_cast<unsigned>(exponent + 127) << 23);
    if (threadIdx.x == 0) inverse_scales[blockIdx.x] = __uint_as_float(static_cast<unsigned>(127 - exponent) << 23);

    for (int i = threadIdx.x * 4; i < stride; i += SPLIT_THREADS * 4) {
        const float4 v = *reinterpret_cast<const float4*>(x + row + i);
        const float scaled[4] = {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
        __half highs[4], lows[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            highs[j] = __float2half_rn(scaled[j]);
            lows[j] = __float2half_rn(scaled[j] - __half2float(highs[j]));
        }
        if (place) {
            for (int j = 0; j < 4 && i + j < dim; j++) {
                high[row + place[i + j]] = highs[j];
                low[row + place[i + j]] = lows[j];
            }
            continue;
        }
        *reinterpret_cast<uint2*>(high + row + i) = *reinterpret_cast<const uint2*>(highs);
        *reinterpret_cast<uint2*>(low + row + i) = *reinterpret_cast<const uint2*>(lows);
    }
}
