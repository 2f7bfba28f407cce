// The checking build: bounds, alignment, races, reads of shared memory that was never written. The kernel is compiled
// with g++ -fsanitize=thread, which calls __tsan_read4(p) and the like at each access. Those functions are defined here
// instead of in libtsan, since CUDA's rules of order are not those of threads:
//   two accesses of one block are ordered by __syncthreads; of one warp also by __syncwarp; of two blocks by nothing.
// Shuffles and votes order no memory. Reads of uninitialised global memory are not seen: tests fill it with NaN.
#include <link.h>

#include <cstdio>
#include <vector>

#include "scheduler.h"

namespace emulator {
namespace {

// What is known of one byte: who wrote it last, and who has read it since, and when.
struct Cell {
    uint32_t writer, write_epochs, reader, read_epochs;  // thread + 1, with flags; block epoch << 16 | warp epoch
};
enum : uint32_t {
    ATOMIC = 1u << 31,         // the last write was an atomic operation
    SEVERAL = 1u << 30,        // more threads than `reader` have read in this epoch
    OTHER_BLOCKS = 1u << 29,   // readers of several blocks
    OTHER_WARPS = 1u << 28,    // readers of several warps
    THREAD = (1u << 28) - 1,
};

struct Memory {  // bytes that share cells: overlapping arguments are one
    uintptr_t low, high;
    std::vector<Cell> cells;
    bool shared;
};
struct Range {  // what an access must be within
    uintptr_t low, high;
    int argument;  // of the kernel; or STATIC, DYNAMIC
    size_t memory;
};
constexpr int STATIC = -1, DYNAMIC = -2;

std::vector<Range> ranges;
std::vector<Memory> memories;
std::vector<std::pair<uintptr_t, size_t>> shared_variables;  // known from earlier launches
size_t last_found;
uintptr_t image_low, image_high;  // of this library: constants are read from there

const char* name_of(const Range& range) {
    static char text[32];
    if (range.argument == STATIC) return "static shared memory";
    if (range.argument == DYNAMIC) return "dynamic shared memory";
    snprintf(text, sizeof text, "argument %d", range.argument);
    return text;
}

bool is_ordered(uint32_t other_thread, uint32_t other_epochs, const Identity& me, bool shared) {
    const unsigned other = (other_thread & THREAD) - 1, n = me.per_block;
    if (other == me.thread) return true;
    if (other / n != me.thread / n) return shared;  // another block has shared memory of its own
    if (other_epochs >> 16 != (me.block_epoch & 0xffff)) return true;
    return other % n / 32 == me.thread % n / 32 && (other_epochs & 0xffff) != (me.warp_epoch & 0xffff);
}

bool is_ordered_after_readers(const Cell& cell, const Identity& me, bool shared) {
    if (!cell.reader) return true;
    if (cell.reader & OTHER_BLOCKS) return shared;
    if ((cell.reader & SEVERAL) && cell.read_epochs >> 16 == (me.block_epoch & 0xffff))
        return !(cell.reader & OTHER_WARPS) && ((cell.reader & THREAD) - 1) / 32 == me.thread / 32 &&
               (cell.read_epochs & 0xffff) != (me.warp_epoch & 0xffff);
    return is_ordered(cell.reader, cell.read_epochs, me, shared);
}

// The range that holds all n bytes; else one that holds the first.
const Range* find(uintptr_t address, size_t n) {
    auto holds = [&](const Range& range, size_t bytes) {
        return address >= range.low && address + bytes <= range.high;
    };
    if (last_found < ranges.size() && holds(ranges[last_found], n)) return &ranges[last_found];
    for (const size_t bytes : {n, static_cast<size_t>(1)})
        for (size_t i = 0; i < ranges.size(); i++)
            if (holds(ranges[i], bytes)) {
                last_found = i;
                return &ranges[i];
            }
    return nullptr;
}

// Says which argument was meant, as far as the nearest one tells.
[[noreturn]] void fail_outside(uintptr_t address, size_t n, const char* what, void* caller) {
    const Range* nearest = nullptr;
    uintptr_t distance = 65536;
    for (const Range& range : ranges) {
        const uintptr_t away = address >= range.high ? address - range.high : range.low - address;
        if (away < distance) distance = away, nearest = &range;
    }
    if (!nearest)
        fail("%s of %zu bytes at %p, which is in no argument pc %p", what, n, reinterpret_cast<void*>(address), caller);
    const char* side = address >= nearest->high ? "past the end of" : "before";
    fail("out-of-bounds %zu-byte %s, %zu bytes %s %s pc %p", n, what, static_cast<size_t>(distance), side,
         name_of(*nearest), caller);
}

void access(const void* place, size_t n, bool write, bool atomic, bool aligned, void* caller) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(place);
    if (!current || is_private(address)) return;
    const char* what = write ? "write" : "read";
    if (aligned && n > 1 && address % n) fail("misaligned %zu-byte %s pc %p", n, what, caller);
    const Range* range = find(address, n);
    if (!range) {
        if (address >= image_low && address < image_high && !write) return;
        fail_outside(address, n, what, caller);
    }
    if (address + n > range->high)
        fail("out-of-bounds %zu-byte %s crosses the end of %s pc %p", n, what, name_of(*range), caller);
    Memory& memory = memories[range->memory];
    const Identity me = who();
    const uint32_t epochs = (me.block_epoch & 0xffff) << 16 | (me.warp_epoch & 0xffff);
    for (size_t i = address - memory.low; i < address - memory.low + n; i++) {
        Cell& cell = memory.cells[i];
        const size_t offset = memory.low + i - range->low;
        if (memory.shared && !write && !cell.writer)
            fail("read of uninitialised %s (+%zu) pc %p", name_of(*range), offset, caller);
        if (cell.writer && !(atomic && (cell.writer & ATOMIC)) &&
            !is_ordered(cell.writer, cell.write_epochs, me, memory.shared)) {
            const unsigned other = (cell.writer & THREAD) - 1;
            fail("race: %s of %s (+%zu) is not ordered after a write by block %u thread %u pc %p", what,
                 name_of(*range), offset, other / me.per_block, other % me.per_block, caller);
        }
        if (write) {
            if (!is_ordered_after_readers(cell, me, memory.shared)) {
                const unsigned other = (cell.reader & THREAD) - 1;
                fail("race: write of %s (+%zu) is not ordered after a read by block %u thread %u pc %p",
                     name_of(*range), offset, other / me.per_block, other % me.per_block, caller);
            }
            cell.writer = (me.thread + 1) | (atomic ? ATOMIC : 0);
            cell.write_epochs = epochs;
            if (!atomic) cell.reader = 0;
            continue;
        }
        uint32_t flags = 0;
        if (cell.reader) {
            const unsigned other = (cell.reader & THREAD) - 1;
            flags = cell.reader & OTHER_BLOCKS;
            if (other / me.per_block != me.thread / me.per_block) {
                flags |= OTHER_BLOCKS;
            } else if (cell.read_epochs >> 16 == (me.block_epoch & 0xffff)) {
                flags |= cell.reader & (SEVERAL | OTHER_WARPS);
                if (other != me.thread) flags |= SEVERAL;
                if (other / 32 != me.thread / 32) flags |= OTHER_WARPS;
            }
        }
        cell.reader = (me.thread + 1) | flags;
        cell.read_epochs = epochs;
    }
}

void add_range(uintptr_t low, uintptr_t high, int argument) {
    if (low == high) return;
    const bool shared = argument < 0;
    for (size_t i = 0; i < memories.size(); i++) {
        Memory& memory = memories[i];
        if (memory.shared == shared && low < memory.high && high > memory.low) {  // views of one array
            memory.low = min(memory.low, low);
            memory.high = max(memory.high, high);
            ranges.push_back({low, high, argument, i});
            return;
        }
    }
    ranges.push_back({low, high, argument, memories.size()});
    memories.push_back({low, high, {}, shared});
}

}  // namespace

