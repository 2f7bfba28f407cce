// Causal attention of n new tokens over the KV cache, which already holds their keys and values.
//
//     out = softmax(q k^T * scale) v, where the token at row i sees the last `window` of positions 0 ... *position + i
//
// One family for decoding and for prompts: the queries that share a key head (group = n_heads / n_kv_heads of each
// token) are one list of n * group rows, row r being token r / group, and a block takes ROWS of them, so each key and
// value that it loads serves ROWS queries. While decoding there are few rows, so the keys are split over many blocks
// (attention_split), whose partial results are then put together in order (attention_merge).
//
// Shapes    q float32 [n][n_heads * head_dim], padded; keys, values of type KV
//           [n_kv_heads][capacity][padded(head_dim)], head_dim at most 1024; key_scales, value_scales float32
//           [n_kv_heads][capacity] where they have 8 bits; out is written for its reader
//           (activations.cuh), n_heads * head_dim wide;
//           partial float32 [n_splits][n][n_heads][padded(head_dim)]: sums of exp(score - largest) * v;
//           stats float2 [n_splits][n][n_heads]: the largest score, the sum of exp(score - largest);
//           kept float32 [mem_len][n_heads * head_dim], padded, null for none: the memory of a memory_llama, to which
//           out goes as well, that of token i to row *position - mem_len + i.
// Bytes     keys and values once per ROWS rows; partial is written and read once.
#include "activations.cuh"
#include "ptx.cuh"

constexpr int ATTENTION_THREADS = 128;
constexpr int ATTENTION_WARPS = ATTENTION_THREADS / WARP;
constexpr int TILE = 64;  // keys between two barriers
constexpr int MERGE_THREADS = 64, MOST_SPLITS = 256;

// Grid (ceil(n * group / ROWS), n_kv_heads, n_splits). Split s takes an equal share of the keys that the block's last
// row sees, in whole tiles. Per tile: (1) scores: lanes_per_key lanes per key (a power of two from 2 to 32), each 8
// elements at a time; (2) a warp per row updates largest and sum, scores become weights; (3) values: threads are (key
// lane, 8 elements), each adds up its keys for all rows in registers. At the end the key lanes are added in order.
// Shared memory (backends/cuda/launches.py): the key lanes' sums [key lanes][ROWS][stride], before them in the same
// place q [ROWS][stride]; then weights [ROWS][TILE].
template <class KV, int ROWS>
__global__ void __launch_bounds__(ATTENTION_THREADS, 1)
    attention_split(const float* q, const KV* keys, const KV* values, const float* key_scales,
                    const float* value_scales, const int* position, float* partial, float2* stats, int n, int n_heads, int n_kv_heads, int head_dim, int capacity, int lanes_per_key,
                    int window, float scale) {
    wait_for_previous_kernel();
    launch_dependents();
    extern __shared__ float4 shared4[];
    __shared__ float largest[ROWS], sum[ROWS], correction[ROWS];
    const int stride = padded(head_dim), n_vectors = stride / 8, n_key_lanes = ATTENTION_THREADS / n_vectors;
    float* rows = reinterpret_cast<float*>(shared4);
    float* weights = rows + ROWS * stride * n_key_lanes;
    const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    const int group = n_heads / n_kv_heads, kv_head = blockIdx.y, split = blockIdx.z, n_splits = gridDim.z;
    const int first_row = blockIdx.x * ROWS, n_rows = min(ROWS, n * group - first_row), start = *position;

    // index of a row's query head among all of all tokens, and how many keys the row sees
    auto query = [&](int row) {
        return (first_row + row) / group * n_heads + kv_head * group + (first_row + row) % group;
    };
    auto visible = [&](int row) { return start + (first_row + row) / group + 1; };

    const int first = max(0, visible(0) - window), n_keys = visible(n_rows - 1);  // that any row sees
    const int per_split = ((n_keys - first + n_splits - 1) / n_splits + TILE - 1) / TILE * TILE;
    const int begin = first + split * per_split, end = min(begin + per_split, n_keys);  // none: splits without a tile
    constexpr bool SCALED = sizeof(KV) == 1;
    key_scales += SCALED ? static_cast<size_t>(kv_head) * capacity : 0;
    value_scales += SCALED ? static_cast<size_t>(kv_head) * capacity : 0;
    keys += static_cast<size_t>(kv_head) * capacity * stride;
    values += static_cast<size_t>(kv_head) * capacity * stride;

    for (int row = 0; row < ROWS; row++) {
        const int index = query(min(row, n_rows - 1));  // rows past the last repeat it; their results are dropped
        const float* of_query = q + static_cast<size_t>(index / n_heads) * padded(n_heads * head_dim);
        for (int d = thread; d < stride; d += ATTENTION_THREADS)
            rows[row * stride + d] = d < head_dim ? of_query[index % n_heads * head_dim + d] * scale : 0.f;
    }
    if (thread < ROWS) largest[thread] = NEGATIVE_INFINITY, sum[thread] = 0.f;
    __syncthreads();

    const int key_in_warp = lane / lanes_per_key, part = lane % lanes_per_key, keys_per_warp = WARP / lanes_per_key;
    const int key_lane = thread / n_vectors, vector = thread % n_vectors;
    const bool adds = key_lane < n_key_lanes;  // a few threads are left over where n_vectors does not divide them
    float sums[ROWS][8] = {};

    for (int base = begin; base < end; base += TILE) {
        const int tile = min(TILE, end - base);
        for (int key = warp * keys_per_warp + key_in_warp; key < TILE; key += ATTENTION_WARPS * keys_per_warp) {
            float dots[ROWS] = {};
            if (key < tile) {
                for (int d = part * 8; d < stride; d += lanes_per_key * 8) {
                    float k[8];
                    load8(keys + static_cast<size_t>(base + key) * stride + d, k);
#pragma unroll
                    for (int row = 0; row < ROWS; row++) {
                        float of_row[8];
                        load8(rows + row * stride + d, of_row);
#pragma unroll
                        for (int i = 0; i < 8; i++) dots[row] = fmaf(of_row[i], k[i], dots[row]);
                    }
                }
            }
            const float key_scale = SCALED && key < tile ? __ldcg(key_scales + base + key) : 1.f;
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                for (int offset = lanes_per_key / 2; offset > 0; offset /= 2)
                    dots[row] += __shfl_xor_sync(ALL_LANES, dots[row], offset);
                const bool seen = base + key < visible(row) && base + key >= visible(row) - window;
                if (part == 0) weights[row * TILE + key] = seen ? dots[row] * key_scale : NEGATIVE_INFINITY;
            }
        }
        __syncthreads();
        for (int row = warp; row < ROWS; row += ATTENTION_WARPS) {
            const float low = weights[row * TILE + lane], high = weights[row * TILE + WARP + lane];
            const float before = largest[row], now = fmaxf(before, warp_max(fmaxf(low, high)));
            const bool none = now == NEGATIVE_INFINITY;  // this row has seen no key so far
            const float low_weight = none ? 0.f : expf(low - now), high_weight = none ? 0.f : expf(high - now);
            const float total = warp_sum(low_weight + high_weight);
            weights[row * TILE + lane] = low_weight;
            weights[row * TILE + WARP + lane] = high_weight;
            __syncwarp();
            if (lane == 0) {
                correction[row] = none ? 1.f : expf(before - now);
                sum[row] = sum[row] * correction[row] + total;
                largest[row] = now;
            }
        }
        __syncthreads();
        if (adds) {
#pragma unroll
            for (int row = 0; row < ROWS; row++)
#pragma unroll
                for (int i = 0; i < 8; i++) sums[row][i] *= correction[row];
            for (int key = key_lane; key < tile; key += n_key_lanes) {
                float v[8];
                load8(values + static_cast<size_t>(base + key) * stride + vector * 8, v);
                const float value_scale = SCALED ? __ldcg(value_scales + base + key) : 1.f;
#pragma unroll
                for (int row = 0; row < ROWS; row++) {
                    const float weight = weights[row * TILE + key] * value_scale;
#pragma unroll
                    for (int i = 0; i < 8; i++) sums[row][i] = fmaf(weight, v[i], sums[row][i]);
                }
            }
        }
        __syncthreads();
    }

    if (adds)
