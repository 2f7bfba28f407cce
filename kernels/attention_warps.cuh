// The end of an attention block whose warps shared nothing until then: their sums put together, in the order of warps.
//
// A group of lanes_per_key lanes has of each row the sum of its keys' weights, and for 8 elements of a head the sums of
// weight * value; a warp has one `largest` score per row, to which its weights are relative, -infinity where it had no
// key. Lanes are added first (a butterfly), then warps through shared memory, each brought to the largest of all.
//
// Shapes    partial float32 [..][padded(head_dim)], stats float2 [..]: as attention.cu; index_of(row): where a row's go.
//           Shared memory: WARPS * ROWS * stride floats, which the launch gives.
#pragma once
#include "common.cuh"

template <int WARPS, int ROWS, class IndexOf>
__device__ __forceinline__ void add_up_warps(const float (&largest)[ROWS], float (&sum)[ROWS], float (&sums)[ROWS][8],
                                             int n_rows, int stride, int lanes_per_key, float* partial, float2* stats,
                                             IndexOf index_of) {
    extern __shared__ float4 shared4[];
    __shared__ float largest_of[WARPS][ROWS], sum_of[WARPS][ROWS];
    float* sums_of = reinterpret_cast<float*>(shared4);  // [WARPS][ROWS][stride]
    const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    const int part = lane % lanes_per_key, slot = lane / lanes_per_key;
    const bool has_part = part * 8 < stride;  // lanes are left over where stride / 8 is no power of two
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        for (int offset = WARP / 2; offset >= lanes_per_key; offset /= 2) {
            sum[row] += __shfl_xor_sync(ALL_LANES, sum[row], offset);
#pragma unroll
            for (int i = 0; i < 8; i++) sums[row][i] += __shfl_xor_sync(ALL_LANES, sums[row][i], offset);
        }
        if (lane == 0) largest_of[warp][row] = largest[row], sum_of[warp][row] = sum[row];
        if (slot == 0 && has_part)
#pragma unroll
            for (int i = 0; i < 8; i++) sums_of[(warp * ROWS + row) * stride + part * 8 + i] = sums[row][i];
    }
    __syncthreads();
    for (int item = thread; item < n_rows * stride; item += WARPS * WARP) {
        const int row = item / stride, d = item % stride;
        float most = NEGATIVE_INFINITY, total = 0.f, of_row = 0.f;
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, largest_of[w][row]);
        for (int w = 0; w < WARPS; w++) {
            if (largest_of[w][row] == NEGATIVE_INFINITY) continue;  // that warp had no key
            const float factor = expf(largest_of[w][row] - most);
            total = fmaf(factor, sums_of[(w * ROWS + row) * stride + d], total);
            of_row = fmaf(factor, sum_of[w][row], of_row);
        }
        const size_t index = index_of(row);
        partial[index * stride + d] = total;
        if (d == 0) stats[index] = make_float2(most, of_row);
    }
}
