// What threads do together: barriers of the block; shuffles and votes of the warp.
#pragma once

#define __syncthreads() (static_cast<void>(emulator::meet_in_block(0, __LINE__)))
#define __syncthreads_count(predicate) emulator::meet_in_block((predicate) != 0, __LINE__)
#define __syncthreads_or(predicate) (emulator::meet_in_block((predicate) != 0, __LINE__) != 0)
#define __syncthreads_and(predicate) (emulator::meet_in_block(!(predicate), __LINE__) == 0)

namespace emulator {

inline void nothing_together(void* const*, unsigned) {}

struct Shuffle {
    uint64_t value, result;
    int source;  // lane; -1 keeps the own value
};

EMULATOR_OWN inline void shuffle_together(void* const arguments[32], unsigned mask) {
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        Shuffle* own = static_cast<Shuffle*>(arguments[lane]);
        if (own->source < 0)
            own->result = own->value;
        else  // a lane outside the mask gives nothing defined: all bits set
            own->result = mask >> own->source & 1 ? static_cast<Shuffle*>(arguments[own->source])->value : ~0ull;
    }
}

template <class T>
T shuffle(unsigned mask, T value, int source, int line) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    Shuffle own{0, 0, source};
    memcpy(&own.value, &value, sizeof value);
    meet_in_warp(mask, &own, shuffle_together, SHUFFLE, line);
    memcpy(static_cast<void*>(&value), &own.result, sizeof value);
    return value;
}

struct Vote {
    int predicate;
    unsigned result;
};

EMULATOR_OWN inline void vote_together(void* const arguments[32], unsigned mask) {
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; lane++)
        if ((mask >> lane & 1) && static_cast<Vote*>(arguments[lane])->predicate) ballot |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) static_cast<Vote*>(arguments[lane])->result = ballot;
}

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    emulator::meet_in_warp(mask, nullptr, emulator::nothing_together, emulator::SYNC_WARP, line);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    const int lane = emulator::current->lane;
    return emulator::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, int line = __builtin_LINE()) {
    const int lane = emulator::current->lane, source = lane ^ with;
    return emulator::shuffle(mask, value, source > (lane | (width - 1)) ? -1 : source, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    const int lane = emulator::current->lane, source = lane + static_cast<int>(by);
    return emulator::shuffle(mask, value, source > (lane | (width - 1)) ? -1 : source, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    const int lane = emulator::current->lane, source = lane - static_cast<int>(by);
    return emulator::shuffle(mask, value, source < (lane & ~(width - 1)) ? -1 : source, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    emulator::Vote own{predicate != 0, 0};
    emulator::meet_in_warp(mask, &own, emulator::vote_together, emulator::VOTE, line);
    return own.result;
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) == mask;
}
