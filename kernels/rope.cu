// After the three products of a prompt: RoPE on q and k, k and v appended to the cache. (Few tokens: qkv_rope.cu.)
//
// Shapes    q turned in place; k, v float32 [n][n_kv_heads * head_dim], padded; *position: how many positions are
//           filled; angles, q, keys, values as in rope.cuh.
// Threads   grid (ceil(pairs / ROPE_THREADS), n): a thread per pair.
// Bytes     q, k, v read, q and the cache written once.
#include "rope.cuh"

constexpr int ROPE_THREADS = 128;

template <class KV>
__global__ void __launch_bounds__(ROPE_THREADS)
    rope_append(float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                const float* __restrict__ angles, const int* __restrict__ position, KV* __restrict__ keys,
                KV* __restrict__ values, int n_heads, int n_kv_heads, int head_dim, int capacity, int half_split) {
    const Pair pair(blockIdx.x * ROPE_THREADS + threadIdx.x, n_heads, n_kv_heads, head_dim, half_split);
    if (!pair.exists) return;
    const size_t token = blockIdx.y;
    float* q_row = q + token * padded(n_heads * head_dim);
    const float* in = pair.is_q ? q_row : (pair.is_v ? v : k) + token * padded(n_kv_heads * head_dim);
    turn_and_store(pair, in[pair.head * head_dim + pair.a], in[pair.head * head_dim + pair.b], angles,
                   *position + static_cast<int>(token), q_row, keys, values, head_dim, capacity);
}
