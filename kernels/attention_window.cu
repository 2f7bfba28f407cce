// Attention over the first S and the last W tokens of a sequence without end, positions counted among them.
//
//     token t sees n = min(t + 1, S + W) tokens: the sinks 0 ... S - 1 and those up to t itself, numbered 0 ... n - 1
//     out = softmax(q k_i'^T * scale) v_i over i = 0 ... n - 1, k_i' = k_i turned by RoPE at position i
//
// A key's position falls by one with each token, so keys are kept before RoPE and turned here; q comes turned at n - 1.
// Both have the two elements of a pair side by side (rope.cu writes them so), which no dot product notices. Token j is
// kept at place j up to S, then at S + (j - S) % n_turns. Tokens of a chunk are all kept before any is read: n_turns is
// W + LONGEST_CHUNK - 1 (backends/cpu/attention_window.py), so none that is seen is lost.
//
// Shapes    q float32 [n][n_heads * head_dim], padded; keys, values of type KV [n_kv_heads][n_places][padded(head_dim)],
//           head_dim at most 256; angles float32 [S + W][head_dim]: cos of the head_dim / 2 angles of a position, then
//           their sin; *position: the first of the n tokens, or any number that stands for it (same place, not below
//           S + W where t is not). partial, stats: as attention.cu, whose attention_merge puts the parts together.
// Threads   grid (n * ceil(group / ROWS), n_kv_heads, n_splits), block WINDOW_WARPS warps: a block takes a token and up
//           to ROWS of the queries that share a key head, split s an equal share of the keys in whole multiples of
//           SHARE. Lanes: lanes_per_key (a power of two from 2 to 32) for a key, 8 elements each; UNROLL keys at once.
//           Each group of lanes adds up its own keys; these sums, then those of the warps, are added in a fixed order.
// Bytes     keys and values once per token and ROWS queries; the angles of S + W positions, which stay in a cache.
#include "attention_warps.cuh"
#include "ptx.cuh"

constexpr int WINDOW_WARPS = 4;
constexpr int SHARE = 64;

// cos and sin of the four pairs of elements 8 * part ... 8 * part + 7, zero beyond the head.
__device__ __forceinline__ void load_angles(const float* __restrict__ of_position, int part, int half_dim,
                                            float (&cosines)[4], float (&sines)[4]) {
    if (half_dim % 4 == 0) {
        if (part * 4 >= half_dim) return;
        const float4 c = *reinterpret_cast<const float4*>(of_position + part * 4);
        const float4 s = *reinterpret_cast<const float4*>(of_position + half_dim + part * 4);
        cosines[0] = c.x, cosines[1] = c.y, cosines[2] = c.z, cosines[3] = c.w;
        sines[0] = s.x, sines[1] = s.y, sines[2] = s.z, sines[3] = s.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (part * 4 + i >= half_dim) return;
            cosines[i] = of_position[part * 4 + i];
            sines[i] = of_position[half_dim + part * 4 + i];
        }
    }
}

