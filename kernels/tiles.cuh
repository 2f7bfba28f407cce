// Products with quantised weights on tensor cores: AffineQuant (llamagpu/quantization/affine.py) times 1 to 8 columns.
//
//     w[o][k] = scale[o][k / group] * (q[o][k] - zero[o][k / group])
//     w[o][k] = scale[o][k / group] * q[o][k] + offset[o][k / group]      where the format has OFFSETS (llama.cpp's Q4_K)
//
// Shapes    q: tiles of 16 rows by 128 columns, [tiles][blocks][LOADS][32 lanes] of 16 bytes, rows padded to 32. Lane
//           4r + t holds of row r (the second half of the loads: of row r + 8) and of each 16 columns the columns 4t to
//           4t + 3: 32 weights of 4 bits of one row in 16 bytes, or 16 of 8 bits. A load of a warp is 512 neighbouring
//           bytes. params: Param [tiles][groups][8][2], scale and zero of rows r and r + 8 in one load.
//           x: split (activations.cuh), in stored order of columns.
// Maths     q - zero is a whole number that bfloat16 holds exactly (4 bits: by masking nibbles into the mantissa of 128
//           and subtracting 128 + zero). x is two bfloat16. So products are exact, sums are float32, and the scale is
//           multiplied in once per group. One instruction has 8 columns: for up to 4 columns of x these are 4 high
//           halves and 4 low ones, for more there are two instructions. Offsets are multiplied with the sum of x over
//           the group, which one more instruction makes, with weights of 1.
// Threads   a block of TILE_WARPS warps makes two tiles, 32 rows; its warps take turns at the blocks of 128 columns,
//           DEPTH of which a lane has in flight; their sums are added in the order of the warps through shared memory.
// Bytes     q and params once for up to 8 columns of x; x comes from L2.
#pragma once
#include "activations.cuh"
#include "product.cuh"
#include "ptx.cuh"

constexpr int TILE_WARPS = 8;
constexpr int TILE_ROWS = 16;

__device__ __forceinline__ void load_pair(const __half2* place, __half2 (&pair)[2]) {
    *reinterpret_cast<uint2*>(pair) = __ldg(reinterpret_cast<const uint2*>(place));
}
__device__ __forceinline__ void load_pair(const float2* place, float2 (&pair)[2]) {
    *reinterpret_cast<uint4*>(pair) = __ldg(reinterpret_cast<const uint4*>(place));
}
__device__ __forceinline__ float2 scale_and_zero(__half2 param) { return __half22float2(param); }
__device__ __forceinline__ float2 scale_and_zero(float2 param) { return param; }

// BITS 4 or 8; P __half2 or float2; GROUPS: scales that are read per 128 columns, 1 where groups are 128 or longer, 4
// where they are 32 or 64, 8 where they are 16 (or any, where scales are float32: these are rare).
template <int BITS, class P, int GROUPS, bool OFFSETS = false>
struct Tiles {
    static constexpr bool HAS_OFFSETS = OFFSETS;
    using Element = uint4;
    using Param = P;
    using Activation = unsigned short;
    static constexpr bool TILED = true;
    static constexpr int THREADS = TILE_WARPS * WARP;
    static constexpr int ROW_PAIRS = TILE_ROWS;  // of a block
    static constexpr int LOADS = BITS / 2;       // 16-byte loads of a lane in a tile
    static constexpr int REGISTERS = 2 * (LOADS * 4 + GROUPS * 2 * static_cast<int>(sizeof(P)) / 4);  // of two tiles
    static constexpr int DEPTH = REGISTERS <= 24 ? 3 : 1;
    // Blocks that a multiprocessor should have room for: two where 128 registers a thread are enough.
    static constexpr bool IS_SMALL = HAS_BF16 && REGISTERS <= 36;
    __host__ __device__ static constexpr int min_blocks(int columns) { return IS_SMALL && columns <= 4 ? 2 : 1; }

    // Which Product (product.cuh) a thread ends with: row pair of the matrix, column of the block.
    template <class Block = GridBlock>
    __device__ __forceinline__ static int own_pair(Block row_block = {}) {
        return row_block * ROW_PAIRS + threadIdx.x % ROW_PAIRS;
    }
    __device__ __forceinline__ static int own_column() { return threadIdx.x / ROW_PAIRS; }

    // What a lane has of a tile.
    struct Part {
        uint4 q[LOADS];
        __align__(16) Param params[GROUPS][2];
    };

    const uint4* q;
    const Param* params;
    int n_blocks, n_groups, group_shift;  // group of column k: k >> group_shift

