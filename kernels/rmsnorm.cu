// Residual add and RMSNorm in one pass: x += bias + delta; y = x / sqrt(mean(x^2) + eps) * weight.
//
// Shapes    x, delta, y float32 [n][dim], bias, weight float32 [dim], rows padded; delta may be null: nothing is added,
//           nor is a bias, which may be null too. The padding of x, delta and bias is zero, so the mean may run over
//           it; y's padding gets weight's, which is zero.
// Threads   one block of RMSNORM_THREADS per token; a thread takes every RMSNORM_THREADS-th float4 of the row.
// Bytes     x and delta read, x written where there is a delta; the row is read again from L1 for y. A row is small:
//           this kernel is latency, not bandwidth.
#include "common.cuh"

constexpr int RMSNORM_THREADS = 256;

extern "C" __global__ void __launch_bounds__(RMSNORM_THREADS)
    add_rmsnorm(float* x, const float* __restrict__ delta, const float* __restrict__ bias,
                const float* __restrict__ weight, float* __restrict__ y, int dim, float eps) {
    __shared__ float scratch[RMSNORM_THREADS / WARP];
    const int n_vectors = padded(dim) / 4;
    const size_t row = static_cast<size_t>(blockIdx.x) * n_vectors;
    float4* x4 = reinterpret_cast<float4*>(x) + row;
    const float4* weight4 = reinterpret_cast<const float4*>(weight);
    float4* y4 = reinterpret_cast<float4*>(y) + row;

    float squares = 0.f;
    for (int i = threadIdx.x; i < n_vectors; i += RMSNORM_THREADS) {
        float4 v = x4[i];
        if (delta) {
            const float4 d = reinterpret_cast<const float4*>(delta)[row + i];
            if (bias) {  // in the order of linear_add
                const float4 b = reinterpret_cast<const float4*>(bias)[i];
                v = make_float4(v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w);
            }
            v = make_float4(v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w);
            x4[i] = v;  // read again below by this same thread
        }
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    const float mean_square = block_sum<RMSNORM_THREADS>(squares, scratch) / dim;
    const float inverse = 1.f / sqrtf(mean_square + eps);
    for (int i = threadIdx.x; i < n_vectors; i += RMSNORM_THREADS) {
        const float4 v = x4[i], w = weight4[i];
        y4[i] = make_float4(v.x * inverse * w.x, v.y * inverse * w.y, v.z * inverse * w.z, v.w * inverse * w.w);
    }
}
