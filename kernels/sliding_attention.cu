// MicroRWKV's attention of 256 rows: each row of a head sees all of them. It does not slide, and nothing is masked.
//
//     y[r] = sum over rows s of softmax_s(q[r] . k[s] * head_dim^-0.5) * v[s],  r, s = 0 ... 255
//
// A row is W = ceil(n / 256) tokens, one after another, of one head: W * head_dim numbers. Tokens from n on are zeros,
// which take part: a row of them has a score of 0.
//
// Shapes    qkv float32 [n][3 * dim], q, k, v side by side and heads within each; y float32 [n][dim]; both padded.
// Threads   grid (ceil(rows / QUERIES), n_heads), block SLIDING_THREADS, for QUERIES rows that are not all zeros, ROWS
//           at most. (1) A warp takes every WARPS-th row of keys, its lanes share the numbers of a token, and leaves a
//           score for each query; (2) a warp per query, its softmax; (3) a thread takes numbers of a row of values and
//           goes down the rows, all queries at once.
// Bytes     k and v of a head once for QUERIES rows, from L2: 2 * n * head_dim * 4 * rows / QUERIES a head in all.
#include "common.cuh"
#include "ptx.cuh"

constexpr int ROWS = 256, QUERIES = 8, SLIDING_THREADS = 256, WARPS = SLIDING_THREADS / WARP;
static_assert(QUERIES == WARPS, "a warp per query");

extern "C" __global__ void __launch_bounds__(SLIDING_THREADS)
    sliding_attention(const float* qkv, float* y, int n, int width, int n_heads, int head_dim) {
    __shared__ float scores[QUERIES][ROWS];
    wait_for_previous_kernel();
    launch_dependents();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = n_heads * head_dim;
    const int first = blockIdx.x * QUERIES, n_rows = (n + width - 1) / width;
    const size_t stride = padded(3 * dim);
    const float* q = qkv + blockIdx.y * head_dim;
    const float *k = q + dim, *v = k + dim;
    const float scale = 1.f / sqrtf(static_cast<float>(head_dim));

    for (int row = warp; row < n_rows; row += WARPS) {
        float sums[QUERIES] = {};
        for (int place = 0; place < width; place++) {
            const int token = row * width + place;
            if (token >= n) break;
            for (int i = lane; i < head_dim; i += WARP) {
                const float of_k = k[token * stride + i];
#pragma unroll
                for (int j = 0; j < QUERIES; j++) {
                    const int of_query = (first + j) * width + place;
                    if (of_query < n) sums[j] = fmaf(q[of_query * stride + i], of_k, sums[j]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < QUERIES; j++) {
            const float sum = warp_sum(sums[j]);
            if (lane == 0) scores[j][row] = sum * scale;
        }
    }
    for (int at = n_rows + threadIdx.x; at < ROWS; at += SLIDING_THREADS)
#pragma unroll
        for (int j = 0; j < QUERIES; j++) scores[j][at] = 0.f;
    __syncthreads();

    float* own = scores[warp];
    float largest = own[lane], sum = 0.f;
    for (int row = lane + WARP; row < ROWS; row += WARP) largest = fmaxf(largest, own[row]);
    largest = warp_max(largest);
    for (int row = lane; row < ROWS; row += WARP) sum += own[row] = expf(own[row] - largest);
    sum = warp_sum(sum);
    for (int row = lane; row < ROWS; row += WARP) own[row] /= sum;
    __syncthreads();

    for (int at = threadIdx.x; at < width * head_dim; at += SLIDING_THREADS) {
        const int place = at / head_dim, i = at % head_dim;
        const int n_whole = (n - place + width - 1) / width;  // rows that have a token at this place
        float sums[QUERIES] = {};
#pragma unroll 4
        for (int row = 0; row < n_whole; row++) {
            const float of_v = v[(row * width + place) * stride + i];
#pragma unroll
            for (int j = 0; j < QUERIES; j++) sums[j] = fmaf(scores[j][row], of_v, sums[j]);
        }
#pragma unroll
        for (int j = 0; j < QUERIES; j++) {
            const int token = (first + j) * width + place;
            if (token < n) y[static_cast<size_t>(token) * padded(dim) + blockIdx.y * head_dim + i] = sums[j];
        }
    }
}
