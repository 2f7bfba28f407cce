// x = rows of the embedding table, as float32.
//
// Shapes    table [vocab_size][dim] of type Row (weights.cuh); tokens int32 [n], each in 0 ... vocab_size - 1;
//           x float32 [n][dim], padded.
// Threads   one block of EMBEDDING_THREADS per token; a thread takes every EMBEDDING_THREADS-th 16 bytes of the row.
// Bytes     n rows of the table, n * dim * 4 written.
#include "weights.cuh"

constexpr int EMBEDDING_THREADS = 128;

template <class Row>
__global__ void __launch_bounds__(EMBEDDING_THREADS)
    embedding(const typename Row::Element* __restrict__ table, const float* __restrict__ scales, int group_size,
              const int* __restrict__ tokens, float* __restrict__ x, int dim) {
    const Row row(table, scales, group_size, dim, tokens[blockIdx.x]);
    float* out = x + static_cast<size_t>(blockIdx.x) * padded(dim);
    for (int k = threadIdx.x * Row::PER_LOAD; k < padded(dim); k += EMBEDDING_THREADS * Row::PER_LOAD) {
        float w[Row::PER_LOAD];
        row.load(k, w);
#pragma unroll
        for (int i = 0; i < Row::PER_LOAD; i += 4)
            *reinterpret_cast<float4*>(out + k + i) = make_float4(w[i], w[i + 1], w[i + 2], w[i + 3]);
    }
}