void note_access(const void* place, int n, bool write, void* caller) { access(place, n, write, false, true, caller); }
void note_atomic(const void* place, int n) { access(place, n, true, true, true, __builtin_return_address(0)); }

void begin_checking_launch() {
    last_found = 0;
    for (const auto& [low, n] : shared_variables) add_range(low, low + n, STATIC);
    const uintptr_t dynamic = reinterpret_cast<uintptr_t>(dynamic_shared);
    add_range(dynamic, dynamic + dynamic_shared_bytes(), DYNAMIC);
    for (Memory& memory : memories) memory.cells.assign(memory.high - memory.low, Cell{});
    if (image_low) return;
    auto note_image = [](dl_phdr_info* info, size_t, void*) {
        for (int k = 0; k < info->dlpi_phnum; k++) {
            const auto& header = info->dlpi_phdr[k];
            const uintptr_t low = info->dlpi_addr + header.p_vaddr, own = reinterpret_cast<uintptr_t>(&ranges);
            if (header.p_type == PT_LOAD && own >= low && own < low + header.p_memsz) {
                image_low = info->dlpi_addr;
                image_high = low + header.p_memsz;
            }
        }
        return 0;
    };
    dl_iterate_phdr(note_image, nullptr);
}

void note_shared_variable(void* place, size_t n) {
    const uintptr_t low = reinterpret_cast<uintptr_t>(place);
    shared_variables.push_back({low, n});
    add_range(low, low + n, STATIC);
    memories.back().cells.assign(n, Cell{});
}

