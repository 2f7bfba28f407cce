// Queries, keys and values of n tokens: three products, RoPE on q and k, k and v appended to the cache.
//
//     q = rope(norm(x) @ wq.T + bq), k = rope(norm(x) @ wk.T + bk), v = norm(x) @ wv.T + bv
//
// Shapes    w [(n_heads + 2 * n_kv_heads) * head_dim][in_features] of type W (dot.cuh, tiles.cuh): the rows of wq, wk,
//           wv in the order of pairs (rope.cuh); bias float32, in the same order, null for none; x, squares:
//           activations.cuh; *position: how many positions are filled, so the first of these; angles, q, keys, values
//           as in rope.cuh.
// Threads   as linear.cu; a thread ends with the two outputs that turn together (for v: two neighbours) of one token.
// Bytes     the weights once per 8 columns.
#include "products.cuh"
#include "rope.cuh"

template <class W, class KV, int COLUMNS>
__global__ void __launch_bounds__(W::THREADS, W::min_blocks(COLUMNS))
    qkv_rope(const typename W::Element* __restrict__ w, const typename W::Param* __restrict__ params, int group_shift,
             const typename W::Activation* x, const float* squares, int n_squares, float eps,
             const float* __restrict__ bias, const float* __restrict__ angles, const int* position, float* q, KV* keys,
             KV* values, int in_features, int n, int n_heads, int n_kv_heads, int head_dim, int capacity,
             int half_split) {
    const int out_features = (n_heads + 2 * n_kv_heads) * head_dim;
    Product product = normed_product<W, COLUMNS>(w, params, group_shift, x, squares, n_squares, eps, in_features,
                                                 out_features, n);
    const Pair pair(product.pair, n_heads, n_kv_heads, head_dim, half_split);
    if (!product.exists || !pair.exists) return;
    if (bias) product.first += bias[2 * product.pair], product.second += bias[2 * product.pair + 1];
    const int place = *position + product.column;
    const float2 turned = turn(pair, make_float2(product.first, product.second), angles, place, head_dim);
    store_pair(pair, turned, place, q + static_cast<size_t>(product.column) * padded(n_heads * head_dim), keys, values,
               head_dim, capacity);
}
