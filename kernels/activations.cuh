// What one kernel of a decode step hands to the next: a vector per column, in the form that its reader wants.
//
// Two forms:
//   rows    float32 [n][padded(width)]
//   split   each number as the sum of two bfloat16, which tensor cores multiply: uint16 [n][2][tiled(width)], the high
//           halves, then the low ones. 16 bits of each number, the range of float32, so nothing can overflow. Among 32
//           neighbours, number k is at place_in_split(k): the order in which a lane of tiles.cuh takes them.
// A reader with act-order (GPTQ) wants its numbers permuted: number k goes to place[k]. Padding is zero and is never
// written.
//
// RMSNorm has no kernel of its own in a decode step. Its weight is multiplied in where a vector is written; its factor
// 1 / sqrt(mean(x^2) + eps), one number per column, where a product with the vector is finished (inverse_rms). For that
// the writer leaves sums of squares of the residual, one per block and column: squares float32 [n][n_squares].
#pragma once
#include "common.cuh"

constexpr int TILE_COLUMNS = 128;  // of weights, tiles.cuh

__host__ __device__ constexpr int tiled(int n) { return (n + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS; }

__device__ __forceinline__ int place_in_split(int k) {
    return (k & ~31) | (k & 12) << 1 | (k & 16) >> 2 | (k & 3);
}

// Where a kernel writes numbers of a vector for its reader. One of rows and split is null.
struct Writer {
    float* rows;
    unsigned short* split;
    const int* place;  // null: in order
    int width;

    __device__ __forceinline__ void write(int column, int k, float value) const {
        const int at = place ? place[k] : k;
        if (rows) rows[static_cast<size_t>(column) * padded(width) + at] = value;
        if (!split) return;
        // the high half is cut off, so that NaN stays NaN; the low one is rounded to nearest, ties to even
        const unsigned bits = __float_as_uint(value);
        const unsigned rest = __float_as_uint(value - __uint_as_float(bits & 0xffff0000u));
        unsigned short* out = split + static_cast<size_t>(column) * 2 * tiled(width) + place_in_split(at);
        out[0] = static_cast<unsigned short>(bits >> 16);
        out[tiled(width)] = static_cast<unsigned short>((rest + 0x7fffu + (rest >> 16 & 1u)) >> 16);
    }
};

// 1 / sqrt(mean(x^2) + eps) of a column from the sums of squares that its writer left; by a whole warp, the same bits
// in every lane. Without squares 1: there is no norm before this product.
__device__ __forceinline__ float inverse_rms(const float* squares, int n_squares, int column, int dim,
                                             float eps) {
    if (!squares) return 1.f;
    float sum = 0.f;  // by plain loads: with dependent launches the read-only cache may be older than the writer
    for (int i = threadIdx.x % WARP; i < n_squares; i += WARP)
        sum += squares[static_cast<size_t>(column) * n_squares + i];
    return 1.f / sqrtf(warp_sum(sum) / dim + eps);
}
