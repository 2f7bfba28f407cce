// Choose the next token on the device, exactly as llamagpu/backends/cpu/sample.py does: the algorithm and why it is
// made of whole numbers are in docs/sampling.md. No step depends on an order of additions, so nothing here can differ
// from it.
//
// sample_scan goes over the logits with many blocks: it applies the repetition penalty and finds the best of each
// chunk.
// sample_pick, one block, needs only those where temperature is 0. Otherwise it lists candidates: a chunk whose best is
// below the top_k-th best chunk holds none of the top_k, so a few chunks are left of a large vocabulary (where top-k is
// the first filter); then top-k and top-p each cut the list at a logit found by bisection, min-p leaves out light
// weights, all three in the order that is asked for, and the draw is a running sum over what is left.
//
// Shapes    logits float32 [vocab_size]; counts int32 [vocab_size]; scores float32 [vocab_size]; best uint64
//           [n_chunks]; candidates int32 [vocab_size]; tokens int32 [1]; position int32 [1]; ring int32 [ring_size], in
//           pinned memory of the host; settings and state: the structs below, mirrored in backends/cuda/sampler.py.
// Threads   SAMPLE_THREADS a block; a chunk is SAMPLE_THREADS logits.
// Bytes     logits read and scores written once; with top_k little more, without it the scores 70 times (from L2).
#include "common.cuh"
#include "ptx.cuh"

constexpr int SAMPLE_THREADS = 256;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / WARP;
constexpr int WEIGHT_BITS = 40;  // the weight of the most likely token is 2^40

typedef unsigned long long u64;

struct SamplingSettings {
    u64 seed, top_p, min_weight;  // top_p * 2^32; min_p * 2^40
    float inverse_temperature, repetition_penalty;
    int top_k, greedy;
    int order;  // of the Steps, two bits each, the first one lowest
    int unused;
};

enum Step { TOP_K, TOP_P, MIN_P, TEMPERATURE };

struct SamplingState {
    u64 n_drawn;
    unsigned n_made;  // tokens made, modulo 2^32: where in the ring the next one goes
    int unused;
};

// Whole numbers in the order of the floats; both zeros are one.
__device__ __forceinline__ unsigned ordered(float x) {
    const unsigned bits = x == 0.f ? 0u : __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(unsigned key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

template <class T, class F>
__device__ __forceinline__ T block_reduce(T value, T* scratch, F combine) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset >>= 1)
        value = combine(value, __shfl_xor_sync(ALL_LANES, value, offset));
    __syncthreads();  // scratch may still be read from the last time
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    value = scratch[0];
    for (int warp = 1; warp < SAMPLE_WARPS; warp++) value = combine(value, scratch[warp]);
    return value;
}

// Sum of `value` over the threads before this one; `total` over all.
__device__ __forceinline__ u64 block_scan(u64 value, u64& total, u64* scratch) {
    const int lane = threadIdx.x % WARP;
    u64 running = value;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        const u64 other = __shfl_up_sync(ALL_LANES, running, offset);
        if (lane >= offset) running += other;
    }
    __syncthreads();
    if (lane == WARP - 1) scratch[threadIdx.x / WARP] = running;
    __syncthreads();
    u64 before = 0;
    total = 0;
    for (int warp = 0; warp < SAMPLE_WARPS; warp++) {
        if (warp < threadIdx.x / WARP) before += scratch[warp];
        total += scratch[warp];
    }
    return before + running - value;
}

// floor(2^40 * exp((score - largest) * inverse_temperature)) as docs/sampling.md says: single roundings, no fma.
__device__ __forceinline__ u64 exp_weight(float score, float largest, float inverse_temperature) {
    float t = __fmul_rn(__fmul_rn(__fsub_rn(score, largest), inverse_temperature), 1.4426950408889634f);
    t = fmaxf(t, -63.f);
    if (t > -9.313225746154785e-10f) t = 0.f;  // -2^-30
    const float whole = floorf(t), fraction = __fsub_rn(t, whole);
    float power = 0.00021865784947294742f;
    power = __fadd_rn(__fmul_rn(power, fraction), 0.0012391331838443875f);
    power = __fadd_rn(__fmul_rn(power, fraction), 0.009684186428785324f);
    power = __fadd_rn(__fmul_rn(power, fraction), 0.055480629205703735f);
    power = __fadd_rn(__fmul_rn(power, fraction), 0.24023045599460602f);
    power = __fadd_rn(__fmul_rn(power, fraction), 0.6931469440460205f);
    power = __fadd_rn(__fmul_rn(power, fraction), 1.f);
    const u64 mantissa = static_cast<u64>(__fmul_rn(power, 8388608.f));
    return (mantissa << (WEIGHT_BITS - 23)) >> static_cast<int>(-whole);
}

