// Arithmetic, bits and loads of a single thread, and atomics. Compiled with -ffp-contract=off, so that __fmul_rn
// followed by __fadd_rn is two roundings, as on a GPU; fmaf is one.
#pragma once

template <class T> T __ldg(const T* place) { return *place; }
template <class T> T __ldcs(const T* place) { return *place; }
template <class T> T __ldcg(const T* place) { return *place; }

inline float __int_as_float(int bits) { float f; memcpy(&f, &bits, 4); return f; }
inline float __uint_as_float(unsigned bits) { float f; memcpy(&f, &bits, 4); return f; }
inline int __float_as_int(float f) { int bits; memcpy(&bits, &f, 4); return bits; }
inline unsigned __float_as_uint(float f) { unsigned bits; memcpy(&bits, &f, 4); return bits; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline int __float2int_rn(float x) { return x != x ? 0 : static_cast<int>(nearbyintf(x)); }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }

// Byte i of the result is byte `selector >> 4 i & 7` of the eight bytes of low and high.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return result;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

// One OS thread runs everything, so plain operations are atomic; the checker must hear that they were meant to be.
#define EMULATOR_ATOMIC(NAME, RESULT)                        \
    template <class T, class U>                              \
    EMULATOR_OWN T NAME(T* place, U argument) {              \
        emulator::note_atomic(place, sizeof(T));             \
        const T old = *place, value = static_cast<T>(argument); \
        *place = (RESULT);                                   \
        return old;                                          \
    }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicMax, max(old, value))
EMULATOR_ATOMIC(atomicExch, value)
