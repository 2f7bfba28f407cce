// What a thread has of a product with weights, whatever their type: two neighbouring rows of one column.
//
// Rows of a matrix come in pairs (2p, 2p + 1). Where two rows belong together in what follows (the two elements that
// RoPE turns, gate and up), they are stored as a pair: backends/cuda/matrix.py puts rows in that order when it uploads.
#pragma once

struct Product {
    int pair, column;
    float first, second;  // rows 2 * pair and 2 * pair + 1
    bool exists;          // this thread has one; the caller looks whether there is such a row
};
