// How a row of floating-point weights is stored and read: one struct per type, 16 bytes at a time.
//
// A matrix is [rows][padded(in_features)], padding zero. Rows are padded to whole pairs.
//   F32      4 weights per load.
//   F16      8 weights per load.
//   BF16     8 weights per load: the upper halves of float32.
#pragma once
#include "common.cuh"
#include "product.cuh"
#include "ptx.cuh"

constexpr int WARPS_PER_BLOCK = 4;  // of dot.cuh

// What the types share: T is the element in memory.
template <class T>
struct Rows {
    using Element = T;
    using Param = float;  // there are none
    using Activation = float;
    static constexpr bool TILED = false;
    static constexpr int THREADS = WARPS_PER_BLOCK * WARP;
    static constexpr int ROW_PAIRS = WARPS_PER_BLOCK;  // of a block
    static constexpr int PER_LOAD = 16 / sizeof(T);
    __host__ __device__ static constexpr int min_blocks(int) { return 1; }
    // Which Product (product.cuh) a thread ends with: row pair of the matrix, column of the block.
    template <class Block = GridBlock>
    __device__ __forceinline__ static int own_pair(Block row_block = {}) {
        return row_block * WARPS_PER_BLOCK + threadIdx.x / WARP;
    }
    __device__ __forceinline__ static int own_column() { return threadIdx.x % WARP; }

    const T* row;
    __device__ __forceinline__ Rows(const T* matrix, int in_features, int index)
        : row(matrix + static_cast<size_t>(index) * padded(in_features)) {}
};

struct F32 : Rows<float> {
    using Rows<float>::Rows;
    __device__ __forceinline__ static void widen(uint4 bits, float (&w)[PER_LOAD]) {
        w[0] = __uint_as_float(bits.x), w[1] = __uint_as_float(bits.y);
        w[2] = __uint_as_float(bits.z), w[3] = __uint_as_float(bits.w);
    }
};

struct F16 : Rows<__half> {
    using Rows<__half>::Rows;
    __device__ __forceinline__ static void widen(uint4 bits, float (&w)[PER_LOAD]) {
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
            w[2 * i] = pair.x;
            w[2 * i + 1] = pair.y;
        }
    }
};

struct BF16 : Rows<unsigned short> {
    using Rows<unsigned short>::Rows;
    __device__ __forceinline__ static void widen(uint4 bits, float (&w)[PER_LOAD]) {
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[2 * i] = __uint_as_float(words[i] << 16);
            w[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
};
