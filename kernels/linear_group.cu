// Products with several matrices of one type in one launch: y_s = act_s(x_s @ w_s.T + bias_s) for all segments s.
//
// Shapes    w: the matrices one after the other, each as linear.cu has it, and params in the same way; table: what each
//           block does, RowBlock below. x is a bundle of vectors, each kind contiguous for all n tokens: the input of a
//           segment is n * x_prefix further, float32 [n][padded(in_features)], or split for tiles (activations.cuh). So
//           is y: at n * y_prefix float32 [n][padded(out_features)]. bias float32, of all segments.
// Threads   grid (blocks of all segments, ceil(n / COLUMNS)), blocks as linear.cu's. No block has rows of two segments.
// Bytes     the weights once per 8 columns, and 48 of the table per block, which wait for no other kernel either.
#include "activated.cuh"
#include "products.cuh"

// One block's rows: block `row_block` of a matrix. It does not depend on n, so that a table is made once.
struct __align__(16) RowBlock {
    int weights;  // where the matrix begins, in units of 16 bytes
    int params;   // and its params
    int group_shift, in_features, out_features, row_block;
    int x_prefix, y_prefix;  // numbers of one token before the segment's, in x and y
    int bias;                // where its bias begins; -1 for none
    int activation;
    int unused[2];
};

template <class W, int COLUMNS>
__global__ void __launch_bounds__(W::THREADS, W::min_blocks(COLUMNS))
    linear_group(const typename W::Element* __restrict__ w, const typename W::Param* __restrict__ params,
                 const RowBlock* __restrict__ table, const typename W::Activation* x, const float* __restrict__ bias,
                 float* y, int n) {
    const RowBlock block = table[blockIdx.x];
    const uint4* matrix = reinterpret_cast<const uint4*>(w) + block.weights;
    const int row = 2 * W::own_pair(block.row_block);
    float2 added = {};  // its padding goes up to the pair of the last row
    if (block.bias >= 0 && row < block.out_features) added = *reinterpret_cast<const float2*>(bias + block.bias + row);
    const Product product = normed_product<W, COLUMNS>(
        reinterpret_cast<const typename W::Element*>(matrix), params + block.params, block.group_shift,
        x + static_cast<size_t>(n) * block.x_prefix, nullptr, 0, 0.f, block.in_features, block.out_features, n,
        block.row_block);
    if (!product.exists || row >= block.out_features) return;
    float* out = y + static_cast<size_t>(n) * block.y_prefix +
                 static_cast<size_t>(product.column) * padded(block.out_features) + row;
    out[0] = activated(block.activation, product.first + added.x);
    if (row + 1 < block.out_features) out[1] = activated(block.activation, product.second + added.y);
}
