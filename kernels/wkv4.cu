// The time mix of RWKV-4: each channel's mean of its values so far, weighted by exp of their keys, which decay.
//
//     y_t = r_t * sum_s(e_ts * v_s) / sum_s(e_ts), e_ts = exp(k_s + (t - 1 - s) * decay) where s < t,
//                                                  e_tt = exp(k_t + bonus)
//
// Both sums are kept relative to the largest exponent so far, so no exp overflows.
//
// Shapes    r (a sigmoid already), k, v float32 [n][dim], padded; decay (below zero), bonus float32 [dim]; y is written
//           for its reader (activations.cuh). A slot of the state (wkv.cuh) is float32 [3][dim], dense: the sums of
//           e * v and of e, and the exponent that they are relative to, -1e30 at the start.
// Threads   a thread per channel, blocks of WKV4_THREADS, few so that a small model fills more multiprocessors. A
//           thread goes through the tokens in order, and has AHEAD tokens' numbers on their way.
// Bytes     r, k, v, y and twice the state, once: this kernel is latency, not bandwidth.
#include "ptx.cuh"
#include "wkv.cuh"

constexpr int WKV4_THREADS = 64;
constexpr int AHEAD = 4;

extern "C" __global__ void __launch_bounds__(WKV4_THREADS)
    wkv4(const float* r, const float* k, const float* v, const float* __restrict__ decay,
         const float* __restrict__ bonus, float* state, int slot_step, const int* position, float* rows,
         unsigned short* split, const int* __restrict__ place, int n, int dim) {
    const int channel = blockIdx.x * WKV4_THREADS + threadIdx.x;
    if (channel >= dim) return;
    const Writer writer = {rows, split, place, dim};
    const int call = __ldcg(position);
    const float* before = slot_of(state, slot_step, call) + channel;
    float sum_v = __ldcg(before), sum_1 = __ldcg(before + dim), largest = __ldcg(before + 2 * dim);
    const float w = decay[channel], u = bonus[channel];
    if (n > 0) wait_for_previous_kernel();  // always; as in dot.cuh
    launch_dependents();

    float coming[AHEAD][3];
    auto load = [&](int token, float (&numbers)[3]) {
        if (token >= n) return;
        const size_t at = static_cast<size_t>(token) * padded(dim) + channel;
        numbers[0] = r[at], numbers[1] = k[at], numbers[2] = v[at];
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) load(i, coming[i]);
    for (int first = 0; first < n; first += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int token = first + i;
            if (token >= n) break;
            const float of_r = coming[i][0], of_k = coming[i][1], of_v = coming[i][2];
            load(token + AHEAD, coming[i]);
            const float own = u + of_k, most = fmaxf(largest, own);
            const float e_before = expf(largest - most), e_own = expf(own - most);
            writer.write(token, channel, of_r * fmaf(e_before, sum_v, e_own * of_v) / fmaf(e_before, sum_1, e_own));
            const float decayed = largest + w;
            largest = fmaxf(decayed, of_k);
            const float e_decayed = expf(decayed - largest), e_new = expf(of_k - largest);
            sum_v = fmaf(e_decayed, sum_v, e_new * of_v);
            sum_1 = fmaf(e_decayed, sum_1, e_new);
        }
    }
    float* after = slot_of(state, slot_step, call + 1) + channel;
    after[0] = sum_v;
    after[dim] = sum_1;
    after[2 * dim] = largest;
}
