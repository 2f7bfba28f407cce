// From cuLaunchKernel's void** to a kernel's own parameter types. EXPORT makes, for a kernel or an instance of a
// template, the two C functions that build.py calls: run one thread, and tell the sizes of the parameters.
#pragma once

namespace emulator {

template <class... A, size_t... I>
EMULATOR_OWN void unpack(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}
template <class... A>
EMULATOR_OWN void call(void (*kernel)(A...), void** arguments) {
    unpack(kernel, arguments, std::index_sequence_for<A...>{});
}
template <class... A>
EMULATOR_OWN int parameter_sizes(void (*)(A...), int* sizes) {
    const int all[] = {static_cast<int>(sizeof(A))..., 0};
    for (size_t i = 0; i < sizeof...(A); i++) sizes[i] = all[i];
    return sizeof...(A);
}

}  // namespace emulator

#define EMULATOR_EXPORT(SYMBOL, ...)                                                                                \
    extern "C" __attribute__((visibility("default"), no_sanitize("thread"))) void call_##SYMBOL(void** arguments) { \
        emulator::call(__VA_ARGS__, arguments);                                                                     \
    }                                                                                                               \
    extern "C" __attribute__((visibility("default"), no_sanitize("thread"))) int sizes_##SYMBOL(int* sizes) {       \
        return emulator::parameter_sizes(__VA_ARGS__, sizes);                                                       \
    }
