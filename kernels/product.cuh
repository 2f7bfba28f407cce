// What a thread has of a product with weights, whatever their type: two neighbouring rows of one column.
//
// Rows of a matrix come in pairs (2p, 2p + 1). Where two rows belong together in what follows (the two elements that
// RoPE turns, gate and up), they are stored as a pair: backends/cuda/matrix.py puts rows in that order when it uploads.
#pragma once

// Which block of a matrix's rows a block of threads makes: the grid's, where a kernel names no other (linear_group.cu).
// A type and no number, so that it is read where it is used: as an argument it changed the machine code of all.
struct GridBlock {
    __device__ __forceinline__ operator unsigned() const { return blockIdx.x; }
};

struct Product {
    int pair, column;
    float first, second;  // rows 2 * pair and 2 * pair + 1
    bool exists;          // this thread has one; the caller looks whether there is such a row
};
