// y = x @ w.T for the many columns of a prompt, on tensor cores, as exact as float32.
//
// Tensor cores multiply float16. x comes as the sum of two float16 (split_halves.cu), so two products give about 22
// bits of it; weights of other types than float16 are split in two here, which makes three. Sums are float32, in a
// fixed order.
//
//     y[c][first + step * o] = sum over k of w[o][k] * x[c][k]
//
// Shapes    w [out_features][in_features] of type W (weights.cuh, tiles.cuh); high, low float16 [n][in_features], in
//           stored order of columns; inverse_scales float32 [n]; y float32 [n][y_width]; rows padded.
// Threads   grid (ceil(out_features / OUTPUTS), ceil(n / TOKENS)), block of four warps: a tile of 64 tokens by 64
//           outputs, a quarter of it each. 32 of in_features at a time go through shared memory, in two buffers, one of
//           which is filled (cp.async, or by way of registers where weights are converted) while the other is
//           multiplied.
// Bytes     w once per 64 tokens, x once per 64 outputs.
#include "products.cuh"

constexpr int PROMPT_THREADS = 128;
constexpr int TOKENS = 64, OUTPUTS = 64, DEPTH = 32;
constexpr int TILE_STRIDE = DEPTH + 8;  // halves: 80 bytes, so the eight rows of an ldmatrix are in different banks

template <class T, class U>
struct is_same { static constexpr bool value = false; };
template <class T>
struct is_same<T, T> { static constexpr bool value = true; };

template <class W>
__global__ void __launch_bounds__(PROMPT_THREADS)
    linear_prompt(const typename W::Element* __restrict__ w, const typename W::Param* __restrict__ params,
                  int group_shift, const __half* __restrict__ high, const __half* __restrict__ low,
                  const float* __restrict__ inverse_scales, float* __restrict__ y, int y_width, int first, int step,
                  int in_features, int out_features, int n) {
    constexpr bool IS_F16 = is_same<W, F16>::value;                  // goes to shared memory as it is
    constexpr int PARTS = IS_F16 ? 1 : 2;                            // halves that make up a weight
    __shared__ __align__(16) __half x_tile[2][2][TOKENS][TILE_STRIDE];  // [buffer][high, low]
    __shared__ __align__(16) __half w_tile[2][PARTS][OUTPUTS][TILE_STRIDE];
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, stride = padded(in_features);
    const int first_token = blockIdx.y * TOKENS, first_output = blockIdx.x * OUTPUTS;
    const int warp_token = warp % 2 * 32, warp_output = warp / 2 * 32;

    auto put = [&](int buffer, int row, int k, float (&values)[4]) {  // weights as the sum of PARTS halves
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            __half halves[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                halves[j] = __float2half_rn(values[j]);
                values[j] -= __half2float(halves[j]);
            }
            *reinterpret_cast<uint2*>(&w_tile[buffer][part][row][k]) = *reinterpret_cast<const uint2*>(halves);
        }
    };
    auto fill = [&](int buffer, int k0) {
        for (int i = thread; i < TOKENS * DEPTH / 8; i += PROMPT_THREADS) {
            const int row = i / (DEPTH / 8), k = i % (DEPTH / 8) * 8;
            const int token = min(first_token + row, n - 1);  // rows past the last repeat it; their results are dropped
            for (int part = 0; part < 2; part++) {
                __half* place = &x_tile[buffer][part][row][k];
                if (k0 + k < stride)
                    cp_async16(place, (part ? low : high) + static_cast<size_t>(token) * stride + k0 + k);
                else
                    *reinterpret_cast<uint4*>(place) = make_uint4(0, 0, 0, 0);
            }
        }
        if constexpr (W::TILED) {
            const W tiles(w, params, group_shift, in_features);
            for (int i = thread; i < OUTPUTS * DEPTH / 8; i += PROMPT_THREADS) {
                const int row = i / 4, t = i % 4;
                float values[8] = {};
                if (first_output + row < out_features)
                    tiles.eight(first_output + row, k0 / TILE_COLUMNS, k0 % TILE_COLUMNS / DEPTH, t, values);
                put(buffer, row, t * 4, reinterpret_cast<float(&)[4]>(values[0]));
                put(buffer, row, t * 4 + 16, reinterpret_cast<float(&)[4]>(values[4]));
            }
        } else {
            for (int i = thread; i < OUTPUTS * DEPTH / W::PER_LOAD; i += PROMPT_THREADS) {
                const int row = i / (DEPTH / W::PER_LOAD), k = i % (DEPTH / W::PER_LOAD) * W::PER_LOAD;
                const W weights(w, in_features, min(first_output + row, out_features - 1));
                float values[W::PER_LOAD] = {};
                if (IS_F16 && k0 + k < stride) {
                    cp_async16(&w_tile[buffer][0][row][k], weights.row + k0 + k);
                    continue;
                }
                if (k0 + k < stride) W::widen(load_streaming(weights.row + k0 + k), values);
#pragma unroll
                for (int j = 0; j < W::PER_LOAD; j += 4)
                    put(buffer, row, k + j, reinterpret_cast<float(&)[4]>(values[j]));
            }
        }
        cp_async_commit();
    };

    float sums[2][4][4] = {};  // [16 tokens][8 outputs][as mma gives them]
    fill(0, 0);
    for (int k0 = 0, buffer = 0; k0 < stride; k0 += DEPTH, buffer ^= 1) {
        if (k0 + DEPTH < stride) {
            fill(buffer ^ 1, k0 + DEPTH);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned x_parts[2][2][4], w_parts[PARTS][4][2];
#pragma unroll
            for (int part = 0; part < 2; part++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    ldmatrix_x4(x_parts[part][i],
                                &x_tile[buffer][part][warp_token + i * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
            for (int part = 0; part < PARTS; part++)
#pragma unroll
                for (int j = 0; j < 4; j += 2) {
                    unsigned pair[4];
                    ldmatrix_x4(pair, &w_tile[buffer][part][warp_output + j * 8 + lane % 8 + lane / 16 * 8]
                                              [k + lane / 8 % 2 * 8]);
                    w_parts[part][j][0] = pair[0], w_parts[part][j][1] = pair[1];
                    w_parts[part][j + 1][0] = pair[2], w_parts[part][j + 1][1] = pair[3];
                }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    mma_m16n8k16(sums[i][j], x_parts[0][i], w_parts[0][j]);
                    mma_m16n8k16(sums[i][j], x_parts[1][i], w_parts[0][j]);
                    if (PARTS == 2) mma_m16n8k16(sums[i][j], x_parts[0][i], w_parts[PARTS - 1][j]);
                }
        }
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int token = first_token + warp_token + i * 16 + lane / 4 + c / 2 * 8;
                const int output = first_output + warp_output + j * 8 + lane % 4 * 2 + c % 2;
                if (token < n && output < out_features)
                    y[static_cast<size_t>(token) * padded(y_width) + first + static_cast<size_t>(output) * step] =
                        sums[i][j][c] * inverse_scales[token];
            }
}
