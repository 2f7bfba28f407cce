// What the experts of a layer say, weighed by its gate: y = sum over a < n_active of p[a] * expert a's output.
//
// p is the softmax of all n_experts gates, active or not.
//
// Shapes    outputs float32 [n][n_active * width + n_experts], the experts side by side, then the gates; y float32
//           [n][width]; both padded.
// Threads   grid (ceil(width / MIX_THREADS), n), block MIX_THREADS: a thread makes one number. Each finds the softmax by
//           itself, from L1: of a few gates that is less than a barrier.
// Bytes     outputs read, y written.
#include "common.cuh"
#include "ptx.cuh"

constexpr int MIX_THREADS = 128;

extern "C" __global__ void __launch_bounds__(MIX_THREADS)
    mix_experts(const float* outputs, float* y, int width, int n_active, int n_experts) {
    wait_for_previous_kernel();
    launch_dependents();
    const int i = blockIdx.x * MIX_THREADS + threadIdx.x;
    if (i >= width) return;
    const float* row = outputs + static_cast<size_t>(blockIdx.y) * padded(n_active * width + n_experts);
    const float* gates = row + n_active * width;
    float largest = gates[0], sum = 0.f, mixed = 0.f;
    for (int a = 1; a < n_experts; a++) largest = fmaxf(largest, gates[a]);
    for (int a = 0; a < n_experts; a++) sum += expf(gates[a] - largest);
    for (int a = 0; a < n_active; a++) mixed = fmaf(expf(gates[a] - largest) / sum, row[a * width + i], mixed);
    y[static_cast<size_t>(blockIdx.y) * padded(width) + i] = mixed;
}
