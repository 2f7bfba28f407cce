// What follows the products for queries, keys and values where they are not fused: bias, RMSNorm of each head of q and k
// (Qwen3), RoPE, and k and v appended to the cache; there of 8 bits, they are rounded with a scale per head and position:
//
//     scale = largest |x| of the head / 127, number = x / scale rounded to the nearest, ties to even
//
// Shapes    qkv float32 [n][(n_heads + 2 * n_kv_heads) * head_dim], padded: the products in the order of pairs; bias in
//           the same order, null for none; q_norm, k_norm float32 [head_dim]: weights of the norms, null for none;
//           angles, keys, values, and q, which is written, as in rope.cuh; key_scales, value_scales float32
//           [n_kv_heads][capacity], of 8 bits only; *position: how many positions are filled. In a window (its size
//           above 0) it is the number of the first token, capacity is n_places, q is turned at the token's position
//           in the cache, k is not turned, and both are written with pairs side by side: attention_window.cu.
// Threads   grid (ceil(heads / HEADS), n), block HEADS warps: a warp takes a head, a lane every WARP-th pair of elements
//           that turn together (for v: neighbours).
// Bytes     qkv once (with a norm or 8 bits again, from cache); q, keys and values written. Tokens of a decode step have
//           all this fused, but for norms and 8 bits: qkv_rope.cu.
#include "ptx.cuh"
#include "rope.cuh"

constexpr int HEADS = 4;

template <class KV>
__global__ void __launch_bounds__(HEADS* WARP)
    rope_append(const float* qkv, const float* __restrict__ bias, const float* __restrict__ q_norm,
                const float* __restrict__ k_norm, float eps, const float* __restrict__ angles, const int* position,
                float* q, KV* keys, KV* values, float* key_scales, float* value_scales, int n_heads, int n_kv_heads, int head_dim, int capacity,
                int half_split, int window, int sinks, int n_turns) {
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
    const int own = *position + token, position_of_q = window ? min(own, sinks + window - 1) : own;
    const int place = window && own >= sinks ? sinks + (own - sinks) % n_turns : own;
    auto turned = [&](const Pair& pair, int j) {
        float2 value = load(first_pair + j);
        if (norm) value.x *= factor * norm[pair.a], value.y *= factor * norm[pair.b];
        return window && !pair.is_q ? value : turn(pair, value, angles, position_of_q, head_dim);
    };
    float scale = 1.f;
    if (sizeof(KV) == 1 && !of_head.is_q) {
        float largest = 0.f, spoiled = 0.f;
        for (int j = lane; j < half_dim; j += WARP) {
            const float2 value = turned(Pair(first_pair + j, n_heads, n_kv_heads, head_dim, half_split), j);
            largest = fmaxf(largest, fmaxf(fabsf(value.x), fabsf(value.y)));
            spoiled += 0.f * value.x + 0.f * value.y;  // NaN where one of them is no number, which fmaxf does not see
        }
        scale = (warp_max(largest) + warp_sum(spoiled)) / 127.f;
        float* scales = of_head.is_v ? value_scales : key_scales;
        if (lane == 0) scales[static_cast<size_t>(of_head.head) * capacity + place] = scale;
    }
    for (int j = lane; j < half_dim; j += WARP) {
        const Pair pair(first_pair + j, n_heads, n_kv_heads, head_dim, half_split);
        float2 value = turned(pair, j);
        if (sizeof(KV) == 1 && !pair.is_q)
            value = scale > 0.f ? make_float2(value.x / scale, value.y / scale) : make_float2(0.f, 0.f);
        const Pair stored(first_pair + j, n_heads, n_kv_heads, head_dim, half_split && !window);
        store_pair(stored, value, place, q + static_cast<size_t>(token) * padded(n_heads * head_dim), keys, values,
                   head_dim, capacity);
    }
}
