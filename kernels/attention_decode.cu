// Attention of a decode step: a few queries per key head over a long KV cache, at the speed of memory.
//
//     out = softmax(q k^T * scale) v, where the token at row i sees the last `window` of positions 0 ... *position + i
//
// As attention.cu (same rows, same partial results, put together by its attention_merge), but for at most ROWS rows in
// all, and made to have many loads in flight: warps share nothing until the end, so there is no barrier in the loop.
//
// Keys and values of 8 bits have a scale each, multiplied in after the sum over a key, and into the weight of a value.
//
// Shapes    as attention.cu; head_dim at most 256, n * group at most ROWS.
// Threads   grid (1, n_kv_heads, n_splits), block DECODE_WARPS warps. Split s takes an equal share of the keys, in
//           whole multiples of SHARE; its warps take batches in turns. Lanes: lanes_per_key (a power of two from 2 to
//           32) for a key, 8 elements each; 32 / lanes_per_key keys a load, UNROLL loads of keys and as many of values
//           a batch, all issued before the first is used. Each group of lanes adds up its own keys; these sums, then
//           those of the warps, are added in a fixed order.
// Bytes     keys and values once. In flight per warp: 2 * UNROLL * 512 bytes of float16.
#include "attention_warps.cuh"
#include "ptx.cuh"

constexpr int DECODE_WARPS = 4;
constexpr int SHARE = 64;

// Eight neighbouring numbers as they are stored.
struct Raw16 { uint4 bits; };
struct Raw32 { uint4 low, high; };
struct Raw8 { uint2 bits; };
__device__ __forceinline__ Raw8 load_raw(const signed char* place) {
    return {__ldcg(reinterpret_cast<const uint2*>(place))};
}
__device__ __forceinline__ Raw16 load_raw(const __half* place) { return {load_once(place)}; }
__device__ __forceinline__ Raw32 load_raw(const float* place) { return {load_once(place), load_once(place + 4)}; }

__device__ __forceinline__ void widen(const Raw16& raw, float (&values)[8]) {
    const unsigned words[4] = {raw.bits.x, raw.bits.y, raw.bits.z, raw.bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
    }
}

__device__ __forceinline__ void widen(const Raw32& raw, float (&values)[8]) {
    const unsigned words[8] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                               raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = __uint_as_float(words[i]);
}

__device__ __forceinline__ void widen(const Raw8& raw, float (&values)[8]) { widen8(raw.bits, values); }

