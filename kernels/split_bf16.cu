// A float32 row in the form that quantised weights are multiplied with (activations.cuh), where no kernel wrote it so.
//
// Shapes    x float32 [n][width], padded; split uint16 [n][2][tiled(width)]; place int32 [width], null for order.
// Threads   grid (ceil(width / SPLIT_BF16_THREADS), n), block SPLIT_BF16_THREADS: a thread takes one number.
// Bytes     x read, as much written.
#include "activations.cuh"

constexpr int SPLIT_BF16_THREADS = 128;

extern "C" __global__ void __launch_bounds__(SPLIT_BF16_THREADS)
    split_bf16(const float* __restrict__ x, unsigned short* __restrict__ split, const int* __restrict__ place,
               int width) {
    const int k = blockIdx.x * SPLIT_BF16_THREADS + threadIdx.x, token = blockIdx.y;
    if (k >= width) return;
    const Writer writer = {nullptr, split, place, width};
    writer.write(token, k, x[static_cast<size_t>(token) * padded(width) + k]);
}
