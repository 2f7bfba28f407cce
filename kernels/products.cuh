// A product with weights of any type and RMSNorm before it, for the kernels that differ in what they do with the
// result.
#pragma once
#include "dot.cuh"
#include "tiles.cuh"

// (rmsnorm(x) @ w.T) for COLUMNS columns from `first_column` on, n in all. The norm's weight is in x already; squares,
// eps: activations.cuh. row_block: which rows, for kernels with blocks of several matrices. The whole block must come
// here.
template <class W, int COLUMNS, class Block = GridBlock>
__device__ __forceinline__ Product normed_product(const typename W::Element* w, const typename W::Param* params,
                                                  int group_shift, const typename W::Activation* x,
                                                  const float* squares, int n_squares, float eps, int in_features,
                                                  int out_features, int n, Block row_block = {}) {
    const int first_column = blockIdx.y * COLUMNS, n_left = n - first_column, warp = threadIdx.x / WARP;
    float factor = 1.f;
    // while the first weights are on their way
    auto norm = [&](int column) {
        return inverse_rms(squares, n_squares, first_column + min(column, n_left - 1), in_features, eps);
    };
    Product product;
    if constexpr (W::TILED) {
        const W tiles(w, params, group_shift, in_features);
        product = tile_product<W, COLUMNS>(
            tiles, x + static_cast<size_t>(first_column) * 2 * tiled(in_features), in_features, n_left, [&] {
                if (warp < COLUMNS / 2) {  // a warp has two columns
                    const float even = norm(warp * 2), odd = norm(warp * 2 + 1);
                    factor = threadIdx.x % WARP < TILE_ROWS ? even : odd;
                }
            }, row_block);
    } else {
        product = row_product<W, COLUMNS>(
            w, x + static_cast<size_t>(first_column) * padded(in_features), in_features, out_features, n_left, [&] {
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    const float of_column = norm(c);
                    if (threadIdx.x % WARP == c) factor = of_column;
                }
            }, row_block);
    }
    product.first *= factor;
    product.second *= factor;
    product.column += first_column;
    return product;
}
