// Switching between stacks. The C library's ucontext makes a system call at each switch and is five times slower.
#pragma once
#include <cstddef>

// Save the callee-saved registers on this stack, its pointer in *save; go on where `to` was saved.
extern "C" void emulator_switch(void** save, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");

// A stack that begins in `entry` when it is switched to.
inline void* new_stack(unsigned char* top, void (*entry)()) {
    void** stack = reinterpret_cast<void**>(top - 64);
    stack[6] = reinterpret_cast<void*>(entry);  // above six saved registers: where `ret` goes
    stack[7] = nullptr;
    return stack;
}
#elif defined(__aarch64__)  // written from the procedure call standard, never tried
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");

inline void* new_stack(unsigned char* top, void (*entry)()) {
    void** stack = reinterpret_cast<void**>(top - 224);
    stack[11] = reinterpret_cast<void*>(entry);  // x30
    return stack;
}
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif
