// The first half of RWKV's feed-forward: y = relu(x @ w.T)^2, with no norm before it.
//
// Shapes    w [out_features][in_features] of type W (dot.cuh, tiles.cuh); x, and y, which is written for its reader:
//           activations.cuh.
// Threads   as linear.cu; a thread ends with two neighbouring outputs of one column.
// Bytes     the weights once per 8 columns.
#include "activated.cuh"
#include "products.cuh"

template <class W, int COLUMNS>
__global__ void __launch_bounds__(W::THREADS, W::min_blocks(COLUMNS))
    linear_squared_relu(const typename W::Element* __restrict__ w, const typename W::Param* __restrict__ params,
                        int group_shift, const typename W::Activation* x, float* rows, unsigned short* split,
                        const int* __restrict__ place, int in_features, int out_features, int n) {
    const Product product =
        normed_product<W, COLUMNS>(w, params, group_shift, x, nullptr, 0, 0.f, in_features, out_features, n);
    const int row = 2 * product.pair;
    if (!product.exists || row >= out_features) return;
    const Writer writer = {rows, split, place, out_features};
    writer.write(product.column, row, activated(SQUARED_RELU, product.first));
    if (row + 1 < out_features) writer.write(product.column, row + 1, activated(SQUARED_RELU, product.second));
}
