// After the three products of a prompt: RoPE on q and k, k and v appended to the cache. (A decode step does this in
// qkv_rope.cu, which says what RoPE is.)
//
// Shapes    q float32 [n][n_heads * head_dim], turned in place; k, v float32 [n][n_kv_heads * head_dim], rows padded;
//           angles, position, keys, values as in qkv_rope.cu.
// Threads   grid (ceil(pairs / ROPE_THREADS), n): a thread per pair that turns together, of q, of k, then of v.
// Bytes     q, k, v read, q and the cache written once.
#include "common.cuh"

constexpr int ROPE_THREADS = 128;

template <class KV>
__global__ void __launch_bounds__(ROPE_THREADS)
    rope_append(float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                const float* __restrict__ angles, const int* __restrict__ position, KV* __restrict__ keys,
                KV* __restrict__ values, int n_heads, int n_kv_heads, int head_dim, int capacity, int half_split) {
    const int half_dim = head_dim / 2, token = blockIdx.y;
    const int pair = blockIdx.x * ROPE_THREADS + threadIdx.x;
    int head = pair / half_dim;
    if (head >= n_heads + 2 * n_kv_heads) return;
    const int j = pair % half_dim;
    const bool is_q = head < n_heads, is_v = head >= n_heads + n_kv_heads;
    if (!is_q) head -= is_v ? n_heads + n_kv_heads : n_heads;
    const bool split = half_split && !is_v;
    const int a = split ? j : 2 * j, b = split ? j + half_dim : 2 * j + 1;

    const int width = padded((is_q ? n_heads : n_kv_heads) * head_dim);
    const size_t row = static_cast<size_t>(token) * width + head * head_dim;
    const float* in = (is_q ? q : is_v ? v : k) + row;
    const int place = *position + token;
    float first = in[a], second = in[b];
    if (!is_v) {
        const float* turn = angles + static_cast<size_t>(place) * head_dim + j;
        const float cosine = turn[0], sine = turn[half_dim], before = first;
        first = before * cosine - second * sine;
        second = before * sine + second * cosine;
    }
    if (is_q) {
        q[row + a] = first;
        q[row + b] = second;
    } else {
        KV* out = (is_v ? values : keys) + (static_cast<size_t>(head) * capacity + place) * padded(head_dim);
        store(out + a, first);
        store(out + b, second);
    }
}
