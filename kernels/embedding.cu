// x = rows of the embedding table, as float32; what reads x first gets x * norm.
//
// Shapes    table [vocab_size][dim] of type W (weights.cuh, tiles.cuh); perm int32 [dim]: column j is number perm[j],
//           null for order; tokens int32 [n], each in 0 ... vocab_size - 1; x float32 [n][dim], padded; norm float32
//           [dim], and what is written for the reader: activations.cuh; squares float32 [n], null where nobody reads (a
//           prompt).
// Threads   one block of EMBEDDING_THREADS per token; a thread takes every EMBEDDING_THREADS-th 16 bytes of the row.
// Bytes     n rows of the table, n * dim * 4 written.
#include "products.cuh"

constexpr int EMBEDDING_THREADS = 128;

template <class W>
__global__ void __launch_bounds__(EMBEDDING_THREADS)
    embedding(const typename W::Element* __restrict__ table, const typename W::Param* __restrict__ params,
              int group_shift, const int* __restrict__ perm, const int* tokens, float* x,
              const float* __restrict__ norm, float* rows, unsigned short* split, const int* __restrict__ place,
              float* squares, int dim) {
    __shared__ float scratch[EMBEDDING_THREADS / WARP];
    launch_dependents();  // not one itself: what it reads was written by an earlier graph
    const int token = tokens[blockIdx.x];
    float* out = x + static_cast<size_t>(blockIdx.x) * padded(dim);
    const Writer writer = {rows, split, place, dim};
    float square = 0.f;
    auto write = [&](int k, float value) {
        if (k >= dim) return;
        if (perm) k = perm[k];
        out[k] = value;
        square += value * value;
        if (squares) writer.write(blockIdx.x, k, value * norm[k]);
    };
    if constexpr (W::TILED) {
        const W tiles(table, params, group_shift, dim);
        for (int item = threadIdx.x; item < tiles.n_blocks * 16; item += EMBEDDING_THREADS) {
            const int block = item / 16, i = item / 4 % 4, t = item % 4;
            float w[8];
            tiles.eight(token, block, i, t, w);
#pragma unroll
            for (int e = 0; e < 8; e++) write(block * TILE_COLUMNS + i * 32 + e / 4 * 16 + t * 4 + e % 4, w[e]);
        }
    } else {
        const W row(table, dim, token);
        for (int k = threadIdx.x * W::PER_LOAD; k < dim; k += EMBEDDING_THREADS * W::PER_LOAD) {
            float w[W::PER_LOAD];
            W::widen(load_streaming(row.row + k), w);
#pragma unroll
            for (int e = 0; e < W::PER_LOAD; e++) write(k + e, w[e]);
        }
    }
    const float sum = block_sum<EMBEDDING_THREADS>(square, scratch);
    if (squares && threadIdx.x == 0) squares[blockIdx.x] = sum;
}
