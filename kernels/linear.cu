// y = x @ w.T: a matrix product with weights, for 1 to 8 columns in one pass over the weights.
//
//     y[c][o] = sum over k of w[o][k] * x[c][k]
//
// Shapes    w [out_features][in_features] of type Row (weights.cuh); x float32 [n][in_features];
//           y float32 [n][out_features]; rows of all three padded as common.cuh says.
// Threads   grid (row pairs / WARPS_PER_BLOCK, ceil(n / COLUMNS)), block WARPS_PER_BLOCK * 32: a warp makes rows 2p and
//           2p + 1 for COLUMNS columns. More columns read the weights again; prompts take linear_prompt.cu instead.
// Bytes     the weights once per 8 columns; x and y are small beside them.
#include "dot.cuh"

template <class Row, int COLUMNS>
__global__ void __launch_bounds__(WARPS_PER_BLOCK * WARP, 1)
    linear(const typename Row::Element* __restrict__ w, const float* __restrict__ scales, int group_size,
           const float* __restrict__ x, float* __restrict__ y, int in_features, int out_features, int n) {
    const int lane = threadIdx.x % WARP;
    const int row = 2 * (blockIdx.x * WARPS_PER_BLOCK + threadIdx.x / WARP);
    if (row >= out_features) return;
    const int first_column = blockIdx.y * COLUMNS, n_left = n - first_column;
    const int next_row = min(row + 1, out_features - 1);

    float sums[2][COLUMNS];
    dot_two_rows<Row, COLUMNS>(Row(w, scales, group_size, in_features, row),
                               Row(w, scales, group_size, in_features, next_row),
                               x + static_cast<size_t>(first_column) * padded(in_features), in_features, n_left,
                               sums);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        if (lane != c || c >= n_left) continue;  // one lane per column, so that the stores are made side by side
        float* out = y + static_cast<size_t>(first_column + c) * padded(out_features) + row;
        out[0] = sums[0][c];
        if (row + 1 < out_features) out[1] = sums[1][c];
    }
}
