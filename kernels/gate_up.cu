// The first half of the feed-forward: y = silu(norm(x) @ gate.T + gate_bias) * (norm(x) @ up.T + up_bias), with
// silu(a) = a / (1 + exp(-a)).
//
// Shapes    w [2 * hidden][in_features] of type W (dot.cuh, tiles.cuh): rows 2o and 2o + 1 are row o of gate and of up;
//           bias float32 [2 * hidden] in the same order, null for none; x, squares, and y, which is written for its
//           reader: activations.cuh.
// Threads   as linear.cu; a thread ends with one output of one column.
// Bytes     the weights once per 8 columns; the two products never go to memory.
#include "products.cuh"

template <class W, int COLUMNS>
__global__ void __launch_bounds__(W::THREADS, W::min_blocks(COLUMNS))
    gate_up(const typename W::Element* __restrict__ w, const typename W::Param* __restrict__ params, int group_shift,
            const typename W::Activation* x, const float* squares, int n_squares, float eps,
            const float* __restrict__ bias, float* rows, unsigned short* split, const int* __restrict__ place,
            int in_features, int hidden, int n) {
    Product product = normed_product<W, COLUMNS>(w, params, group_shift, x, squares, n_squares, eps, in_features,
                                                 2 * hidden, n);
    if (!product.exists || product.pair >= hidden) return;
    if (bias) product.first += bias[2 * product.pair], product.second += bias[2 * product.pair + 1];
    const Writer writer = {rows, split, place, hidden};
    writer.write(product.column, product.pair, silu(product.first) * product.second);
}
