// The time mix of RWKV-5 and RWKV-6: each head has a matrix S that decays and learns, token by token.
//
//     y = (S + v (bonus * k)^T) r, then S = S diag(decay) + v k^T; out = (head_norm(y) * norm_weight + norm_bias) * g
//
// Shapes    r, k, v, g (its SiLU done) float32 [n][n_heads * head_dim], padded; decay, a factor in (0, 1), the same, or
//           one row for all tokens, where decay_step is 0; bonus, norm_weight, norm_bias float32 [n_heads * head_dim];
//           out is written for its reader (activations.cuh). State: wkv.cuh; head_dim at most HEAD, even or odd.
// Threads   grid n_heads, a block for a head: its state stays in registers (wkv.cuh) while the tokens pass. They pass
//           TOKENS at a time, with two barriers: (1) a warp per token puts its vectors into shared memory; (2) every
//           row goes through these tokens, no barrier between them, and leaves y there, while the next tokens' numbers
//           are on their way; (3) a warp per token norms y and writes it.
// Bytes     the state twice, the vectors once. One token: the state is read before the wait for the previous kernel.
#include "ptx.cuh"
#include "wkv.cuh"

enum { R, W, K, V, G, Y, N_VECTORS };
enum { BONUS, DECAY, NORM_WEIGHT, NORM_BIAS, N_CONSTANTS };

template <int HEAD>
__global__ void __launch_bounds__(HeadState<HEAD>::THREADS, 1)
    wkv5(const float* r, const float* k, const float* v, const float* g, const float* decay, int decay_step,
         const float* __restrict__ bonus, const float* __restrict__ norm_weight, const float* __restrict__ norm_bias,
         float eps, float* state, int slot_step, const int* position, float* rows, unsigned short* split,
         const int* __restrict__ place, int n, int head_dim) {
    using Head = HeadState<HEAD>;
    constexpr int TOKENS = Head::TOKENS, PARTS = Head::PARTS;
    __shared__ float4 vectors[TOKENS][N_VECTORS][HEAD / 4];
    __shared__ float constants[N_CONSTANTS][HEAD];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int dim = gridDim.x * head_dim, first_channel = blockIdx.x * head_dim;
    const Writer writer = {rows, split, place, dim};
    const int call = __ldcg(position), of_head = first_channel * head_dim;

    Head head;
    head.load(slot_of(state, slot_step, call) + of_head, head_dim);
    keep(constants[BONUS], bonus, head_dim);
    keep(constants[NORM_WEIGHT], norm_weight, head_dim);
    keep(constants[NORM_BIAS], norm_bias, head_dim);
    if (decay_step == 0) keep(constants[DECAY], decay, head_dim);
    if (n > 0) wait_for_previous_kernel();  // always; as in dot.cuh
    launch_dependents();

    float of_r[PARTS], of_w[PARTS], of_k[PARTS], of_v[PARTS], of_g[PARTS];  // of this warp's token
    auto load = [&](int first) {
        const int token = first + warp, end = min(first + TOKENS, n);
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int d = lane + WARP * p;
            const size_t at = static_cast<size_t>(token) * padded(dim) + first_channel + d;
            const bool exists = token < end && d < head_dim;
            of_r[p] = exists ? r[at] : 0.f;
            of_k[p] = exists ? k[at] : 0.f;
            of_v[p] = exists ? v[at] : 0.f;
            of_g[p] = exists ? g[at] : 0.f;
            if (decay_step > 0)
                of_w[p] = exists ? decay[static_cast<size_t>(token) * decay_step + first_channel + d] : 0.f;
        }
    };
    auto number = [&](int vector, int d) -> float& { return reinterpret_cast<float*>(vectors[warp][vector])[d]; };
    load(0);
    __syncthreads();

    for (int first = 0; first < n; first += TOKENS) {
        const int tokens = min(TOKENS, n - first);
        if (warp < tokens)
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const int d = lane + WARP * p;
                number(R, d) = of_r[p];
                number(K, d) = of_k[p];
                number(V, d) = of_v[p];
                number(G, d) = of_g[p];
                number(W, d) = decay_step > 0 ? of_w[p] : constants[DECAY][d];
            }
        __syncthreads();
        load(first + TOKENS);
        for (int t = 0; t < tokens; t++) {
            const float of_row = reinterpret_cast<const float*>(vectors[t][V])[head.row];
            const float y = head.dot(vectors[t][R]);
            if (head.part == 0) reinterpret_cast<float*>(vectors[t][Y])[head.row] = y;
#pragma unroll
            for (int j = 0; j < Head::VECTORS; j++) {
                float ws[4], ks[4];
                take4(vectors[t][W][head.vector(j)], ws);
                take4(vectors[t][K][head.vector(j)], ks);
#pragma unroll
                for (int i = 0; i < 4; i++) head.s[j][i] = fmaf(head.s[j][i], ws[i], of_row * ks[i]);
            }
        }
        __syncthreads();
        if (warp < tokens) {
            float y[PARTS], own = 0.f;  // what the token adds to its own y, times v
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const int d = lane + WARP * p;
                own += number(R, d) * constants[BONUS][d] * number(K, d);
            }
            own = warp_sum(own);
#pragma unroll
            for (int p = 0; p < PARTS; p++) y[p] = fmaf(own, number(V, lane + WARP * p), number(Y, lane + WARP * p));
            head_norm(y, head_dim, eps);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const int d = lane + WARP * p;
                const float normed = fmaf(y[p], constants[NORM_WEIGHT][d], constants[NORM_BIAS][d]);
                if (d < head_dim) writer.write(first + warp, first_channel + d, normed * number(G, d));
            }
        }
    }
    head.save(slot_of(state, slot_step, call + 1) + of_head, head_dim);
}