template <class KV, int ROWS>
__global__ void __launch_bounds__(DECODE_WARPS * WARP, 1)
    attention_decode(const float* q, const KV* keys, const KV* values, const float* key_scales,
                     const float* value_scales, const int* position, float* partial, float2* stats, int n, int n_heads, int n_kv_heads, int head_dim, int capacity, int lanes_per_key,
                     int window, float scale) {
    constexpr bool SCALED = sizeof(KV) == 1;
    constexpr int UNROLL = (ROWS > 4 ? 4 : 8) / (sizeof(KV) == 4 ? 2 : 1);
    const int stride = padded(head_dim), warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int group = n_heads / n_kv_heads, kv_head = blockIdx.y, split = blockIdx.z, n_splits = gridDim.z;
    const int n_rows = n * group;
    const int part = lane % lanes_per_key, slot = lane / lanes_per_key, keys_per_load = WARP / lanes_per_key;
    const bool has_part = part * 8 < stride;  // lanes are left over where stride / 8 is no power of two

    auto query = [&](int row) { return row / group * n_heads + kv_head * group + row % group; };
    const size_t head = static_cast<size_t>(kv_head) * capacity * stride + part * 8;
    int queries_at[ROWS], tokens[ROWS];  // where a row's query begins; its token
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const int index = query(min(row, n_rows - 1));  // rows past the last repeat it; their results are dropped
        tokens[row] = index / n_heads;
        queries_at[row] = tokens[row] * padded(n_heads * head_dim) + index % n_heads * head_dim;
    }
    if (n > 0) wait_for_previous_kernel();  // always; as in dot.cuh
    launch_dependents();

    const int start = *position, first = max(0, start + 1 - window), n_keys = start + n;  // that any row sees
    const int per_split = ((n_keys - first + n_splits - 1) / n_splits + SHARE - 1) / SHARE * SHARE;
    const int begin = first + split * per_split, end = min(begin + per_split, n_keys);  // none: splits without a share

    float queries[ROWS][8], sums[ROWS][8] = {}, largest[ROWS], sum[ROWS] = {};
    int visible[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const float* of_query = q + queries_at[row];
        float values[8] = {};
        if (head_dim % 8 == 0) {
            if (has_part && part * 8 < head_dim) load8(of_query + part * 8, values);
        } else {
            for (int i = 0; i < 8; i++)
                if (part * 8 + i < head_dim) values[i] = of_query[part * 8 + i];
        }
#pragma unroll
        for (int i = 0; i < 8; i++) queries[row][i] = values[i] * scale;
        largest[row] = NEGATIVE_INFINITY;
        visible[row] = start + tokens[row] + 1;
    }

    const int batch = UNROLL * keys_per_load;
    for (int base = begin + warp * batch; base < end; base += DECODE_WARPS * batch) {
        using Raw = decltype(load_raw(keys));
        Raw of_keys[UNROLL] = {}, of_values[UNROLL] = {};
        auto load_batch = [&](const KV* cache, Raw (&raw)[UNROLL]) {
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int key = base + u * keys_per_load + slot;
                if (key < end && has_part) raw[u] = load_raw(cache + head + static_cast<size_t>(key) * stride);
            }
        };
        load_batch(keys, of_keys);
        load_batch(values, of_values);
        float key_scale[UNROLL], value_scale[UNROLL];
        if (SCALED) {
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int key = base + u * keys_per_load + slot;
                const size_t at = static_cast<size_t>(kv_head) * capacity + key;
                key_scale[u] = key < end ? __ldcg(key_scales + at) : 0.f;
                value_scale[u] = key < end ? __ldcg(value_scales + at) : 0.f;
            }
        }
        float weights[ROWS][UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            float k[8];
            widen(of_keys[u], k);
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                weights[row][u] = 0.f;
#pragma unroll
                for (int i = 0; i < 8; i++) weights[row][u] = fmaf(queries[row][i], k[i], weights[row][u]);
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
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int key = base + u * keys_per_load + slot;
                if (SCALED) weights[row][u] *= key_scale[u];
                if (key >= min(end, visible[row]) || key < visible[row] - window) weights[row][u] = NEGATIVE_INFINITY;
            }
            float now = largest[row];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) now = fmaxf(now, weights[row][u]);
            now = warp_max(now);
            const bool none = now == NEGATIVE_INFINITY;  // this row has seen no key so far
            const float correction = none ? 1.f : expf(largest[row] - now);
            largest[row] = now;
            sum[row] *= correction;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                weights[row][u] = none ? 0.f : expf(weights[row][u] - now);
                sum[row] += weights[row][u];
            }
#pragma unroll
            for (int i = 0; i < 8; i++) sums[row][i] *= correction;
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            float v[8];
            widen(of_values[u], v);
            if (SCALED)
#pragma unroll
                for (int i = 0; i < 8; i++) v[i] *= value_scale[u];
#pragma unroll
            for (int row = 0; row < ROWS; row++)
#pragma unroll
                for (int i = 0; i < 8; i++) sums[row][i] = fmaf(weights[row][u], v[i], sums[row][i]);
        }
    }

    add_up_warps<DECODE_WARPS>(largest, sum, sums, n_rows, stride, lanes_per_key, partial, stats, [&](int row) {
        return static_cast<size_t>(split) * n * n_heads + query(row);
    });
}
