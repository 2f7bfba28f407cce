// The ring of states of a recurrent model: SLOTS copies of each array, the state after token t in slot t % SLOTS.
//
// So the host may run decode steps ahead of the tokens that it takes, and drop them: a call of n tokens reads slot
// *position % SLOTS and writes slot (*position + n) % SLOTS, which may be the same one; position is in device memory.
#pragma once

constexpr int SLOTS = 8;

__device__ __forceinline__ float* slot_of(float* state, int slot_step, int tokens) {
    return state + static_cast<size_t>(tokens % SLOTS) * slot_step;
}
