// MicroRWKV's attention between heads: of each group q, k, v, w [n][dim / 4], read as [n_heads][n][d] where they lie.
//
//     y[h] = w[h] * sum over heads j of softmax_j(q[h] . k[j] * d^-0.5) * v[j],  of each group and place 0 ... n - 1
//
// Number i of head h's vector at a place is number (h * n + place) * d + i of the flat group: so the vector is d
// neighbouring channels, the ((h * n + place) % n_heads)-th, of token (h * n + place) / n_heads. Results lie so in
// [GROUPS][n_heads][n][d], read as [n][dim].
//
// Shapes    qkvw float32 [n][4 * dim], of each group its q, k, v, w side by side; y float32 [n][dim]; both padded;
//           dim = GROUPS * n_heads * d.
// Threads   grid (n, GROUPS), block GROUPED_THREADS: q, k, v of all heads at one place go to shared memory,
//           3 * n_heads * d floats, beside the n_heads * n_heads scores. Then a thread makes a score, a head's softmax,
//           a number.
// Bytes     5 * dim * 4 for each token, in pieces of d * 4.
#include "common.cuh"
#include "ptx.cuh"

constexpr int GROUPED_THREADS = 128, GROUPS = 4;

extern "C" __global__ void __launch_bounds__(GROUPED_THREADS)
    grouped_attention(const float* qkvw, float* y, int n, int n_heads, int d) {
    extern __shared__ float shared[];
    wait_for_previous_kernel();
    launch_dependents();
    const int place = blockIdx.x, group = blockIdx.y, width = n_heads * d, dim = GROUPS * width;
    float *q = shared, *k = q + width, *v = k + width, *scores = v + width;
    for (int at = threadIdx.x; at < width; at += GROUPED_THREADS) {
        const int vector = at / d * n + place;
        const float* row = qkvw + static_cast<size_t>(vector / n_heads) * padded(4 * dim) + group * dim;
        const int channel = vector % n_heads * d + at % d;
        q[at] = row[channel], k[at] = row[width + channel], v[at] = row[2 * width + channel];
    }
    __syncthreads();
    const float scale = 1.f / sqrtf(static_cast<float>(d));
    for (int at = threadIdx.x; at < n_heads * n_heads; at += GROUPED_THREADS) {
        const float *of_q = q + at / n_heads * d, *of_k = k + at % n_heads * d;
        float score = 0.f;
        for (int i = 0; i < d; i++) score = fmaf(of_q[i], of_k[i], score);
        scores[at] = score * scale;
    }
    __syncthreads();
    for (int head = threadIdx.x; head < n_heads; head += GROUPED_THREADS) {
        float* of_head = scores + head * n_heads;
        float largest = of_head[0], sum = 0.f;
        for (int j = 1; j < n_heads; j++) largest = fmaxf(largest, of_head[j]);
        for (int j = 0; j < n_heads; j++) sum += of_head[j] = expf(of_head[j] - largest);
        for (int j = 0; j < n_heads; j++) of_head[j] /= sum;
    }
    __syncthreads();
    for (int at = threadIdx.x; at < width; at += GROUPED_THREADS) {
        const int head = at / d, i = at % d, vector = head * n + place;
        const float* of_head = scores + head * n_heads;
        float sum = 0.f;
        for (int j = 0; j < n_heads; j++) sum = fmaf(of_head[j], v[j * d + i], sum);
        const float w = qkvw[static_cast<size_t>(vector / n_heads) * padded(4 * dim) + group * dim + 3 * width +
                             vector % n_heads * d + i];
        const int out = group * n_heads * n + vector;  // of vectors of d numbers, GROUPS * n_heads in a row of y
        y[static_cast<size_t>(out / (GROUPS * n_heads)) * padded(dim) + out % (GROUPS * n_heads) * d + i] = sum * w;
    }
}
