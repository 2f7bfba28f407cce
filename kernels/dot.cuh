// Products with floating-point weights: two rows times COLUMNS columns of float32 activations, by one warp.
//
//     sums[r][c] = sum over k of row_r[k] * x[c][k], c < COLUMNS; x has n_left columns, which may be more or fewer
//
// The warp's lanes take neighbouring 16-byte pieces of the rows, so a load of the warp is 512 neighbouring bytes, and
// have DEPTH pieces of each row in flight; two rows share each load of x, which comes from the L1 cache. Sums are
// float32: along k within a lane, then a butterfly over the lanes. The order is fixed, so two runs give equal bits.
#pragma once
#include "product.cuh"
#include "weights.cuh"

// A lane per column gets a Product. prologue: run once the previous kernel has ended. row_block: which pairs of rows.
template <class Row, int COLUMNS, class Prologue, class Block = GridBlock>
__device__ __forceinline__ Product row_product(const typename Row::Element* w, const float* x, int in_features,
                                               int out_features, int n_left, Prologue prologue,
                                               Block row_block = {}) {
    constexpr int DEPTH = COLUMNS == 1 ? 4 : 2;
    constexpr int STEP = WARP * Row::PER_LOAD;
    const int stride = padded(in_features), lane = threadIdx.x % WARP;
    const int pair = Row::own_pair(row_block);
    // warps past the last pair repeat it: their result is dropped, but they take part in what a block does together
    const int row = min(2 * pair, padded_rows(out_features) - 2);
    const Row rows[2] = {Row(w, in_features, row), Row(w, in_features, row + 1)};

    uint4 coming[DEPTH][2];
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
        const int k = lane * Row::PER_LOAD + d * STEP;
        if (k < stride)
            for (int r = 0; r < 2; r++) coming[d][r] = load_streaming(rows[r].row + k);
    }
    // Weights are always there; x is what the previous kernel writes. The condition always holds: without a branch here
    // the assembler moves the wait up, in front of the loads (tests/kernels/test_sass.py)
    if (n_left > 0) wait_for_previous_kernel();
    launch_dependents();
    prologue();

    const float* columns[COLUMNS];
    float sums[2][COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        // a missing column repeats the last one: loads stay in bounds, its sums are dropped
        columns[c] = x + static_cast<size_t>(min(c, n_left - 1)) * stride;
        sums[0][c] = sums[1][c] = 0.f;
    }
    for (int first = lane * Row::PER_LOAD; first < stride; first += STEP * DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int k = first + d * STEP, next = k + STEP * DEPTH;
            if (k >= stride) break;
            float values[2][Row::PER_LOAD];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                Row::widen(coming[d][r], values[r]);
                if (next < stride) coming[d][r] = load_streaming(rows[r].row + next);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
                for (int i = 0; i < Row::PER_LOAD; i += 4) {
                    const float4 v = *reinterpret_cast<const float4*>(columns[c] + k + i);
                    const float of_x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        sums[0][c] = fmaf(values[0][i + j], of_x[j], sums[0][c]);
                        sums[1][c] = fmaf(values[1][i + j], of_x[j], sums[1][c]);
                    }
                }
            }
        }
    }
    Product product = {pair, Row::own_column(), 0.f, 0.f, Row::own_column() < min(COLUMNS, n_left)};
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {  // lane c has column c, so that stores are made side by side
        const float first = warp_sum(sums[0][c]), second = warp_sum(sums[1][c]);
        if (lane == c) product.first = first, product.second = second;
    }
    return product;
}
