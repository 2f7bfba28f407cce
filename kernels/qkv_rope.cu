// Queries, keys and values of n tokens: three products, RoPE on q and k, k and v appended to the cache.
//
//     q = rope(x @ wq.T), k = rope(x @ wk.T), v = x @ wv.T
//     rope turns elements a, b of a head by the angle of its position: (a cos - b sin, a sin + b cos), where a, b are
//     elements 2j, 2j + 1 of the head (interleaved) or j, j + head_dim / 2 (half_split).
//
// Shapes    wq [n_heads * head_dim][in_features], wk and wv [n_kv_heads * head_dim][in_features] of type Row, the same
//           group size; x float32 [n][in_features]; angles float32 [capacity][head_dim]: cos of the head_dim / 2 angles
//           of a position, then their sin; q float32 [n][n_heads * head_dim], padded; keys, values of type KV
//           [n_kv_heads][capacity][padded(head_dim)]; *position: how many positions are filled, so the first of these.
// Threads   grid (pairs / WARPS_PER_BLOCK, ceil(n / COLUMNS)), block WARPS_PER_BLOCK * 32: a warp makes the two outputs
//           that turn together (for v: two neighbours), for COLUMNS columns.
// Bytes     the three matrices once per 8 columns.
#include "dot.cuh"

template <class Row, class KV, int COLUMNS>
__global__ void __launch_bounds__(WARPS_PER_BLOCK * WARP, 1)
    qkv_rope(const typename Row::Element* __restrict__ wq, const float* __restrict__ q_scales,
             const typename Row::Element* __restrict__ wk, const float* __restrict__ k_scales,
             const typename Row::Element* __restrict__ wv, const float* __restrict__ v_scales, int group_size,
             const float* __restrict__ x, const float* __restrict__ angles, const int* __restrict__ position,
             float* __restrict__ q, KV* __restrict__ keys, KV* __restrict__ values, int in_features, int n,
             int n_heads, int n_kv_heads, int head_dim, int capacity, int half_split) {
    const int lane = threadIdx.x % WARP;
    const int half_dim = head_dim / 2;
    int pair = blockIdx.x * WARPS_PER_BLOCK + threadIdx.x / WARP;
    int head = pair / half_dim;  // heads of q, then of k, then of v
    if (head >= n_heads + 2 * n_kv_heads) return;
    const int j = pair % half_dim;
    const bool is_q = head < n_heads, is_v = head >= n_heads + n_kv_heads;
    if (!is_q) head -= is_v ? n_heads + n_kv_heads : n_heads;
    const typename Row::Element* w = is_q ? wq : is_v ? wv : wk;
    const float* scales = is_q ? q_scales : is_v ? v_scales : k_scales;
    const bool split = half_split && !is_v;
    const int a = split ? j : 2 * j, b = split ? j + half_dim : 2 * j + 1;  // within the head
    const int first_column = blockIdx.y * COLUMNS, n_left = n - first_column;

    float sums[2][COLUMNS];
    dot_two_rows<Row, COLUMNS>(Row(w, scales, group_size, in_features, head * head_dim + a),
                               Row(w, scales, group_size, in_features, head * head_dim + b),
                               x + static_cast<size_t>(first_column) * padded(in_features), in_features, n_left,
                               sums);
    const int start = *position + first_column;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        if (lane != c || c >= n_left) continue;
        float first = sums[0][c], second = sums[1][c];
        if (!is_v) {
            const float* turn = angles + static_cast<size_t>(start + c) * head_dim + j;
            const float cosine = turn[0], sine = turn[half_dim];
            first = sums[0][c] * cosine - sums[1][c] * sine;
            second = sums[0][c] * sine + sums[1][c] * cosine;
        }
        if (is_q) {
            float* out = q + static_cast<size_t>(first_column + c) * padded(n_heads * head_dim) + head * head_dim;
            out[a] = first;
            out[b] = second;
        } else {
            KV* out = (is_v ? values : keys) + (static_cast<size_t>(head) * capacity + start + c) * padded(head_dim);
            store(out + a, first);
            store(out + b, second);
        }
    }
}