#pragma unroll
        for (int row = 0; row < ROWS; row++)
#pragma unroll
            for (int i = 0; i < 8; i++) rows[(key_lane * ROWS + row) * stride + vector * 8 + i] = sums[row][i];
    __syncthreads();
    for (int i = thread; i < n_rows * stride; i += ATTENTION_THREADS) {
        const int row = i / stride, d = i % stride;
        float total = 0.f;
        for (int k = 0; k < n_key_lanes; k++) total += rows[(k * ROWS + row) * stride + d];
        partial[(static_cast<size_t>(split) * n * n_heads + query(row)) * stride + d] = total;
    }
    if (thread < n_rows)
        stats[static_cast<size_t>(split) * n * n_heads + query(thread)] = make_float2(largest[thread], sum[thread]);
}

// Grid n * n_heads, block MERGE_THREADS: a thread per element of a head. The first warp finds what each split counts for;
// splits are added in order. At most MOST_SPLITS of them.
extern "C" __global__ void __launch_bounds__(MERGE_THREADS)
    attention_merge(const float* partial, const float2* stats, float* rows, unsigned short* split_out,
                    const int* __restrict__ place, float* kept, const int* position, int mem_len, int n_splits, int n,
                    int n_heads, int head_dim) {
    __shared__ float factors[MOST_SPLITS];
    const int query = blockIdx.x, n_queries = n * n_heads, stride = padded(head_dim);
    const Writer writer = {rows, split_out, place, n_heads * head_dim};
    if (n > 0) wait_for_previous_kernel();  // always; as in dot.cuh
    launch_dependents();
    if (threadIdx.x < WARP) {
        float largest = NEGATIVE_INFINITY, sum = 0.f;
        for (int split = threadIdx.x; split < n_splits; split += WARP)
            largest = fmaxf(largest, stats[static_cast<size_t>(split) * n_queries + query].x);
        largest = warp_max(largest);
        for (int split = threadIdx.x; split < n_splits; split += WARP) {
            const float2 s = stats[static_cast<size_t>(split) * n_queries + query];
            factors[split] = expf(s.x - largest);  // 0 for a split without keys, whose largest is -infinity
            sum = fmaf(factors[split], s.y, sum);
        }
        sum = warp_sum(sum);
        for (int split = threadIdx.x; split < n_splits; split += WARP) factors[split] /= sum;
    }
    __syncthreads();
    for (int d = threadIdx.x; d < head_dim; d += MERGE_THREADS) {
        float total = 0.f;
#pragma unroll 8
        for (int split = 0; split < n_splits; split++)
            total = fmaf(factors[split], partial[(static_cast<size_t>(split) * n_queries + query) * stride + d], total);
        const int token = query / n_heads, k = query % n_heads * head_dim + d;
        writer.write(token, k, total);
        if (kept) kept[static_cast<size_t>(*position - mem_len + token) * padded(n_heads * head_dim) + k] = total;
    }
}