    __device__ __forceinline__ Tiles(const uint4* all_q, const Param* all_params, int group_shift, int in_features)
        : q(all_q), params(all_params), n_blocks(tiled(in_features) / TILE_COLUMNS),
          n_groups(((n_blocks * TILE_COLUMNS - 1) >> group_shift) + 1), group_shift(group_shift) {}

    __device__ __forceinline__ const Param* params_of(int tile, int k) const {
        return params + (static_cast<size_t>(tile) * n_groups + (k >> group_shift)) * TILE_ROWS;
    }

    __device__ __forceinline__ void load(int tile, int block, Part& part) const {
        const int lane = threadIdx.x % WARP;
        const uint4* of_tile = q + (static_cast<size_t>(tile) * n_blocks + block) * LOADS * WARP + lane;
#pragma unroll
        for (int i = 0; i < LOADS; i++) part.q[i] = load_streaming(of_tile + i * WARP);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const Param* pair = params_of(tile, block * TILE_COLUMNS + g * (TILE_COLUMNS / GROUPS)) + lane / 4 * 2;
            load_pair(pair, part.params[g]);
        }
    }

    // Weights of row r (+ 8 `upper`) for the 16 columns of step j: columns 4t, 4t + 1 and 4t + 2, 4t + 3, less the
    // zero.
    __device__ __forceinline__ static void operand(const Part& part, int j, int upper, float zero,
                                                   unsigned (&pairs)[2]) {
        if (BITS == 4) {
            const uint4 loaded = part.q[upper];
            const unsigned words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
            const unsigned less = bf16_pair(128.f + zero, 128.f + zero);
#pragma unroll
            for (int p = 0; p < 2; p++)
                pairs[p] = subtract_bf16(and_or(words[j / 2] >> (4 * (j % 2 * 2 + p)), 0x000f000fu, 0x43004300u), less);
        } else {
            const uint4 loaded = part.q[(upper * 2 + j / 4) % LOADS];
            const unsigned words[4] = {loaded.x, loaded.y, loaded.z, loaded.w}, word = words[j % 4];
            const float less = 8388608.f + zero;
#pragma unroll
            for (int p = 0; p < 2; p++)  // a byte in the mantissa of 2^23
                pairs[p] = bf16_pair(__uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + 2 * p)) - less,
                                     __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7441 + 2 * p)) - less);
        }
    }

    // The eight weights of a row at columns block * 128 + 32 i + 4t ... + 3 and 16 further, as float32.
    __device__ __forceinline__ void eight(int row, int block, int i, int t, float (&w)[8]) const {
        const int tile = row / TILE_ROWS, upper = row % TILE_ROWS / 8, r = row % 8;
        const uint4* of_tile = q + (static_cast<size_t>(tile) * n_blocks + block) * LOADS * WARP + r * 4 + t;
        const unsigned* words = reinterpret_cast<const unsigned*>(
            of_tile + (BITS == 4 ? upper : upper * 2 + i / 2) * WARP);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int k = block * TILE_COLUMNS + 32 * i + 16 * half;
            const float2 param = scale_and_zero(params_of(tile, k)[r * 2 + upper]);
            const unsigned word = BITS == 4 ? words[i] : words[i % 2 * 2 + half];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int shift = BITS == 4 ? 4 * (e % 2 * 4 + half * 2 + e / 2) : 8 * e;
                const float number = static_cast<float>(word >> shift & ((1u << BITS) - 1u));
                w[half * 4 + e] = OFFSETS ? fmaf(param.x, number, param.y) : param.x * (number - param.y);
            }
        }
    }
};

using Q4 = Tiles<4, __half2, 1>;
using Q4Short = Tiles<4, __half2, 4>;
using Q4Shortest = Tiles<4, __half2, 8>;
using Q4F = Tiles<4, float2, 8>;
using Q8 = Tiles<8, __half2, 1>;
using Q8Short = Tiles<8, __half2, 4>;
using Q8Shortest = Tiles<8, __half2, 8>;
using Q8F = Tiles<8, float2, 8>;
using Q4Offset = Tiles<4, float2, 4, true>;
using Q4OffsetShortest = Tiles<4, float2, 8, true>;
using Q8Offset = Tiles<8, float2, 8, true>;

