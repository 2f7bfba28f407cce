// What a norm must know of a row: a block's sums over it, in a fixed order.
#pragma once
#include "common.cuh"

// h = (x - mean) * factor, and then LayerNorm's weight and bias.
struct Norm {
    float mean, factor;

    __device__ __forceinline__ float operator()(float x, float weight, float bias) const {
        return (x - mean) * factor * weight + bias;
    }
};

// The sum of (x - mean)^POWER over the row's dim numbers, not over their padding, by a block of THREADS; the same bits
// in every thread. scratch: shared, as block_sum's.
template <int THREADS, int POWER>
__device__ __forceinline__ float row_sum(const float* row, int dim, float mean, float* scratch) {
    float sum = 0.f;
    for (int k = 4 * threadIdx.x; k < dim; k += 4 * THREADS) {
        const float4 v = *reinterpret_cast<const float4*>(row + k);
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (k + i >= dim) continue;
            const float from_mean = values[i] - mean;
            sum += POWER == 1 ? from_mean : from_mean * from_mean;
        }
    }
    return block_sum<THREADS>(sum, scratch);
}

// LayerNorm's: 1 / sqrt(variance + eps). Two passes, the second from the L1 cache: the mean of x^2 less the square of
// the mean would lose what is small beside the mean.
template <int THREADS>
__device__ __forceinline__ Norm layer_norm(const float* row, int dim, float eps, float (*scratch)[THREADS / WARP]) {
    const float mean = row_sum<THREADS, 1>(row, dim, 0.f, scratch[0]) / dim;
    return {mean, 1.f / sqrtf(row_sum<THREADS, 2>(row, dim, mean, scratch[1]) / dim + eps)};
}
