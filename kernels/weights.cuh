// How a row of weights is stored and read: one struct per type, all read 16 bytes at a time.
//
// A matrix is [out_features][stride] with stride = padded(in_features), padding zero. load(k, w) gives weights k to
// k + PER_LOAD - 1 of the row as float32.
//   F32      4 weights per load.
//   F16      8 weights per load.
//   Q8       16 int8 per load; scales [out_features][in_features / group_size], group_size a multiple of 16 that
//            divides in_features, so that a load lies within one group.
//   Q8Flat   16 int8 per load; groups run over the flattened matrix [out_features * in_features] and may cross rows and
//            loads, so each weight looks up its own scale. For the odd sizes of small models: one column
//            at a time is fast enough for them.
#pragma once
#include "common.cuh"
#include "ptx.cuh"

struct F32 {
    using Element = float;
    static constexpr int PER_LOAD = 4;
    const float* row;
    __device__ __forceinline__ F32(const float* matrix, const float*, int, int in_features, int index)
        : row(matrix + static_cast<size_t>(index) * padded(in_features)) {}
    __device__ __forceinline__ void load(int k, float (&w)[PER_LOAD]) const {
        const uint4 bits = load_streaming(row + k);
        w[0] = __uint_as_float(bits.x), w[1] = __uint_as_float(bits.y);
        w[2] = __uint_as_float(bits.z), w[3] = __uint_as_float(bits.w);
    }
};

struct F16 {
    using Element = __half;
    static constexpr int PER_LOAD = 8;
    const __half* row;
    __device__ __forceinline__ F16(const __half* matrix, const float*, int, int in_features, int index)
        : row(matrix + static_cast<size_t>(index) * padded(in_features)) {}
    __device__ __forceinline__ void load(int k, float (&w)[PER_LOAD]) const {
        const uint4 bits = load_streaming(row + k);
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
            w[2 * i] = pair.x;
            w[2 * i + 1] = pair.y;
        }
    }
};

// Byte i of a word as a signed number.
__device__ __forceinline__ float signed_byte(unsigned word, int i) {
    return static_cast<float>(static_cast<signed char>(word >> (8 * i)));
}

struct Q8 {
    using Element = signed char;
    static constexpr int PER_LOAD = 16;
    const signed char* row;
    const float* scales;
    int group_size;
    __device__ __forceinline__ Q8(const signed char* matrix, const float* all_scales, int group_size, int in_features,
                                  int index)
        : row(matrix + static_cast<size_t>(index) * padded(in_features)),
          scales(all_scales + static_cast<size_t>(index) * (in_features / group_size)),
          group_size(group_size) {}
    __device__ __forceinline__ void load(int k, float (&w)[PER_LOAD]) const {
        const uint4 bits = load_streaming(row + k);
        const float scale = __ldg(scales + k / group_size);
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < PER_LOAD; i++) w[i] = signed_byte(words[i / 4], i % 4) * scale;
    }
};

struct Q8Flat {
    using Element = signed char;
    static constexpr int PER_LOAD = 16;
    const signed char* row;
    const float* scales;
    size_t first;  // flat index of the row's first weight
    int group_size, in_features;
    __device__ __forceinline__ Q8Flat(const signed char* matrix, const float* scales, int group_size, int in_features,
                                      int index)
        : row(matrix + static_cast<size_t>(index) * padded(in_features)),
          scales(scales),
          first(static_cast<size_t>(index) * in_features),
          group_size(group_size),
          in_features(in_features) {}
    __device__ __forceinline__ void load(int k, float (&w)[PER_LOAD]) const {
        const uint4 bits = load_streaming(row + k);
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < PER_LOAD; i++)  // padding has no scale
            w[i] = k + i < in_features ? signed_byte(words[i / 4], i % 4) * __ldg(scales + (first + k + i) / group_size)
                                       : 0.f;
    }
};
