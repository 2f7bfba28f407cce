// The functions that stand behind products of recurrent models, told by a code: Activation of backends/cpu/activate.py.
#pragma once
#include "common.cuh"

enum ActivationCode { NO_ACTIVATION, TANH, SIGMOID, SILU, SQUARED_RELU, DECAY6, DECAY7 };

__device__ __forceinline__ float sigmoid(float a) { return 1.f / (1.f + expf(-a)); }

// NaN stays NaN in all of them, so that damaged weights are seen at the end.
__device__ __forceinline__ float activated(int code, float a) {
    switch (code) {
        case TANH: return tanhf(a);
        case SIGMOID: return sigmoid(a);
        case SILU: return silu(a);
        case SQUARED_RELU: return a < 0.f ? 0.f : a * a;
        case DECAY6: return expf(-expf(a));                  // of RWKV-6
        case DECAY7: return expf(-0.6065306597f * sigmoid(a));  // of RWKV-7; the constant is exp(-0.5)
        default: return a;
    }
}
