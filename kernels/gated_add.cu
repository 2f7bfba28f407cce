// The end of a layer's half in recurrent models: x += gate * delta; without a gate x += delta.
//
// Shapes    x, gate, delta float32 [n][width], padded; gate may be null.
// Threads   grid (ceil(width / GATED_ADD_THREADS), n), block GATED_ADD_THREADS: a thread makes one number.
// Bytes     all three read, x written: latency, not bandwidth, in a decode step.
#include "common.cuh"
#include "ptx.cuh"

constexpr int GATED_ADD_THREADS = 128;

extern "C" __global__ void __launch_bounds__(GATED_ADD_THREADS)
    gated_add(float* x, const float* gate, const float* delta, int width) {
    wait_for_previous_kernel();
    launch_dependents();
    const int i = blockIdx.x * GATED_ADD_THREADS + threadIdx.x;
    if (i >= width) return;
    const size_t at = static_cast<size_t>(blockIdx.y) * padded(width) + i;
    x[at] += gate ? gate[at] * delta[at] : delta[at];
}
