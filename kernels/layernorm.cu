// LayerNorm: y = (x - mean) / sqrt(variance + eps) * weight + bias.
//
// Shapes    x float32 [n][dim], weight and bias float32 [dim], padded; y is written for its readers (activations.cuh):
//           rows, split or both. rows may be x itself where place is null.
// Threads   one block of LAYERNORM_THREADS per token; a thread takes every LAYERNORM_THREADS-th number of the row.
// Bytes     a row read three times, twice from L1: latency, not bandwidth.
#include "activations.cuh"
#include "layernorm.cuh"
#include "ptx.cuh"

constexpr int LAYERNORM_THREADS = 256;

extern "C" __global__ void __launch_bounds__(LAYERNORM_THREADS)
    layernorm(const float* x, const float* __restrict__ weight, const float* __restrict__ bias, float eps, float* rows,
              unsigned short* split, const int* __restrict__ place, int dim) {
    __shared__ float scratch[2][LAYERNORM_THREADS / WARP];
    wait_for_previous_kernel();
    launch_dependents();
    const float* row = x + static_cast<size_t>(blockIdx.x) * padded(dim);
    const Norm norm = layer_norm<LAYERNORM_THREADS>(row, dim, eps, scratch);  // every thread has read the row then
    const Writer writer = {rows, split, place, dim};
    for (int k = threadIdx.x; k < dim; k += LAYERNORM_THREADS)
        writer.write(blockIdx.x, k, norm(row[k], weight[k], bias[k]));
}
