// What follows the products for gate and up of a prompt: y = silu(gate + gate_bias) * (up + up_bias).
//
// Shapes    gate_up float32 [n][2 * width], padded: outputs 2o and 2o + 1 are those of row o of gate and of up;
//           bias float32 [2 * width] in the same order, null for none; y float32 [n][width], padded.
// Threads   grid (ceil(width / SWIGLU_THREADS), n), block SWIGLU_THREADS: a thread makes one number.
// Bytes     both products read, one number written. Tokens of a decode step have all this fused: gate_up.cu.
#include "common.cuh"

constexpr int SWIGLU_THREADS = 128;

extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS)
    swiglu(const float* __restrict__ gate_up, const float* __restrict__ bias, float* __restrict__ y, int width) {
    const int i = blockIdx.x * SWIGLU_THREADS + threadIdx.x, token = blockIdx.y;
    if (i >= width) return;
    float2 pair = reinterpret_cast<const float2*>(gate_up + static_cast<size_t>(token) * padded(2 * width))[i];
    if (bias) pair.x += bias[2 * i], pair.y += bias[2 * i + 1];
    y[static_cast<size_t>(token) * padded(width) + i] = silu(pair.x) * pair.y;
}
