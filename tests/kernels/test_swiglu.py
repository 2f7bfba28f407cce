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


def case(width: int, n: int, scale: float = 1.0) -> Case:
    gate, up = random(n, width) * np.float32(scale), random(n, width, seed=1)

    def run(device: Device) -> Arrays:
        y = unwritten(device, n, padded(width))
        both = np.stack([gate, up], axis=2).reshape(n, -1)
        launches.swiglu(device, upload_rows(device, both), width, n, y)
        return {"y": download_rows(device, y, width)}

    def twin() -> Arrays:
        return {"y": swiglu(gate, up)}

    return Case(f"{width} x{n} scale {scale:g}", run, twin, TOLERANCE_F32)


CASES = [case(width, n) for width in (1, 16, 100, 512, 515, 1100) for n in (9, 17)]
CASES += [case(50, 10, 100.0)]  # exp(-gate) overflows
SMALL = [case(50, 9), case(515, 10), case(32, 2)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
