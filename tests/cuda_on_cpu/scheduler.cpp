// Runs a kernel: one block after the other, each CUDA thread a fiber on one OS thread. A fiber runs until it meets
// others at a barrier or in a warp collective, so which threads run ahead is the scheduler's choice: first come, first
// served with seed 0, and two kinds of random order with others (README.md).
#include "scheduler.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

#include "fibers.h"

namespace emulator {
namespace {

struct Warp;

struct Fiber : Thread {
    void* stack_pointer;
    Warp* warp;
    int number;  // within the block
    bool done;
    int predicate_total;    // of the barrier it waited at
    const char* waits_for;  // for the message of a deadlock
    int line;
    struct Copy {  // of cp.async, on its way
        void* target;
        const void* source;
        int n, group;
    };
    std::vector<Copy> copies;
    int copy_group;
};

struct Meeting {  // of the lanes of one mask
    unsigned mask, arrived;
    Collective kind;
    int line;
    void* arguments[32];
    Fiber* waiting[32];
};

struct Warp {
    Meeting meetings[32] = {};  // by the lowest lane of the mask
    unsigned live = 0;
    uint32_t epoch = 0;
};

struct Barrier {
    int arrived = 0, predicates = 0, line = 0;
    std::vector<Fiber*> waiting;
};

// An odd size, so that the same local variable of different threads is not always in the same cache set.
constexpr size_t STACK_BYTES = (64 << 10) + 832;
constexpr size_t MOST_THREADS = 1024, MOST_SHARED = 232448;  // 227 KiB, what a block of the largest GPUs can have
constexpr size_t MOST_STATIC_SHARED = 48 << 10, GAP = 64;    // between shared variables, to see one run into another

std::vector<Fiber> fibers(MOST_THREADS);
std::vector<Warp> warps;
Barrier barrier;
int n_threads, n_live;
unsigned linear_block;
uint32_t block_epoch;
void (*kernel)(void**);
void** kernel_arguments;

std::vector<Fiber*> ready;
size_t ready_head;
uint64_t random_state;  // 0: first come, first served
bool newest_first;      // random launches of the second kind: one warp runs far ahead of the others

alignas(16) unsigned char static_shared[4 * MOST_STATIC_SHARED];  // of all kernels of the module, and the gaps
size_t static_used;
unsigned char* stacks;
size_t dynamic_capacity, dynamic_used;
void* main_stack_pointer;
char message[4096];

Fiber* self() { return static_cast<Fiber*>(current); }

uint64_t random_number() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

void switch_to(Fiber* next) {  // null: back to launch()
    Fiber* from = self();
    if (next == from) return;
    if (next) current = next;
    emulator_switch(from ? &from->stack_pointer : &main_stack_pointer, next ? next->stack_pointer : main_stack_pointer);
}

Fiber* pick() {
    if (ready_head == ready.size()) return nullptr;
    if (random_state) {
        const uint64_t number = random_number();
        if (newest_first && number % 32) {
            Fiber* fiber = ready.back();
            ready.pop_back();
            return fiber;
        }
        std::swap(ready[ready_head], ready[ready_head + (number >> 8) % (ready.size() - ready_head)]);
    }
    Fiber* fiber = ready[ready_head++];
    if (ready_head > 4096 && ready_head * 2 > ready.size()) {
        ready.erase(ready.begin(), ready.begin() + ready_head);
        ready_head = 0;
    }
    return fiber;
}

void stop_with_deadlock() {
    std::map<std::pair<const char*, int>, int> waiting;
    for (int i = 0; i < n_threads; i++)
        if (!fibers[i].done) waiting[{fibers[i].waits_for, fibers[i].line}]++;
    int used = snprintf(message, sizeof message, "deadlock (divergent barrier or collective):");
    for (const auto& [place, count] : waiting)
        if (used < static_cast<int>(sizeof message) - 100)
            used += snprintf(message + used, sizeof message - used, " %d thread(s) wait at %s line %d;", count,
                             place.first, place.second);
}

void run_another() {
    Fiber* next = pick();
    if (!next) stop_with_deadlock();
    switch_to(next);
}

void open_barrier() {
    block_epoch++;
    for (Fiber* fiber : barrier.waiting) {
        fiber->predicate_total = barrier.predicates;
        ready.push_back(fiber);
    }
    barrier.waiting.clear();
    barrier.arrived = barrier.predicates = 0;
}

void run_thread() {  // the bottom of every fiber's stack
    kernel(kernel_arguments);
    Fiber* me = self();
    me->done = true;
    n_live--;
    me->warp->live &= ~(1u << me->lane);
    if (barrier.arrived && barrier.arrived == n_live)
        fail("a thread exited while %d thread(s) wait at the barrier in line %d", barrier.arrived, barrier.line);
    Fiber* next = pick();
    if (!next && n_live) stop_with_deadlock();
    switch_to(next);
    __builtin_unreachable();
}

void start_block(uint3 id, unsigned linear) {
    linear_block = linear;
    block_epoch = 0;
    n_live = n_threads;
    warps.assign((n_threads + 31) / 32, Warp());
    barrier = Barrier();
    ready.clear();
    ready_head = 0;
    const unsigned x = block_size.x, y = block_size.y;
    for (unsigned i = 0; i < static_cast<unsigned>(n_threads); i++) {
        Fiber& fiber = fibers[i];
        fiber.index = {i % x, i / x % y, i / (x * y)};
        fiber.block = id;
        fiber.lane = i % 32;
        fiber.number = i;
        fiber.warp = &warps[i / 32];
        fiber.warp->live |= 1u << fiber.lane;
        fiber.done = false;
        fiber.copies.clear();
        fiber.copy_group = 0;
        fiber.waits_for = "start";
        fiber.line = 0;
        fiber.stack_pointer = new_stack(stacks + (i + 1) * STACK_BYTES, run_thread);
        ready.push_back(&fiber);
    }
    if (newest_first)
        for (size_t i = ready.size(); i > 1; i--) std::swap(ready[i - 1], ready[random_number() % i]);
    memset(static_shared, 0xFF, sizeof static_shared);  // NaN, whatever its type
    memset(dynamic_shared, 0xFF, dynamic_used);
}

}  // namespace

Thread* current;
dim3 block_size, grid_size;
unsigned char* dynamic_shared;

size_t dynamic_shared_bytes() { return dynamic_used; }

void* reserve_shared(size_t n) {
    const size_t place = static_used + GAP;
    if (n > MOST_STATIC_SHARED || place + n + GAP > sizeof static_shared)
        fail("more than 48 KiB of static shared memory");
    static_used = (place + n + 15) / 16 * 16;
    note_shared_variable(static_shared + place, n);
    return static_shared + place;
}

Identity who() {
    const Fiber* me = self();
    return {linear_block * n_threads + me->number, static_cast<unsigned>(n_threads), block_epoch, me->warp->epoch};
}

bool is_private(uintptr_t address) {
    return address - reinterpret_cast<uintptr_t>(stacks) < MOST_THREADS * STACK_BYTES ||
           address - reinterpret_cast<uintptr_t>(fibers.data()) < fibers.size() * sizeof(Fiber);
}

void fail(const char* format, ...) {
    if (!message[0]) {
        va_list arguments;
        va_start(arguments, format);
        const int used = vsnprintf(message, sizeof message, format, arguments);
        va_end(arguments);
        const Thread* t = current;
        snprintf(message + used, sizeof message - used, " [block (%u,%u,%u) thread (%u,%u,%u)]", t->block.x, t->block.y,
                 t->block.z, t->index.x, t->index.y, t->index.z);
    }
    switch_to(nullptr);
    __builtin_unreachable();
}

int meet_in_block(int predicate, int line) {
    Fiber* me = self();
    if (n_live != n_threads)
        fail("barrier at line %d after %d thread(s) of the block exited", line, n_threads - n_live);
    if (barrier.arrived && barrier.line != line)
        fail("threads of one block meet at different barriers: line %d and line %d", barrier.line, line);
    barrier.line = line;
    barrier.arrived++;
    barrier.predicates += predicate;
    barrier.waiting.push_back(me);
    me->waits_for = "barrier";
    me->line = line;
    if (barrier.arrived == n_threads) open_barrier();
    run_another();
    return me->predicate_total;
}

void meet_in_warp(unsigned mask, void* argument, Together together, Collective kind, int line) {
    Fiber* me = self();
    Warp* warp = me->warp;
    if (!(mask >> me->lane & 1)) fail("line %d: lane %d calls but is not in the mask 0x%x", line, me->lane, mask);
    if (mask & ~warp->live) {
        if (kind != SYNC_WARP) fail("line %d: the mask names lanes that exited (live: 0x%x)", line, warp->live);
        mask &= warp->live;
    }
    Meeting& meeting = warp->meetings[__builtin_ctz(mask)];
    if (!meeting.arrived) {
        meeting.mask = mask;
        meeting.kind = kind;
        meeting.line = line;
    } else if (meeting.mask != mask || meeting.kind != kind || meeting.line != line) {
        fail("lanes of one warp meet in different collectives: line %d (mask 0x%x) and line %d (mask 0x%x)",
             meeting.line, meeting.mask, line, mask);
    }
    meeting.arguments[me->lane] = argument;
    meeting.arrived |= 1u << me->lane;
    if (meeting.arrived != mask) {
        meeting.waiting[me->lane] = me;
        me->waits_for = "warp collective";
        me->line = line;
        run_another();
        return;
    }
    together(meeting.arguments, mask);
    meeting.arrived = 0;
    if (kind == SYNC_WARP && mask == warp->live) warp->epoch++;  // shuffles and votes do not order memory
    for (unsigned rest = mask & ~(1u << me->lane); rest; rest &= rest - 1)
        ready.push_back(meeting.waiting[__builtin_ctz(rest)]);
}

void copy_later(void* shared, const void* global, int n) {
    if (reinterpret_cast<uintptr_t>(shared) % n || reinterpret_cast<uintptr_t>(global) % n)
        fail("cp.async: misaligned address");
    void* caller = __builtin_return_address(0);
    note_access(global, n, false, caller);
    note_access(shared, n, true, caller);  // it may land at any time from now on
    if (random_state && random_number() % 2)
        memcpy(shared, global, n);
    else
        self()->copies.push_back({shared, global, n, self()->copy_group});
}

void close_copy_group() { self()->copy_group++; }

void wait_for_copies(int groups_left) {
    Fiber* me = self();
    size_t kept = 0;
    for (const Fiber::Copy& copy : me->copies) {
        if (copy.group < me->copy_group - groups_left) {
            note_access(copy.target, copy.n, true, __builtin_return_address(0));
            memcpy(copy.target, copy.source, copy.n);
        } else {
            me->copies[kept++] = copy;
        }
    }
    me->copies.resize(kept);
}

__attribute__((weak)) void note_access(const void*, int, bool, void*) {}
__attribute__((weak)) void note_atomic(const void*, int) {}
__attribute__((weak)) void begin_checking_launch() {}
__attribute__((weak)) void begin_checking_block() {}
__attribute__((weak)) void note_shared_variable(void*, size_t) {}

}  // namespace emulator

