// The functions of kernels/ptx.cuh, which there are inline PTX. Register layouts are the PTX manual's;
// tests/kernels/test_ptx.py holds them against the manual here and against the hardware on a GPU.
#pragma once

inline uint4 load_streaming(const void* place) { return *static_cast<const uint4*>(place); }

inline uint4 load_once(const void* place) { return *static_cast<const uint4*>(place); }

inline void launch_dependents() {}  // kernels run one after the other here
inline void wait_for_previous_kernel() {}

inline void cp_async16(void* shared, const void* global) { emulator::copy_later(shared, global, 16); }
inline void cp_async_commit() { emulator::close_copy_group(); }
template <int PENDING> void cp_async_wait() { emulator::wait_for_copies(PENDING); }

namespace emulator {

struct MatrixLoad {
    const char* row;
    unsigned* registers;
};

EMULATOR_OWN inline void load_matrices_together(void* const lanes[32], unsigned) {
    for (int lane = 0; lane < 32; lane++)
        for (int matrix = 0; matrix < 4; matrix++) {
            const auto* owner = static_cast<MatrixLoad*>(lanes[matrix * 8 + lane / 4]);
            memcpy(&static_cast<MatrixLoad*>(lanes[lane])->registers[matrix], owner->row + lane % 4 * 4, 4);
        }
}

struct MatrixMultiply {
    float* d;
    const unsigned *a, *b;
};

inline float half_of(unsigned pair, int i) { return half_to_float(pair >> (16 * i) & 0xffff); }
inline float bf16_of(unsigned pair, int i) { return __uint_as_float(i ? pair & 0xffff0000u : pair << 16); }
inline unsigned bf16_bits(float x) {  // rounded to nearest, ties to even
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <float (*ELEMENT)(unsigned, int)> EMULATOR_OWN void multiply_together(void* const lanes[32], unsigned) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto* of_lane = static_cast<MatrixMultiply*>(lanes[lane]);
        const int row = lane / 4, column = lane % 4 * 2;
        for (int e = 0; e < 2; e++) {
            for (int i = 0; i < 4; i++) a[row + i % 2 * 8][column + i / 2 * 8 + e] = ELEMENT(of_lane->a[i], e);
            for (int i = 0; i < 2; i++) b[column + i * 8 + e][row] = ELEMENT(of_lane->b[i], e);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        auto* of_lane = static_cast<MatrixMultiply*>(lanes[lane]);
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            of_lane->d[i] += sum;
        }
    }
}

}  // namespace emulator

inline void ldmatrix_x4(unsigned (&matrices)[4], const void* row, int line = __builtin_LINE()) {
    emulator::note_access(row, 16, false, __builtin_return_address(0));
    emulator::MatrixLoad own{static_cast<const char*>(row), matrices};
    emulator::meet_in_warp(0xffffffffu, &own, emulator::load_matrices_together, emulator::MATRIX_LOAD, line);
}

inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    emulator::MatrixMultiply own{d, a, b};
    emulator::meet_in_warp(0xffffffffu, &own, emulator::multiply_together<emulator::half_of>, emulator::MATRIX_MULTIPLY,
                           line);
}

inline unsigned and_or(unsigned a, unsigned mask, unsigned bits) { return (a & mask) | bits; }

inline unsigned bf16_pair(float low, float high) { return emulator::bf16_bits(low) | emulator::bf16_bits(high) << 16; }

inline unsigned subtract_bf16(unsigned a, unsigned b) {
    return bf16_pair(emulator::bf16_of(a, 0) - emulator::bf16_of(b, 0), emulator::bf16_of(a, 1) - emulator::bf16_of(b, 1));
}

inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    emulator::MatrixMultiply own{d, a, b};
    emulator::meet_in_warp(0xffffffffu, &own, emulator::multiply_together<emulator::bf16_of>, emulator::MATRIX_MULTIPLY,
                           line);
}
