"""Programmatic dependent launch: the next kernel begins, and loads its weights, while the one before it still ends.

CuPy has no such launch, so the driver is called through NVIDIA's own bindings (cuda-bindings, which both extras bring)
on CuPy's function handle. In a captured graph it becomes a programmatic edge. Needs compute capability 9.0.
LLAMAGPU_DEPENDENT_LAUNCH=0 turns it off, to compare.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llamagpu.errors import LlamaGPUError

DependentLaunch = Callable[[int, tuple[int, ...], tuple[int, ...], Sequence[Any], int, int], None]
C_TYPES = {np.int32: ctypes.c_int32, np.float32: ctypes.c_float, np.int64: ctypes.c_int64, np.uint64: ctypes.c_uint64}


def find(compute_capability: tuple[int, int]) -> DependentLaunch | None:
    """The launch for (function, grid, block, arguments, bytes of shared memory, stream); None where there is none."""
    if compute_capability < (9, 0) or os.environ.get("LLAMAGPU_DEPENDENT_LAUNCH", "1") == "0":
        return None
    try:
        from cuda.bindings import driver
    except ImportError:
        return None

    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1

    def launch(
        function: int,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared_memory: int,
        stream: int,
    ) -> None:
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, 1, 1)[:3]
        config.blockDimX, config.blockDimY, config.blockDimZ = (*block, 1, 1)[:3]
        config.sharedMemBytes, config.hStream = shared_memory, stream
        config.attrs, config.numAttrs = [attribute], 1
        values, types = arguments(args)
        (status,) = driver.cuLaunchKernelEx(config, driver.CUfunction(function), (values, types), 0)
        if int(status):
            raise LlamaGPUError(f"a dependent launch failed ({status}): LLAMAGPU_DEPENDENT_LAUNCH=0 does without")

    return launch


def arguments(args: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Values and C types of kernel arguments as the bindings take them."""
    values: list[Any] = []
    types: list[Any] = []
    for arg in args:
        if arg is None:
            values.append(0)
            types.append(ctypes.c_void_p)
        elif isinstance(arg, np.generic):
            values.append(arg.item())
            types.append(C_TYPES[type(arg)])
        else:
            values.append(arg.data.ptr)
            types.append(ctypes.c_void_p)
    return tuple(values), tuple(types)
