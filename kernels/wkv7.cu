// The time mix of RWKV-7: each head has a matrix S that decays, forgets what it says of a key, and learns another.
//
//     v = v + (v_first - v) * v_mix;  kk = k * k_k, of length 1 in each head;  k = k * (1 + (a - 1) * k_a)
//     S = S diag(w) - (S kk) (kk * a)^T + v k^T,  y = S r
//     out = (head_norm(y) * norm_weight + norm_bias + sum(r * k * r_k) * v) * g
//
// Shapes    r, w (a factor in (0, 1)), k, v, a, g, v_mix float32 [n][n_heads * head_dim], padded; v_mix is null in the
//           first layer: there v is used as it is and written to v_first, of the same shape, which the others read;
//           k_k, k_a, r_k, norm_weight, norm_bias float32 [n_heads * head_dim]; out is written for its reader
//           (activations.cuh). State: wkv.cuh; head_dim at most HEAD, even or odd.
// Threads   grid n_heads, a block for a head: its state stays in registers (wkv.cuh) while the tokens pass. They pass
//           TOKENS at a time, with two barriers: (1) a warp per token makes the vectors that need sums over the head
//           and puts all into shared memory; (2) every row goes through these tokens, no barrier between them, and
//           leaves y there, while the next numbers are on their way; (3) a warp per token norms y and writes it.
// Bytes     the state twice, the vectors once. One token: the state is read before the wait for the previous kernel.
#include "ptx.cuh"
#include "wkv.cuh"

constexpr float SMALLEST_NORM = 1e-12f;  // of a key, before it is divided by it

enum { R, W, K, V, G, KK, B, Y, N_VECTORS };
enum { K_K, K_A, R_K, NORM_WEIGHT, NORM_BIAS, N_CONSTANTS };

template <int HEAD>
__global__ void __launch_bounds__(HeadState<HEAD>::THREADS, 1)
    wkv7(const float* r, const float* w, const float* k, const float* v, const float* a, const float* g,
         const float* v_mix, float* v_first, const float* __restrict__ k_k, const float* __restrict__ k_a,
         const float* __restrict__ r_k, const float* __restrict__ norm_weight, const float* __restrict__ norm_bias,
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
    keep(constants[K_K], k_k, head_dim);
    keep(constants[K_A], k_a, head_dim);
    keep(constants[R_K], r_k, head_dim);
    keep(constants[NORM_WEIGHT], norm_weight, head_dim);
    keep(constants[NORM_BIAS], norm_bias, head_dim);
    if (n > 0) wait_for_previous_kernel();  // always; as in dot.cuh
    launch_dependents();

    // of this warp's token
    float of_r[PARTS], of_w[PARTS], of_k[PARTS], of_v[PARTS], of_a[PARTS], of_g[PARTS], mix[PARTS], of_first[PARTS];
    auto load = [&](int first) {
        const int token = first + warp, end = min(first + TOKENS, n);
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int d = lane + WARP * p;
            const size_t at = static_cast<size_t>(token) * padded(dim) + first_channel + d;
            const bool exists = token < end && d < head_dim, mixes = exists && v_mix;
            of_r[p] = exists ? r[at] : 0.f;
            of_w[p] = exists ? w[at] : 0.f;
            of_k[p] = exists ? k[at] : 0.f;
            of_v[p] = exists ? v[at] : 0.f;
            of_a[p] = exists ? a[at] : 0.f;
            of_g[p] = exists ? g[at] : 0.f;
            mix[p] = mixes ? v_mix[at] : 0.f;
            of_first[p] = mixes ? v_first[at] : 0.f;
        }
    };
    auto number = [&](int vector, int d) -> float& { return reinterpret_cast<float*>(vectors[warp][vector])[d]; };
    load(0);
    __syncthreads();

    for (int first = 0; first < n; first += TOKENS) {
        const int tokens = min(TOKENS, n - first);
        if (warp < tokens) {
            float square = 0.f;
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const float kk = of_k[p] * constants[K_K][lane + WARP * p];
                square += kk * kk;
            }
            const float inverse = 1.f / fmaxf(sqrtf(warp_sum(square)), SMALLEST_NORM);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const int d = lane + WARP * p;
                const float kk = of_k[p] * constants[K_K][d] * inverse;
                number(R, d) = of_r[p];
                number(W, d) = of_w[p];
                number(K, d) = of_k[p] * fmaf(of_a[p] - 1.f, constants[K_A][d], 1.f);
                number(V, d) = fmaf(of_first[p] - of_v[p], mix[p], of_v[p]);
                number(G, d) = of_g[p];
                number(KK, d) = kk;
                number(B, d) = kk * of_a[p];
                if (!v_mix && d < head_dim)
                    v_first[static_cast<size_t>(first + warp) * padded(dim) + first_channel + d] = of_v[p];
            }
        }
        __syncthreads();
        if (HEAD < 128) load(first + TOKENS);  // with 128 there are no registers for it
        for (int t = 0; t < tokens; t++) {
            const float of_row = reinterpret_cast<const float*>(vectors[t][V])[head.row];
            const float forgotten = head.dot(vectors[t][KK]);
#pragma unroll
            for (int j = 0; j < Head::VECTORS; j++) {
                float ws[4], bs[4], ks[4];
                take4(vectors[t][W][head.vector(j)], ws);
                take4(vectors[t][B][head.vector(j)], bs);
                take4(vectors[t][K][head.vector(j)], ks);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    head.s[j][i] = fmaf(head.s[j][i], ws[i], fmaf(of_row, ks[i], -forgotten * bs[i]));
            }
            const float y = head.dot(vectors[t][R]);
            if (head.part == 0) reinterpret_cast<float*>(vectors[t][Y])[head.row] = y;
        }
        __syncthreads();
        if (warp < tokens) {
            float y[PARTS], bonus = 0.f;
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const int d = lane + WARP * p;
                y[p] = number(Y, d);
                bonus += number(R, d) * number(K, d) * constants[R_K][d];
            }
            bonus = warp_sum(bonus);
            head_norm(y, head_dim, eps);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const int d = lane + WARP * p;
                const float normed = fmaf(y[p], constants[NORM_WEIGHT][d], constants[NORM_BIAS][d]);
                if (d < head_dim)
                    writer.write(first + warp, first_channel + d, fmaf(bonus, number(V, d), normed) * number(G, d));
            }
        }
        if (HEAD == 128) load(first + TOKENS);
    }
    head.save(slot_of(state, slot_step, call + 1) + of_head, head_dim);
}
