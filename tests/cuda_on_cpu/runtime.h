// What kernels and the other headers ask of scheduler.cpp: who am I, meet the others, stop with a message.
#pragma once

namespace emulator {

struct Thread {  // the scheduler's own struct begins with this
    uint3 index, block;
    int lane;
};
extern Thread* current;  // the CUDA thread that runs now; null while none does
extern dim3 block_size, grid_size;
extern unsigned char* dynamic_shared;

// Memory of the block for one __shared__ variable, 16-byte aligned, apart from the others.
void* reserve_shared(size_t n);
// `__shared__ float sums[N];` becomes `float (&sums)[N] = shared_variable<float[N], 3>();`. (A static variable in a
// section of its own would be simpler, but g++ ignores the section in templates.) One place for all blocks: they run in
// turn.
template <class T, int DECLARATION>
EMULATOR_OWN T& shared_variable() {
    static T* const place = static_cast<T*>(reserve_shared(sizeof(T)));
    return *place;
}

// What the lanes of a warp can meet in. Lanes that meet in different ones are a mistake of the kernel.
enum Collective { SHUFFLE = 1, VOTE, SYNC_WARP, MATRIX_MULTIPLY, MATRIX_LOAD };
// The last lane to arrive calls `together` for all lanes of the mask, each with its own `argument`.
typedef void (*Together)(void* const arguments[32], unsigned mask);
void meet_in_warp(unsigned mask, void* argument, Together together, Collective kind, int line);

// The number of threads of the block whose predicate is not 0, once all have arrived.
int meet_in_block(int predicate, int line);

// cp.async: the copy lands at once or when it is waited for, at random.
void copy_later(void* shared, const void* global, int n);
void close_copy_group();
void wait_for_copies(int groups_left);

// Of the checker; they do nothing in the plain build.
void note_access(const void* place, int n, bool write, void* caller);
void note_atomic(const void* place, int n);

[[noreturn]] void fail(const char* format, ...);

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::current->block)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
