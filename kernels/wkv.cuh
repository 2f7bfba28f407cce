// What the time mixes of RWKV share: the ring of states; a head's state in registers; the norm of a head.
//
// A layer's state is a ring (slots.cuh). The slot that is read, and the position, were written a whole step ago: at
// least two kernels lie between, which have all waited, so both are loaded before the wait for the previous kernel. From
// L2: the L1 cache of this multiprocessor may be older.
//
// A head is [head_dim (values)][head_dim (keys)] float32, dense. A block holds it in registers, as if it were HEAD wide
// (the rest is zero): LANES lanes share a row, each with VECTORS times four neighbouring columns, LANES * 4 apart, so
// that a row's lanes load neighbouring bytes. Where head_dim is a multiple of 4, slot_step must be one too.
#pragma once
#include "activations.cuh"
#include "slots.cuh"

__device__ __forceinline__ void take4(const float4& v, float (&values)[4]) {
    values[0] = v.x, values[1] = v.y, values[2] = v.z, values[3] = v.w;
}

template <int HEAD>
struct HeadState {
    static constexpr int LANES = HEAD <= 32 ? 2 : 4;
    static constexpr int VECTORS = HEAD / LANES / 4;
    static constexpr int THREADS = HEAD * LANES;
    static constexpr int TOKENS = THREADS / WARP < 8 ? THREADS / WARP : 8;  // between two barriers, a warp for each
    static constexpr int PARTS = HEAD / WARP;  // numbers of a vector that a lane of such a warp has, WARP apart

    float s[VECTORS][4];
    int row, part;

    __device__ __forceinline__ int vector(int j) const { return j * LANES + part; }

    __device__ __forceinline__ void load(const float* head, int head_dim) {
        row = threadIdx.x / LANES, part = threadIdx.x % LANES;
        const float* of_row = head + row * head_dim;
        if (head_dim % 4 == 0) {
#pragma unroll
            for (int j = 0; j < VECTORS; j++) {
                float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
                if (row < head_dim && vector(j) * 4 < head_dim)
                    v = __ldcg(reinterpret_cast<const float4*>(of_row) + vector(j));
                take4(v, s[j]);
            }
            return;
        }
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int k = vector(j) * 4 + i;
                s[j][i] = row < head_dim && k < head_dim ? __ldcg(of_row + k) : 0.f;
            }
    }

    __device__ __forceinline__ void save(float* head, int head_dim) const {
        float* of_row = head + row * head_dim;
        if (row >= head_dim) return;
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            if (head_dim % 4 == 0) {
                const float4 v = make_float4(s[j][0], s[j][1], s[j][2], s[j][3]);
                if (vector(j) * 4 < head_dim) reinterpret_cast<float4*>(of_row)[vector(j)] = v;
            } else {
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (vector(j) * 4 + i < head_dim) of_row[vector(j) * 4 + i] = s[j][i];
            }
        }
    }

    // The sum of four numbers of each of a row's lanes, the same bits in all of them.
    __device__ __forceinline__ static float sum(const float (&values)[4]) {
        float total = (values[0] + values[1]) + (values[2] + values[3]);
#pragma unroll
        for (int offset = LANES / 2; offset > 0; offset >>= 1) total += __shfl_xor_sync(ALL_LANES, total, offset);
        return total;
    }

    // The row's product with a vector of shared memory.
    __device__ __forceinline__ float dot(const float4* vector4) const {
        float sums[4] = {};
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            float x[4];
            take4(vector4[vector(j)], x);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i] = fmaf(s[j][i], x[i], sums[i]);
        }
        return sum(sums);
    }
};

// A head's part of a constant vector to shared memory, zeros behind it; the first HEAD threads of a block do it.
template <int HEAD>
__device__ __forceinline__ void keep(float (&of_head)[HEAD], const float* vector, int head_dim) {
    const int d = threadIdx.x;
    if (d < HEAD) of_head[d] = d < head_dim ? __ldg(vector + blockIdx.x * head_dim + d) : 0.f;
}

// (y - mean) / sqrt(variance + eps) of a head, by a warp: number lane + WARP * p of it is y[p], zero behind it.
template <int PARTS>
__device__ __forceinline__ void head_norm(float (&y)[PARTS], int head_dim, float eps) {
    float sum = 0.f, square = 0.f;
#pragma unroll
    for (int p = 0; p < PARTS; p++) sum += y[p];
    const float mean = warp_sum(sum) / head_dim;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        y[p] = threadIdx.x % WARP + WARP * p < head_dim ? y[p] - mean : 0.f;
        square += y[p] * y[p];
    }
    const float inverse = 1.f / sqrtf(warp_sum(square) / head_dim + eps);
#pragma unroll
    for (int p = 0; p < PARTS; p++) y[p] *= inverse;
}
