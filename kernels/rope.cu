// What follows the products for queries, keys and values where they are not fused: bias, RMSNorm of each head of q and k
// (Qwen3), RoPE, and k and v appended to the cache.
//
// Shapes    qkv float32 [n][(n_heads + 2 * n_kv_heads) * head_dim], padded: the products in the order of pairs; bias in
//           the same order, null for none; q_norm, k_norm float32 [head_dim]: weights of the norms, null for none;
//           angles, keys, values, and q, which is written, as in rope.cuh; *position: how many positions are filled.
// Threads   grid (ceil(heads / HEADS), n), block HEADS warps: a warp takes a head, a lane every WARP-th pair of elements
//           that turn together (for v: neighbours).
// Bytes     qkv once (with a norm twice, from cache); q, keys and values written. Tokens of a decode step have all this
//           fused, but for norms: qkv_rope.cu.
#include "ptx.cuh"
#include "rope.cuh"

constexpr int HEADS = 4;

template <class KV>
__global__ void __launch_bounds__(HEADS* WARP)
    rope_append(const float* qkv, const float* __restrict__ bias, const float* __restrict__ q_norm,
                const float* __restrict__ k_norm, float eps, const float* __restrict__ angles, const int* position,
                float* q, KV* keys, KV* values, int n_heads, int n_kv_heads, int head_dim, int capacity,
                int half_split) {
    const int token = blockIdx.y, lane = threadIdx.x % WARP, half_dim = head_dim / 2;
    const int first_pair = (blockIdx.x * HEADS + threadIdx.x / WARP) * half_dim;
    wait_for_previous_kernel();
    launch_dependents();
    const Pair of_head(first_pair, n_heads, n_kv_heads, head_dim, half_split);
    if (!of_head.exists) return;  // the whole warp
    const float* products = qkv + static_cast<size_t>(token) * padded((n_heads + 2 * n_kv_heads) * head_dim);
    auto load = [&](int number) {
        float2 pair = make_float2(products[2 * number], products[2 * number + 1]);
        if (bias) pair.x += bias[2 * number], pair.y += bias[2 * number + 1];
        return pair;
    };
    const float* norm = of_head.is_v ? nullptr : of_head.is_q ? q_norm : k_norm;
    float factor = 1.f;
    if (norm) {
        float square = 0.f;
        for (int j = lane; j < half_dim; j += WARP) {
            const float2 pair = load(first_pair + j);
            square += pair.x * pair.x + pair.y * pair.y;
        }
        factor = 1.f / sqrtf(warp_sum(square) / head_dim + eps);
    }
    for (int j = lane; j < half_dim; j += WARP) {
        const Pair pair(first_pair + j, n_heads, n_kv_heads, head_dim, half_split);
        float2 value = load(first_pair + j);
        if (norm) value.x *= factor * norm[pair.a], value.y *= factor * norm[pair.b];
        turn_and_store(pair, value.x, value.y, angles, *position + token,
                       q + static_cast<size_t>(token) * padded(n_heads * head_dim), keys, values, head_dim, capacity);
    }
}