// Draw n of a seed: SplitMix64 entered by counter.
__device__ __forceinline__ u64 random_u64(u64 seed, u64 n) {
    u64 z = seed + (n + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

// Grid n_chunks. best: ordered(score) << 32 | ~id of the chunk's best, the lower id among equals; 0 where a logit is
// NaN or infinity (a damaged model).
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS)
    sample_scan(const float* logits, const int* counts, const SamplingSettings* __restrict__ settings, float* scores,
                u64* best, int vocab_size) {
    wait_for_previous_kernel();
    launch_dependents();
    __shared__ u64 scratch[SAMPLE_WARPS];
    const int id = blockIdx.x * SAMPLE_THREADS + threadIdx.x;
    const float penalty = settings->repetition_penalty;
    u64 key = 0;
    bool damaged = false;
    if (id < vocab_size) {
        float score = logits[id];
        damaged = !(score < -NEGATIVE_INFINITY);
        if (counts[id] > 0) score = score > 0.f ? __fdiv_rn(score, penalty) : __fmul_rn(score, penalty);
        scores[id] = score;
        key = static_cast<u64>(ordered(score)) << 32 | static_cast<unsigned>(~id);
    }
    damaged = __syncthreads_or(damaged);
    key = block_reduce(key, scratch, [](u64 a, u64 b) { return a > b ? a : b; });
    if (threadIdx.x == 0) best[blockIdx.x] = damaged ? 0 : key;
}

// The largest key at which the total of `value(i)` over entries i < n with key(i) >= it reaches `needed`.
template <class Key, class Value>
__device__ __forceinline__ unsigned find_cut(int n, u64 needed, u64* scratch, Key key, Value value) {
    const int thread = threadIdx.x;
    const bool few = n <= SAMPLE_THREADS;  // one for each thread: looked up once
    const unsigned own_key = few && thread < n ? key(thread) : 0;
    const u64 own_value = own_key ? value(thread) : 0;  // no number has key 0
    unsigned cut = 0;
    for (int bit = 31; bit >= 0; bit--) {
        const unsigned trial = cut | 1u << bit;
        u64 total = own_key >= trial ? own_value : 0;
        for (int i = few ? n : thread; i < n; i += SAMPLE_THREADS)
            if (key(i) >= trial) total += value(i);
        total = block_reduce(total, scratch, [](u64 a, u64 b) { return a + b; });
        if (total >= needed) cut = trial;
    }
    return cut;
}

// Call visit(i) for i from 0 to n - 1, and as far beyond as fills the last round: block_scan needs all threads in each.
template <class Visit>
__device__ __forceinline__ void in_rounds(int n, Visit visit) {
    for (int base = 0; base < n; base += SAMPLE_THREADS) visit(base + static_cast<int>(threadIdx.x));
}

// Append the values of the threads that keep theirs, in thread order; returns the new length. `list` may be what the
// values were read from: nothing is written beyond where they stood.
__device__ __forceinline__ int append(int* list, int length, bool kept, int value, u64* scratch) {
    u64 total;
    const u64 place = block_scan(kept, total, scratch);
    if (kept) list[length + place] = value;
    return length + static_cast<int>(total);
}

// Keep the candidates above `cut` and the first `n_equal` at it. Order stays; returns how many are left.
template <class Key>
__device__ __forceinline__ int cut_list(int* candidates, int n, unsigned cut, u64 n_equal, u64* scratch, Key key) {
    int n_kept = 0;
    in_rounds(n, [&](int i) {
        const unsigned own = i < n ? key(i) : 0;  // below every cut
        const int id = i < n ? candidates[i] : 0;
        u64 total_equal;
        const u64 rank = block_scan(own == cut, total_equal, scratch);
        n_kept = append(candidates, n_kept, own > cut || (own == cut && rank < n_equal), id, scratch);
        n_equal -= min(total_equal, n_equal);
    });
    __syncthreads();
    return n_kept;
}

// Grid 1. Writes the token to tokens[0] for the next step and to the ring for the host (-1 where the logits are
// damaged), counts it, moves on position, draw and ring.
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_pick(const float* scores, const u64* best, const SamplingSettings* __restrict__ settings,
                SamplingState* state, int* counts, int* candidates, int* chunks, int* tokens, int* position, int* ring,
                int ring_size, int vocab_size, int n_chunks) {
    wait_for_previous_kernel();
    __shared__ u64 scratch[SAMPLE_WARPS];
    __shared__ int drawn;
    const int thread = threadIdx.x;
    u64 top = 0;
    bool damaged = false;
    for (int i = thread; i < n_chunks; i += SAMPLE_THREADS) {
        damaged |= best[i] == 0;
        if (best[i] > top) top = best[i];
    }
    top = block_reduce(top, scratch, [](u64 a, u64 b) { return a > b ? a : b; });
    const float largest = unordered(static_cast<unsigned>(top >> 32));
    if (__syncthreads_or(damaged) || largest == NEGATIVE_INFINITY) {
        if (thread == 0) {
            ring[state->n_made % ring_size] = -1;
            state->n_made++;
            position[0]++;
        }
        return;
    }
    int token = static_cast<int>(~static_cast<unsigned>(top));

    if (!settings->greedy) {
        const int top_k = settings->top_k, order = settings->order;
        // the chunks that can hold a candidate, in order
        unsigned bound = 0;
        auto chunk_key = [&](int i) { return static_cast<unsigned>(best[i] >> 32); };
        auto one = [](int) { return 1; };
        const bool top_k_first = (order & 3) == TOP_K || (order & 15) == (TOP_K << 2 | TEMPERATURE);
        if (top_k_first && top_k > 0 && top_k <= n_chunks)
            bound = find_cut(n_chunks, top_k, scratch, chunk_key, one);
        int n_listed = 0;
        in_rounds(n_chunks, [&](int i) {
            n_listed = append(chunks, n_listed, i < n_chunks && chunk_key(i) >= bound, i, scratch);
        });
        __syncthreads();
        // their tokens at or above the bound, in order of ids
        int n = 0;
        for (int c = 0; c < n_listed; c++) {
            const int id = chunks[c] * SAMPLE_THREADS + thread;
            n = append(candidates, n, id < vocab_size && ordered(scores[id]) >= bound, id, scratch);
        }
        __syncthreads();
        float inverse_temperature = 1.f;  // until the temperature's turn comes
        auto key = [&](int i) { return ordered(scores[candidates[i]]); };
        auto weight = [&](int i) { return exp_weight(scores[candidates[i]], largest, inverse_temperature); };
        auto add = [](u64 a, u64 b) { return a + b; };

#pragma unroll 1
        for (int turn = 0; turn < 4; turn++) {
            const int step = order >> 2 * turn & 3;
            if (step == TEMPERATURE) inverse_temperature = settings->inverse_temperature;
            if (step == TOP_K && top_k > 0 && top_k < n) {
                const unsigned cut = find_cut(n, top_k, scratch, key, one);
                u64 above = 0;
                for (int i = thread; i < n; i += SAMPLE_THREADS) above += key(i) > cut;
                above = block_reduce(above, scratch, add);
                n = cut_list(candidates, n, cut, top_k - above, scratch, key);
            }
            if (step == TOP_P && settings->top_p < 1ull << 32) {
                u64 total = 0;
                for (int i = thread; i < n; i += SAMPLE_THREADS) total += weight(i);
                total = block_reduce(total, scratch, add);
                u64 needed = __umul64hi(total, settings->top_p) << 32 | total * settings->top_p >> 32;
                if (needed == 0) needed = 1;
                const unsigned cut = find_cut(n, needed, scratch, key, weight);
                u64 above = 0;
                for (int i = thread; i < n; i += SAMPLE_THREADS)
                    if (key(i) > cut) above += weight(i);
                above = block_reduce(above, scratch, add);
                const u64 each = exp_weight(unordered(cut), largest, inverse_temperature);
                n = cut_list(candidates, n, cut, (needed - above + each - 1) / each, scratch, key);
            }
            if (step == MIN_P && settings->min_weight > 0) {
                int n_kept = 0;
                in_rounds(n, [&](int i) {
                    const bool kept = i < n && weight(i) >= settings->min_weight;
                    const int id = i < n ? candidates[i] : 0;
                    n_kept = append(candidates, n_kept, kept, id, scratch);
                });
                __syncthreads();
                n = n_kept;
            }
        }
        u64 total = 0;
        for (int i = thread; i < n; i += SAMPLE_THREADS) total += weight(i);
        total = block_reduce(total, scratch, add);
        const u64 draw = __umul64hi(random_u64(settings->seed, state->n_drawn), total);
        u64 before = 0;
        in_rounds(n, [&](int i) {
            const u64 own = i < n ? weight(i) : 0;
            u64 of_round;
            const u64 running = before + block_scan(own, of_round, scratch);
            if (running <= draw && draw < running + own) drawn = candidates[i];  // one thread of all
            before += of_round;
        });
        __syncthreads();
        token = drawn;
    }
    if (thread == 0) {
        tokens[0] = token;
        counts[token]++;
        ring[state->n_made % ring_size] = token;
        state->n_made++;
        state->n_drawn++;
        position[0]++;
    }
}
