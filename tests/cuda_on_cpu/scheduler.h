// Between scheduler.cpp and checker.cpp only.
#pragma once
#include "cuda_on_cpu.h"

namespace emulator {

// Who makes this access, and since which barriers: the block's count of __syncthreads, the warp's of __syncwarp.
struct Identity {
    unsigned thread;     // numbered through all blocks
    unsigned per_block;  // threads of a block
    uint32_t block_epoch, warp_epoch;
};
Identity who();

size_t dynamic_shared_bytes();
bool is_private(uintptr_t address);  // of a thread's stack, or of its threadIdx and blockIdx

// Called by the scheduler; empty in the plain build.
void begin_checking_launch();
void begin_checking_block();
void note_shared_variable(void* place, size_t n);

}  // namespace emulator