using namespace emulator;

// Run a kernel, from a block on: a test of large offsets runs the last blocks of a grid alone. Returns null, or what
// went wrong.
extern "C" __attribute__((visibility("default"))) const char* launch(void (*function)(void**), void** arguments,
                                                                     const unsigned* grid, const unsigned* block,
                                                                     size_t shared_bytes, uint64_t seed,
                                                                     size_t first_block) {
    grid_size = dim3(grid[0], grid[1], grid[2]);
    block_size = dim3(block[0], block[1], block[2]);
    const size_t n = static_cast<size_t>(block[0]) * block[1] * block[2];
    const size_t n_blocks = static_cast<size_t>(grid[0]) * grid[1] * grid[2];
    if (!n || n > MOST_THREADS || !n_blocks || grid[1] > 65535 || grid[2] > 65535)
        return "invalid launch configuration";
    if (shared_bytes > MOST_SHARED) return "more than 227 KiB of shared memory";
    if (!stacks) {
        stacks = static_cast<unsigned char*>(mmap(nullptr, MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stacks == MAP_FAILED) {
            stacks = nullptr;
            return "no memory for the stacks of 1024 threads";
        }
    }
    if (!dynamic_shared || shared_bytes > dynamic_capacity) {
        free(dynamic_shared);
        dynamic_capacity = max((shared_bytes + 4095) / 4096 * 4096, static_cast<size_t>(4096));
        dynamic_shared = static_cast<unsigned char*>(aligned_alloc(4096, dynamic_capacity));
    }
    dynamic_used = shared_bytes;
    n_threads = static_cast<int>(n);
    kernel = function;
    kernel_arguments = arguments;
    message[0] = 0;
    random_state = seed * 0x9E3779B97F4A7C15ull;
    newest_first = random_state && random_number() % 2;
    begin_checking_launch();

    if (first_block >= n_blocks) return "the first block to run is not in the grid";
    std::vector<uint32_t> order(n_blocks - first_block);
    for (size_t i = 0; i < order.size(); i++) order[i] = first_block + i;
    if (random_state)
        for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_number() % i]);
    for (const uint32_t i : order) {
        start_block({i % grid[0], i / grid[0] % grid[1], i / (grid[0] * grid[1])}, i);
        begin_checking_block();
        Fiber* first = pick();
        current = nullptr;
        switch_to(first);
        current = nullptr;
        if (message[0]) return message;
    }
    return nullptr;
}
