// Queries, keys and values two elements at a time: which two belong together, how RoPE turns them, where they go.
//
//     rope turns elements a, b of a head by the angle of its position: (a cos - b sin, a sin + b cos), where a, b are
//     elements 2j, 2j + 1 of the head (interleaved) or j, j + head_dim / 2 (half_split). Values are not turned.
//
// Shapes    q float32 [n][n_heads * head_dim], padded; keys, values of type KV
//           [n_kv_heads][capacity][padded(head_dim)]; angles float32 [capacity][head_dim]: cos of the head_dim / 2
//           angles of a position, then their sin.
// Pairs are numbered through the heads of q, then of k, then of v, head_dim / 2 in each.
#pragma once
#include "common.cuh"

struct Pair {
    bool exists, is_q, is_v;  // neither: of k
    int head, a, b, j;        // head of q, or of keys and values; elements of the head; the angle's number
    __device__ __forceinline__ Pair(int number, int n_heads, int n_kv_heads, int head_dim, bool half_split) {
        const int half_dim = head_dim / 2;
        head = number / half_dim;
        j = number % half_dim;
        exists = head < n_heads + 2 * n_kv_heads;
        is_q = head < n_heads;
        is_v = head >= n_heads + n_kv_heads;
        if (!is_q) head -= is_v ? n_heads + n_kv_heads : n_heads;
        const bool split = half_split && !is_v;
        a = split ? j : 2 * j;
        b = split ? j + half_dim : 2 * j + 1;
    }
};

// The two elements of a head, turned by the angle of their position.
__device__ __forceinline__ float2 turn(const Pair& pair, float2 value, const float* __restrict__ angles, int position,
                                       int head_dim) {
    if (pair.is_v) return value;
    const float* turn = angles + static_cast<size_t>(position) * head_dim + pair.j;
    const float cosine = turn[0], sine = turn[head_dim / 2];
    return make_float2(value.x * cosine - value.y * sine, value.x * sine + value.y * cosine);
}

// Write them to a token's row of q, or to the cache at `position`.
template <class KV>
__device__ __forceinline__ void store_pair(const Pair& pair, float2 value, int position, float* q_row, KV* keys,
                                           KV* values, int head_dim, int capacity) {
    if (pair.is_q) {
        q_row[pair.head * head_dim + pair.a] = value.x;
        q_row[pair.head * head_dim + pair.b] = value.y;
    } else {
        const size_t row = static_cast<size_t>(pair.head) * capacity + position;
        KV* out = (pair.is_v ? values : keys) + row * padded(head_dim);
        store(out + pair.a, value.x);
        store(out + pair.b, value.y);
    }
}
