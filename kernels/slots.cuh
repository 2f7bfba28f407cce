// The ring of states of a recurrent model: SLOTS copies of each array, one for each of the last calls.
//
// Call c reads slot c % SLOTS and writes slot (c + 1) % SLOTS; c is in device memory, and goes up by one with every call,
// of one token or many. So the host may run decode steps ahead of the tokens that it takes and drop them, and a call that
// was broken off may be made again: what it read is as it was.
#pragma once

constexpr int SLOTS = 8;

__device__ __forceinline__ float* slot_of(float* state, int slot_step, int call) {
    return state + static_cast<size_t>(call % SLOTS) * slot_step;
}
