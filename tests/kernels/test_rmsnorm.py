"""kernels/rmsnorm.cu against backends/cpu/rmsnorm.py and a plain addition."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded, upload_vector
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

EPS = 1e-5


def case(dim: int, n: int, add: bool, scale: float = 1.0, biased: bool = False) -> Case:
    x = random(n, dim) * np.float32(scale)
    delta = random(n, dim, seed=1) * np.float32(scale)
    weight, bias = 1 + random(1, dim, seed=2)[0] / 4, random(dim, seed=3)

    def run(device: Device) -> Arrays:
        rows, y = upload_rows(device, x), unwritten(device, n, padded(dim))
        added = upload_rows(device, delta) if add else None
        of_dim = upload_vector(device, bias) if biased else None
        launches.add_rmsnorm(device, rows, added, of_dim, upload_vector(device, weight), dim, EPS, n, y)
        return {"x": download_rows(device, rows, dim), "y": download_rows(device, y, dim)}

    def twin() -> Arrays:
        total = x + bias * biased + delta if add else x
        return {"x": total, "y": rmsnorm(total, weight, EPS)}

    return Case(
        f"{dim} x{n}{' add' * add}{' biased' * biased}{f' scale {scale:g}' * (scale != 1)}", run, twin, TOLERANCE_F32
    )


DIMS = (1, 5, 16, 17, 64, 100, 288, 1000, 1024, 1030, 4096, 4101)
CASES = [case(dim, n, add) for dim in DIMS for n, add in ((1, False), (1, True), (3, True))]
CASES += [case(100, 2, True, scale) for scale in (1e-4, 1e4)]  # where eps counts, and where squares are large
CASES += [case(dim, 3, True, biased=True) for dim in DIMS]
SMALL = [case(100, 2, False), case(1030, 2, True), case(21, 2, True, biased=True)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
