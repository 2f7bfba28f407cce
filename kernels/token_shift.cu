// What the products of a recurrent layer read: h = norm(x), mixed with h of the token before, in n_mixes proportions.
//
//     mixed[m][t] = h[t] + (h[t - 1] - h[t]) * mix[m]         h[-1]: what the state holds; afterwards it holds h[n - 1]
//
// Shapes    x float32 [n][dim]; weight, bias float32 [dim], null but for LAYER_NORM; mixes float32 [n_mixes][dim], or,
//           where mix_per_token says so, [n_mixes][n][dim]; rows float32 [n_mixes][n][dim], all padded; split as
//           activations.cuh has it, [n_mixes * n] vectors. One of rows and split may be null.
// State     a ring (slots.cuh), slot s at shifts + s * slot_step, float32 [dim]. position int32 [1], the number of
//           this call; where `keep` is not set no slot is written. shifts null: h[-1] is zero and nothing
//           is kept.
// Threads   grid (slices, n), block SHIFT_THREADS. A block makes a slice of the channels, a thread every
//           slices * SHIFT_THREADS-th, of all mixes of one token. It finds the norms of the rows it needs by itself,
//           from L2: cheaper than a kernel for it. Only blocks of token 0 touch the state, and of it their own slice, so
//           that none waits for another even where the slot read is the one written.
// Bytes     dim * 4 read by each block, twice that where n > 1; n * n_mixes * dim * 4 written: latency in a decode step.
#include "activations.cuh"
#include "layernorm.cuh"
#include "ptx.cuh"
#include "slots.cuh"

constexpr int SHIFT_THREADS = 256, MOST_MIXES = 6;
enum ShiftNorm { LAYER_NORM, UNIT_RMS, NO_NORM };
constexpr float UNIT_RMS_EPS = 1e-8f;

__device__ __forceinline__ Norm norm_of(int kind, const float* row, int dim, float eps,
                                        float (*scratch)[SHIFT_THREADS / WARP]) {
    if (kind == LAYER_NORM) return layer_norm<SHIFT_THREADS>(row, dim, eps, scratch);
    if (kind == NO_NORM) return {0.f, 1.f};
    return {0.f, 1.f / (sqrtf(row_sum<SHIFT_THREADS, 2>(row, dim, 0.f, scratch[0]) / dim) + UNIT_RMS_EPS)};
}

extern "C" __global__ void __launch_bounds__(SHIFT_THREADS)
    norm_shift_mix(const float* x, int norm, const float* __restrict__ weight, const float* __restrict__ bias,
                   float eps, const float* mixes, int n_mixes, int mix_per_token, float* shifts, int slot_step,
                   const int* position, int keep, float* rows, unsigned short* split, int dim, int n) {
    __shared__ float scratch[3][2][SHIFT_THREADS / WARP];
    const int token = blockIdx.y, stride = padded(dim);
    int k = blockIdx.x * SHIFT_THREADS + threadIdx.x;
    float of_norm[2] = {1.f, 0.f}, of_mixes[MOST_MIXES] = {};
    auto load_weights = [&] {  // of channel k; nobody writes them
        if (k >= dim) return;
        if (weight) of_norm[0] = weight[k], of_norm[1] = bias[k];
#pragma unroll
        for (int m = 0; m < MOST_MIXES; m++)
            if (m < n_mixes && !mix_per_token) of_mixes[m] = __ldg(mixes + static_cast<size_t>(m) * stride + k);
    };
    load_weights();
    if (n > 0) wait_for_previous_kernel();  // always; as in dot.cuh
    launch_dependents();

    const float* row = x + static_cast<size_t>(token) * stride;
    const float* last_row = x + static_cast<size_t>(n - 1) * stride;
    const bool reads_state = shifts && token == 0, writes_state = reads_state && keep;
    const int call = reads_state ? *position : 0;
    const float* kept = slot_of(shifts, slot_step, call);
    float* keeps = slot_of(shifts, slot_step, call + 1);
    float own_x, before_x = 0.f, last_x = 0.f, state = 0.f;
    auto load_inputs = [&] {  // of channel k; before the norms are known, since each load takes as long as a norm
        if (k >= dim) return;
        own_x = row[k];
        if (token > 0) before_x = row[k - stride];
        if (reads_state) state = kept[k];
        if (writes_state) last_x = last_row[k];
#pragma unroll
        for (int m = 0; m < MOST_MIXES; m++)
            if (m < n_mixes && mix_per_token) of_mixes[m] = mixes[static_cast<size_t>(m * n + token) * stride + k];
    };
    load_inputs();
    const Norm of_own = norm_of(norm, row, dim, eps, scratch[0]);
    const Norm of_before = token > 0 ? norm_of(norm, row - stride, dim, eps, scratch[1]) : of_own;
    const Norm of_last = writes_state && n > 1 ? norm_of(norm, last_row, dim, eps, scratch[2]) : of_own;
    const Writer writer = {rows, split, nullptr, dim};
    while (k < dim) {
        const float h = of_own(own_x, of_norm[0], of_norm[1]);
        const float previous = token > 0 ? of_before(before_x, of_norm[0], of_norm[1]) : state;
        if (writes_state) keeps[k] = of_last(last_x, of_norm[0], of_norm[1]);
#pragma unroll
        for (int m = 0; m < MOST_MIXES; m++)
            if (m < n_mixes) writer.write(m * n + token, k, h + (previous - h) * of_mixes[m]);
        k += gridDim.x * SHIFT_THREADS;
        load_weights();
        load_inputs();
    }
}