void begin_checking_block() {
    for (Memory& memory : memories)
        if (memory.shared) std::fill(memory.cells.begin(), memory.cells.end(), Cell{});
}

}  // namespace emulator

using namespace emulator;

// Before a launch: an argument of the kernel is this memory and no more. After it: forget all.
extern "C" __attribute__((visibility("default"))) void register_memory(void* place, size_t n, int argument) {
    const uintptr_t low = reinterpret_cast<uintptr_t>(place);
    add_range(low, low + n, argument);
}
extern "C" __attribute__((visibility("default"))) void forget_memory() {
    ranges.clear();
    memories.clear();
}

#define CALLER __builtin_return_address(0)
#define CALLBACKS(N)                                                                                          \
    extern "C" void __tsan_read##N(void* place) { access(place, N, false, false, true, CALLER); }              \
    extern "C" void __tsan_write##N(void* place) { access(place, N, true, false, true, CALLER); }              \
    extern "C" void __tsan_unaligned_read##N(void* place) { access(place, N, false, false, false, CALLER); }   \
    extern "C" void __tsan_unaligned_write##N(void* place) { access(place, N, true, false, false, CALLER); }
CALLBACKS(1)
CALLBACKS(2)
CALLBACKS(4)
CALLBACKS(8)
CALLBACKS(16)
extern "C" void __tsan_read_range(void* place, size_t n) { access(place, n, false, false, false, CALLER); }
extern "C" void __tsan_write_range(void* place, size_t n) { access(place, n, true, false, false, CALLER); }
// From -fsanitize=alignment: a float4 read as four floats is still an access of 16 aligned bytes on a GPU.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, uintptr_t address) {
    if (current) fail("misaligned access to %p pc %p", reinterpret_cast<void*>(address), CALLER);
}
// From -fsanitize=bounds: arrays of a fixed size, also those of a thread, which are in no range.
extern "C" void __ubsan_handle_out_of_bounds(void*, uintptr_t index) {
    if (current) fail("index %zu is outside a fixed-size array pc %p", static_cast<size_t>(index), CALLER);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
