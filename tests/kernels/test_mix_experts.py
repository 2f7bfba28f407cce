"""kernels/mix_experts.cu against backends/cpu/mix_experts.py."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.mix_experts import mix_experts
from llamagpu.backends.cuda import micro_rwkv_launches as launches
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


def case(n: int, width: int, n_active: int, n_experts: int, scale: float = 1.0) -> Case:
    outputs = random(n, n_active * width + n_experts)
    outputs[:, -n_experts:] *= scale

    def run(device: Device) -> Arrays:
        y = unwritten(device, n, padded(width))
        launches.mix_experts(device, upload_rows(device, outputs), width, n_active, n_experts, n, y)
        return {"y": download_rows(device, y, width)}

    name = f"{n} of {width}, {n_active} of {n_experts}{' far apart' * (scale > 1)}"
    return Case(name, run, lambda: {"y": mix_experts(outputs, n_active, n_experts)}, TOLERANCE_F32)


SIZES = ((1, 1, 1, 1), (3, 10, 2, 3), (20, 614, 4, 4), (5, 129, 1, 7), (2, 128, 5, 64), (257, 16, 3, 3))
CASES = [*(case(*sizes) for sizes in SIZES), case(9, 40, 2, 4, 50.0)]
SMALL = [case(3, 10, 2, 3), case(2, 130, 1, 2)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


def test_weights_of_the_twin_are_those_of_all_experts() -> None:
    outputs = np.ones((2, 9), np.float32)
    outputs[:, 6:] = 0  # gates of three experts, of which two of width 3 are run
    np.testing.assert_allclose(mix_experts(outputs, 2, 3), np.full((2, 3), 2 / 3), rtol=1e-6)
