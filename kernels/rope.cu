// What follows the products for queries, keys and values of a prompt: RoPE on q and k, k and v appended to the cache.
//
// Shapes    qkv float32 [n][(n_heads + 2 * n_kv_heads) * head_dim], padded: the products in the order of pairs; bias in
//           the same order, null for none; angles, keys, values, and q, which is written, as in rope.cuh; *position:
//           how many positions are filled.
// Threads   grid (ceil(pairs / ROPE_THREADS), n), block ROPE_THREADS: a thread takes the two elements that turn
//           together (for v: two neighbours).
// Bytes     qkv once; q, keys and values written. Tokens of a decode step have all this fused: qkv_rope.cu.
#include "rope.cuh"

constexpr int ROPE_THREADS = 128;

template <class KV>
__global__ void __launch_bounds__(ROPE_THREADS)
    rope_append(const float* __restrict__ qkv, const float* __restrict__ bias, const float* __restrict__ angles,
                const int* __restrict__ position, float* __restrict__ q, KV* __restrict__ keys,
                KV* __restrict__ values, int n_heads, int n_kv_heads, int head_dim, int capacity, int half_split) {
    const int token = blockIdx.y, number = blockIdx.x * ROPE_THREADS + threadIdx.x;
    const Pair pair(number, n_heads, n_kv_heads, head_dim, half_split);
    if (!pair.exists) return;
    const float* products = qkv + static_cast<size_t>(token) * padded((n_heads + 2 * n_kv_heads) * head_dim);
    float first = products[2 * number], second = products[2 * number + 1];
    if (bias) first += bias[2 * number], second += bias[2 * number + 1];
    turn_and_store(pair, first, second, angles, *position + token,
                   q + static_cast<size_t>(token) * padded(n_heads * head_dim), keys, values, head_dim, capacity);
}
