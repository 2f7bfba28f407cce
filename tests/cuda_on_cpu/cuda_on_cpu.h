// Test only: lets g++ compile llamagpu's CUDA C kernels and run them on the CPU, one fiber per CUDA thread. README.md
// beside this says what is covered. What is missing is a compile error, never a wrong answer.
#pragma once
#define LLAMAGPU_EMULATOR 1
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
using std::max;
using std::min;

// Keywords. __shared__ is not among them: build.py rewrites those declarations.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// for functions of the emulator itself, which the checking build must not look into
#define EMULATOR_OWN __attribute__((noinline, no_sanitize("thread")))

#include "vector_types.h"

#include "runtime.h"

#include "intrinsics.h"

#include "half.h"

#include "collectives.h"

#include "ptx_emulation.h"

#include "launch.h"
