"""kernels/swiglu.cu against backends/cpu/swiglu.py."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.swiglu import swiglu
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded
from tests.kernels.harness import (
    TOLERANCE_F32,
    Arrays,
    Case,
    download_rows,
    random,
    twin_tests,
    unwritten,
    upload_rows,
)


def case(width: int, n: int, scale: float = 1.0, biased: bool = False) -> Case:
    gate, up = random(n, width) * np.float32(scale), random(n, width, seed=1)
    biases = random(2, width, seed=2) if biased else None

    def run(device: Device) -> Arrays:
        y = unwritten(device, n, padded(width))
        both = np.stack([gate, up], axis=2).reshape(n, -1)
        bias = None if biases is None else device.upload(np.ascontiguousarray(biases.T).reshape(-1))
        launches.swiglu(device, upload_rows(device, both), width, n, y, bias)
        return {"y": download_rows(device, y, width)}

    def twin() -> Arrays:
        return {"y": swiglu(gate, up, None if biases is None else list(biases))}

    return Case(f"{width} x{n} scale {scale:g}{' biased' * biased}", run, twin, TOLERANCE_F32)


CASES = [case(width, n) for width in (1, 16, 100, 512, 515, 1100) for n in (9, 17)]
CASES += [case(50, 10, 100.0)]  # exp(-gate) overflows
CASES += [case(width, 9, biased=True) for width in (1, 16, 100, 515)]
SMALL = [case(50, 9), case(515, 10), case(32, 2), case(50, 9, biased=True)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
