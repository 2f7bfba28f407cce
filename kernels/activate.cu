// What follows the products of a prompt in recurrent models: y = act(y + bias), in place.
//
// Shapes    y float32 [n][width], padded; bias float32 [width], null for none; activation: a code of activated.cuh.
// Threads   grid (ceil(width / ACTIVATE_THREADS), n), block ACTIVATE_THREADS: a thread makes one number.
// Bytes     y read and written. Tokens of a decode step have this fused: linear_group.cu.
#include "activated.cuh"

constexpr int ACTIVATE_THREADS = 128;

extern "C" __global__ void __launch_bounds__(ACTIVATE_THREADS)
    activate(float* y, const float* __restrict__ bias, int activation, int width) {
    const int i = blockIdx.x * ACTIVATE_THREADS + threadIdx.x;
    if (i >= width) return;
    float* place = y + static_cast<size_t>(blockIdx.y) * padded(width) + i;
    *place = activated(activation, *place + (bias ? bias[i] : 0.f));
}