// sums[tile][0, 1] and [2, 3]: rows r and r + 8, columns 2t and 2t + 1 of the instruction, over one block of weights.
// x: the lane's column of the instruction at this block; low: null where that column holds low halves of itself.
template <class W, bool TWO>
__device__ __forceinline__ void multiply_block(const typename W::Part (&parts)[2], const unsigned short* x,
                                               const unsigned short* low, float (&sums)[2][4]) {
    constexpr int GROUPS = sizeof(parts[0].params) / sizeof(parts[0].params[0]);
    constexpr int STEPS = 8 / GROUPS;  // of 16 columns, with one scale
    uint4 of_x, of_low = {};
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        float products[2][4] = {}, of_ones[4] = {};
        float2 params[2][2];
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int upper = 0; upper < 2; upper++) params[tile][upper] = scale_and_zero(parts[tile].params[g][upper]);
#pragma unroll
        for (int j = g * STEPS; j < (g + 1) * STEPS; j++) {
            if (j % 2 == 0) {  // one load for two steps
                of_x = *reinterpret_cast<const uint4*>(x + j * 16);
                if (TWO) of_low = *reinterpret_cast<const uint4*>(low + j * 16);
            }
            const unsigned b[2] = {j % 2 ? of_x.z : of_x.x, j % 2 ? of_x.w : of_x.y};
            const unsigned b_low[2] = {j % 2 ? of_low.z : of_low.x, j % 2 ? of_low.w : of_low.y};
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                unsigned row[2], row8[2];
                W::operand(parts[tile], j, 0, W::HAS_OFFSETS ? 0.f : params[tile][0].y, row);
                W::operand(parts[tile], j, 1, W::HAS_OFFSETS ? 0.f : params[tile][1].y, row8);
                const unsigned a[4] = {row[0], row8[0], row[1], row8[1]};
                mma_bf16(products[tile], a, b);
                if (TWO) mma_bf16(products[tile], a, b_low);
            }
            if (W::HAS_OFFSETS) {
                const unsigned ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
                mma_bf16(of_ones, ones, b);
                if (TWO) mma_bf16(of_ones, ones, b_low);
            }
        }
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums[tile][i] = fmaf(params[tile][i / 2].x, products[tile][i], sums[tile][i]);
                if (W::HAS_OFFSETS) sums[tile][i] = fmaf(params[tile][i / 2].y, of_ones[i], sums[tile][i]);
            }
    }
}

// Two tiles of the block times COLUMNS columns (4 or 8): each of the first 16 * COLUMNS threads gets one Product.
// prologue: run once the previous kernel has ended. row_block: which two tiles.
template <class W, int COLUMNS, class Prologue, class Block = GridBlock>
__device__ __forceinline__ Product tile_product(const W& w, const unsigned short* x, int in_features, int n_left,
                                                Prologue prologue, Block row_block = {}) {
    __shared__ float of_warps[TILE_WARPS][COLUMNS][2 * TILE_ROWS];
    constexpr bool TWO = COLUMNS > 4;  // instructions: high and low halves apart
    constexpr int DEPTH = W::DEPTH;
    const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP, t = lane % 4;
    const int stride = tiled(in_features), tile = row_block * 2;

    typename W::Part coming[DEPTH][2];
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (warp + d * TILE_WARPS < w.n_blocks)
            for (int i = 0; i < 2; i++) w.load(tile + i, warp + d * TILE_WARPS, coming[d][i]);
    if (n_left > 0) wait_for_previous_kernel();  // always; as in dot.cuh
    launch_dependents();
    prologue();

    // a missing column repeats the last one: loads stay in bounds, its sums are dropped by the caller
    const int column = min(TWO ? lane / 4 : lane / 4 % 4, n_left - 1);
    const unsigned short* high = x + static_cast<size_t>(column) * 2 * stride + t * 8;
    const unsigned short* low = high + stride;
    if (!TWO && lane / 4 >= 4) high = low;
    float sums[2][4] = {};
    for (int first = warp; first < w.n_blocks; first += TILE_WARPS * DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int block = first + d * TILE_WARPS, next = block + TILE_WARPS * DEPTH;
            if (block >= w.n_blocks) break;
            multiply_block<W, TWO>(coming[d], high + block * TILE_COLUMNS, low + block * TILE_COLUMNS, sums);
            if (next < w.n_blocks)
                for (int i = 0; i < 2; i++) w.load(tile + i, next, coming[d][i]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float sum = sums[i][c];
            if (!TWO) sum += __shfl_xor_sync(ALL_LANES, sum, 2);  // the low halves' columns are four further
            const int at = t * 2 + c % 2;
            if (at < COLUMNS) of_warps[warp][at][i * TILE_ROWS + lane / 4 + c / 2 * 8] = sum;
        }
    __syncthreads();

    Product product = {W::own_pair(row_block), W::own_column(), 0.f, 0.f, W::own_column() < min(COLUMNS, n_left)};
    if (!product.exists) return product;
#pragma unroll
    for (int i = 0; i < TILE_WARPS; i++) {
        const float* pair = &of_warps[i][product.column][thread % TILE_ROWS * 2];
        product.first += pair[0];
        product.second += pair[1];
    }
    return product;
}
