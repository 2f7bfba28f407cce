// The first half of the feed-forward: y = silu(x @ gate.T) * (x @ up.T), silu(a) = a / (1 + exp(-a)).
//
// Shapes    gate, up [out_features][in_features] of type Row (weights.cuh), the same group size; x float32
//           [n][in_features]; y float32 [n][out_features]; rows of all padded as common.cuh says.
// Threads   grid (out_features / WARPS_PER_BLOCK, ceil(n / COLUMNS)), block WARPS_PER_BLOCK * 32: a warp makes one
//           output for COLUMNS columns, from one row of gate and the same row of up.
// Bytes     both matrices once per 8 columns; the two products never go to memory.
#include "dot.cuh"

template <class Row, int COLUMNS>
__global__ void __launch_bounds__(WARPS_PER_BLOCK * WARP, 1)
    gate_up(const typename Row::Element* __restrict__ gate, const float* __restrict__ gate_scales,
            const typename Row::Element* __restrict__ up, const float* __restrict__ up_scales, int group_size,
            const float* __restrict__ x, float* __restrict__ y, int in_features, int out_features, int n) {
    const int lane = threadIdx.x % WARP;
    const int row = blockIdx.x * WARPS_PER_BLOCK + threadIdx.x / WARP;
    if (row >= out_features) return;
    const int first_column = blockIdx.y * COLUMNS, n_left = n - first_column;

    float sums[2][COLUMNS];
    dot_two_rows<Row, COLUMNS>(Row(gate, gate_scales, group_size, in_features, row),
                               Row(up, up_scales, group_size, in_features, row),
                               x + static_cast<size_t>(first_column) * padded(in_features), in_features, n_left,
                               sums);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        if (lane != c || c >= n_left) continue;
        y[static_cast<size_t>(first_column + c) * padded(out_features) + row] = silu(sums[0][c]) * sums[1][c];
    }
}
