// The heart of every product with weights: two rows of weights times COLUMNS columns of activations, by one warp.
//
//     sums[r][c] = sum over k of row_r[k] * x[c][k], c < COLUMNS; x has n_left columns, which may be more or fewer
//
// The warp's lanes take neighbouring 16-byte pieces of the rows, so a load of the warp is 512 neighbouring bytes; two
// rows share each load of x, which comes from the L1 cache. Sums are float32: along k within a lane, then a butterfly
// over the lanes. The order is fixed, so two runs give equal bits; all lanes end with all sums.
#pragma once
#include "weights.cuh"

constexpr int WARPS_PER_BLOCK = 4;  // of all kernels that are built on this

template <class Row, int COLUMNS>
__device__ __forceinline__ void dot_two_rows(const Row& first, const Row& second, const float* __restrict__ x,
                                             int in_features, int n_left, float (&sums)[2][COLUMNS]) {
    const int stride = padded(in_features);
    const int lane = threadIdx.x % WARP;
    const float* columns[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        // a missing column repeats the last one: loads stay in bounds, its sums are dropped by the caller
        columns[c] = x + static_cast<size_t>(min(c, n_left - 1)) * stride;
        sums[0][c] = sums[1][c] = 0.f;
    }
    constexpr int UNROLL = COLUMNS == 1 ? 4 : COLUMNS == 2 ? 2 : 1;  // loads in flight, against registers for columns
#pragma unroll UNROLL
    for (int k = lane * Row::PER_LOAD; k < stride; k += WARP * Row::PER_LOAD) {
        float w[2][Row::PER_LOAD];
        first.load(k, w[0]);
        second.load(k, w[1]);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int i = 0; i < Row::PER_LOAD; i += 4) {
                const float4 v = __ldg(reinterpret_cast<const float4*>(columns[c] + k + i));
                const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sums[0][c] = fmaf(w[0][i + j], values[j], sums[0][c]);
                    sums[1][c] = fmaf(w[1][i + j], values[j], sums[1][c]);
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        sums[0][c] = warp_sum(sums[0][c]);
        sums[1][c] = warp_sum(sums[1][c]);
    }
}
