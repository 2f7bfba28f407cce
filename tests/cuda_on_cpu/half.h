// float16: the type, its pairs, and conversions that round to nearest, ties to even.
#pragma once

namespace emulator {

inline float half_to_float(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float value = static_cast<float>(fraction) * 0x1p-24f;  // subnormal: exact
    return sign ? -value : value;
}

inline unsigned short float_to_half(float value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7fffu;  // NaN, as CUDA writes it
    if (magnitude >= 0x47800000u) return sign | 0x7c00u;  // 2^16 and more
    if (magnitude < 0x38800000u) {  // below 2^-14: steps of 2^-24; float32 addition rounds for us
        const float shifted = __uint_as_float(magnitude) + 0.5f;
        return sign | static_cast<unsigned short>(__float_as_uint(shifted) - 0x3f000000u);
    }
    const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return sign | static_cast<unsigned short>((rounded - 0x38000000u) >> 13);
}

}  // namespace emulator

struct __half {
    unsigned short bits;
    __half() = default;
    __half(float value) : bits(emulator::float_to_half(value)) {}
    operator float() const { return emulator::half_to_float(bits); }
};
typedef __half half;
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half2 half2;

inline float __half2float(__half h) { return h; }
inline __half __float2half_rn(float f) { return f; }
inline __half __float2half(float f) { return f; }
inline float2 __half22float2(__half2 h) { return {h.x, h.y}; }
inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
