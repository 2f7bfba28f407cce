// After the two products of a prompt: y = silu(gate) * up. (A decode step does this in gate_up.cu.)
//
// Shapes    gate, up, y float32 [n][width], rows padded; y may be gate. Padding stays zero: silu(0) * 0 = 0.
// Threads   grid (ceil(padded(width) / 4 / SWIGLU_THREADS), n): a thread per float4.
// Bytes     two reads, one write.
#include "common.cuh"

constexpr int SWIGLU_THREADS = 128;

extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS)
    swiglu(const float* gate, const float* up, float* y, int width) {
    const int i = (blockIdx.x * SWIGLU_THREADS + threadIdx.x) * 4;
    if (i >= padded(width)) return;
    const size_t place = static_cast<size_t>(blockIdx.y) * padded(width) + i;
    const float4 g = *reinterpret_cast<const float4*>(gate + place), u = *reinterpret_cast<const float4*>(up + place);
    *reinterpret_cast<float4*>(y + place) =
        make_float4(silu(g.x) * u.x, silu(g.y) * u.y, silu(g.z) * u.z, silu(g.w) * u.w);
}
