// A product of one token with a matrix of which only some rows are read: residual += h @ w_t, most of h being zero.
//
//     residual[o] += sum over k with h[k] != 0 of h[k] * w_t[k][o]
//
// After a squared ReLU most of h is exactly zero, and what is multiplied with zero need not come from memory. So the
// matrix is kept transposed: a number of h belongs to a row.
//
// Shapes    h float32 [hidden], w_t [hidden][dim] of floats (weights.cuh), residual float32 [dim], padded.
// Threads   grid ceil(dim / columns of a block), a block per slice of SLICE_LANES 16-byte pieces of all rows, so that a
//           single launch does: there is nothing to add up between blocks. A block lists the numbers other than zero of
//           CHUNK at a time, in their order (each thread 8 of them, counted by a scan); then its groups of SLICE_LANES
//           lanes take rows of the list in turns, UNROLL rows in flight each. Groups are added up by a butterfly, warps
//           in their order.
// Bytes     h once per block, from L2, and the listed rows once. In flight per block: SPARSE_THREADS * UNROLL * 16.
#include "weights.cuh"

constexpr int SPARSE_THREADS = 512, SPARSE_WARPS = SPARSE_THREADS / WARP;
constexpr int CHUNK = SPARSE_THREADS * 8;
constexpr int SLICE_LANES = 4;
constexpr int GROUPS = SPARSE_THREADS / SLICE_LANES;
constexpr int UNROLL = 4;

// The sum of `count` over the threads before this one; `total`: over all. `of_warps` is free again after a barrier.
__device__ __forceinline__ int count_before(int count, int (&of_warps)[SPARSE_WARPS], int& total) {
    const int lane = threadIdx.x % WARP, own_warp = threadIdx.x / WARP;
    int running = count, before = 0;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, running, offset);
        if (lane >= offset) running += other;
    }
    if (lane == WARP - 1) of_warps[own_warp] = running;
    __syncthreads();
    total = 0;
    for (int warp = 0; warp < SPARSE_WARPS; warp++) {
        if (warp == own_warp) before = total;
        total += of_warps[warp];
    }
    return before + running - count;
}

template <class W>
__global__ void __launch_bounds__(SPARSE_THREADS, 1)
    linear_sparse(const typename W::Element* __restrict__ w_t, const float* h, float* residual, int hidden, int dim) {
    constexpr int COLUMNS = SLICE_LANES * W::PER_LOAD;
    __shared__ int of_warps[SPARSE_WARPS], rows[CHUNK];
    __shared__ float numbers[CHUNK], sums_of[SPARSE_WARPS][COLUMNS];
    const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    const int part = thread % SLICE_LANES, group = thread / SLICE_LANES, stride = padded(dim);
    const int column = blockIdx.x * COLUMNS + part * W::PER_LOAD, out = blockIdx.x * COLUMNS + thread;
    const bool has_column = column < stride, has_out = thread < COLUMNS && out < dim;
    wait_for_previous_kernel();
    launch_dependents();
    float value = has_out ? residual[out] : 0.f;

    float sums[W::PER_LOAD] = {};
    for (int base = 0; base < hidden; base += CHUNK) {
        const int own = base + thread * 8;
        float x[8] = {};
        if (own < hidden) load8(h + own, x);
        int count = 0, listed;
#pragma unroll
        for (int i = 0; i < 8; i++) count += x[i] != 0.f;
        int at = count_before(count, of_warps, listed);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (x[i] != 0.f) rows[at] = own + i, numbers[at++] = x[i];
        __syncthreads();
        for (int first = group; first < listed; first += GROUPS * UNROLL) {
            uint4 raw[UNROLL] = {};
            float factors[UNROLL] = {};
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int i = first + u * GROUPS;
                if (i >= listed || !has_column) continue;
                raw[u] = load_streaming(w_t + static_cast<size_t>(rows[i]) * stride + column);
                factors[u] = numbers[i];
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                float weights[W::PER_LOAD];
                W::widen(raw[u], weights);
#pragma unroll
                for (int c = 0; c < W::PER_LOAD; c++) sums[c] = fmaf(factors[u], weights[c], sums[c]);
            }
        }  // the next list is written behind the barrier of the next count
    }
#pragma unroll
    for (int offset = WARP / 2; offset >= SLICE_LANES; offset /= 2)
#pragma unroll
        for (int c = 0; c < W::PER_LOAD; c++) sums[c] += __shfl_xor_sync(ALL_LANES, sums[c], offset);
    if (lane < SLICE_LANES)
#pragma unroll
        for (int c = 0; c < W::PER_LOAD; c++) sums_of[warp][part * W::PER_LOAD + c] = sums[c];
    __syncthreads();
    if (!has_out) return;
    float total = 0.f;
    for (int w = 0; w < SPARSE_WARPS; w++) total += sums_of[w][thread];
    residual[out] = value + total;
}
