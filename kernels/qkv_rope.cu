// Queries, keys and values of n tokens: three products, RoPE on q and k, k and v appended to the cache.
//
//     q = rope(x @ wq.T), k = rope(x @ wk.T), v = x @ wv.T
//
// Shapes    wq [n_heads * head_dim][in_features], wk and wv [n_kv_heads * head_dim][in_features] of type Row, the same
//           group size; x float32 [n][in_features], padded; *position: how many positions are filled, so the first of
//           these; angles, q, keys, values as in rope.cuh.
// Threads   grid (ceil(pairs / WARPS_PER_BLOCK), ceil(n / COLUMNS)), block WARPS_PER_BLOCK * 32: a warp makes the two
//           outputs that turn together (for v: two neighbours), for COLUMNS columns.
// Bytes     the three matrices once per 8 columns.
#include "dot.cuh"

#include "rope.cuh"

template <class Row, class KV, int COLUMNS>
__global__ void __launch_bounds__(WARPS_PER_BLOCK * WARP, 1)
    qkv_rope(const typename Row::Element* __restrict__ wq, const float* __restrict__ q_scales,
             const typename Row::Element* __restrict__ wk, const float* __restrict__ k_scales,
             const typename Row::Element* __restrict__ wv, const float* __restrict__ v_scales, int group_size,
             const float* __restrict__ x, const float* __restrict__ angles, const int* __restrict__ position,
             float* __restrict__ q, KV* __restrict__ keys, KV* __restrict__ values, int in_features, int n,
             int n_heads, int n_kv_heads, int head_dim, int capacity, int half_split) {
    const int lane = threadIdx.x % WARP;
    const Pair pair(blockIdx.x * WARPS_PER_BLOCK + threadIdx.x / WARP, n_heads, n_kv_heads, head_dim, half_split);
    if (!pair.exists) return;
    const typename Row::Element* w = pair.is_q ? wq : pair.is_v ? wv : wk;
    const float* scales = pair.is_q ? q_scales : pair.is_v ? v_scales : k_scales;
    const int first_column = blockIdx.y * COLUMNS, n_left = n - first_column;

    float sums[2][COLUMNS];
    dot_two_rows<Row, COLUMNS>(Row(w, scales, group_size, in_features, pair.head * head_dim + pair.a),
                               Row(w, scales, group_size, in_features, pair.head * head_dim + pair.b),
                               x + static_cast<size_t>(first_column) * padded(in_features), in_features, n_left, sums);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        if (lane != c || c >= n_left) continue;
        const int token = first_column + c;
        turn_and_store(pair, sums[0][c], sums[1][c], angles, *position + token,
                       q + static_cast<size_t>(token) * padded(n_heads * head_dim), keys, values, head_dim, capacity);
    }
}