template <class KV, int ROWS>
__global__ void __launch_bounds__(WINDOW_WARPS* WARP)
    attention_window(const float* q, const KV* keys, const KV* values, const float* __restrict__ angles,
                     const int* position, float* partial, float2* stats, int n, int n_heads, int n_kv_heads,
                     int head_dim, int n_places, int lanes_per_key, int window, int sinks, int n_turns, float scale) {
    constexpr int UNROLL = ROWS > 4 ? 2 : 4;
    const int stride = padded(head_dim), warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int group = n_heads / n_kv_heads, row_blocks = (group + ROWS - 1) / ROWS;
    const int token = blockIdx.x / row_blocks, first_row = blockIdx.x % row_blocks * ROWS;
    const int n_rows = min(ROWS, group - first_row), kv_head = blockIdx.y, split = blockIdx.z, n_splits = gridDim.z;
    const int part = lane % lanes_per_key, slot = lane / lanes_per_key, keys_per_load = WARP / lanes_per_key;
    const bool has_part = part * 8 < stride;  // lanes are left over where stride / 8 is no power of two
    auto head_of = [&](int row) { return kv_head * group + first_row + row; };
    wait_for_previous_kernel();
    launch_dependents();

    const int own = *position + token, n_seen = min(own + 1, sinks + window);
    const int newest = own < sinks ? own : sinks + (own - sinks) % n_turns;
    auto place = [&](int at) {
        if (at < sinks) return at;
        const int behind = newest - (n_seen - 1 - at);
        return behind < sinks ? behind + n_turns : behind;
    };
    const int per_split = ((n_seen + n_splits - 1) / n_splits + SHARE - 1) / SHARE * SHARE;
    const int begin = split * per_split, end = min(begin + per_split, n_seen);  // none: splits without a share
    const size_t head = static_cast<size_t>(kv_head) * n_places * stride + part * 8;

    float queries[ROWS][8] = {}, sums[ROWS][8] = {}, largest[ROWS], sum[ROWS] = {};
#pragma unroll
    for (int row = 0; row < ROWS; row++) {  // rows past the last repeat it; their results are dropped
        const float* of_query = q + static_cast<size_t>(token) * padded(n_heads * head_dim) +
                                head_of(min(row, n_rows - 1)) * head_dim;
        for (int i = 0; i < 8; i++)
            if (part * 8 + i < head_dim) queries[row][i] = of_query[part * 8 + i] * scale;
        largest[row] = NEGATIVE_INFINITY;
    }

    const int batch = UNROLL * keys_per_load;
    for (int base = begin + warp * batch; base < end; base += WINDOW_WARPS * batch) {
        float k[UNROLL][8] = {}, v[UNROLL][8] = {}, weights[ROWS][UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int at = base + u * keys_per_load + slot;
            if (at >= end || !has_part) continue;
            const size_t row = head + static_cast<size_t>(place(at)) * stride;
            load8(keys + row, k[u]);
            load8(values + row, v[u]);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int at = base + u * keys_per_load + slot;
            float cosines[4] = {}, sines[4] = {};
            if (at < end) load_angles(angles + static_cast<size_t>(at) * head_dim, part, head_dim / 2, cosines, sines);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float a = k[u][2 * i], b = k[u][2 * i + 1];
                k[u][2 * i] = a * cosines[i] - b * sines[i];
                k[u][2 * i + 1] = a * sines[i] + b * cosines[i];
            }
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                weights[row][u] = 0.f;
#pragma unroll
                for (int i = 0; i < 8; i++) weights[row][u] = fmaf(queries[row][i], k[u][i], weights[row][u]);
            }
        }
        for (int offset = lanes_per_key / 2; offset > 0; offset /= 2)  // all sums at once: they do not wait for another
#pragma unroll
            for (int row = 0; row < ROWS; row++)
#pragma unroll
                for (int u = 0; u < UNROLL; u++)
                    weights[row][u] += __shfl_xor_sync(ALL_LANES, weights[row][u], offset);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            float now = largest[row];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                if (base + u * keys_per_load + slot >= end) weights[row][u] = NEGATIVE_INFINITY;
                now = fmaxf(now, weights[row][u]);
            }
            now = warp_max(now);  // a number: the first key of a batch is there
            const float correction = expf(largest[row] - now);
            largest[row] = now;
            sum[row] *= correction;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                weights[row][u] = expf(weights[row][u] - now);
                sum[row] += weights[row][u];
            }
#pragma unroll
            for (int i = 0; i < 8; i++) sums[row][i] *= correction;
#pragma unroll
            for (int u = 0; u < UNROLL; u++)
#pragma unroll
                for (int i = 0; i < 8; i++) sums[row][i] = fmaf(weights[row][u], v[u][i], sums[row][i]);
        }
    }

    add_up_warps<WINDOW_WARPS>(largest, sum, sums, n_rows, stride, lanes_per_key, partial, stats, [&](int row) {
        return (static_cast<size_t>(split) * n + token) * n_heads + head_of(row);
    });
}
