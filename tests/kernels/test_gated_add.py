"""kernels/gated_add.cu against backends/cpu/gated_add.py."""

from __future__ import annotations

from llamagpu.backends.cpu.gated_add import gated_add
from llamagpu.backends.cuda import recurrent_launches
from llamagpu.backends.cuda.device import Device
from tests.kernels.harness import TOLERANCE_F32, Arrays, Case, download_rows, random, twin_tests, upload_rows


def case(width: int, n: int, gated: bool) -> Case:
    x, delta = random(n, width), random(n, width, seed=1)
    gate = random(n, width, seed=2) if gated else None

    def run(device: Device) -> Arrays:
        rows = upload_rows(device, x)
        gates = None if gate is None else upload_rows(device, gate)
        recurrent_launches.gated_add(device, gates, upload_rows(device, delta), width, n, rows)
        return {"x": download_rows(device, rows, width)}

    def twin() -> Arrays:
        y = x.copy()
        gated_add(y, delta, gate)
        return {"x": y}

    return Case(f"{width} x{n}{' gated' * gated}", run, twin, TOLERANCE_F32)


CASES = [
    case(width, n, gated)
    for width in (1, 5, 64, 127, 128, 129, 300, 1030)
    for n in (1, 2, 9, 20)
    for gated in (False, True)
]
SMALL = [case(width, n, gated) for width, n in ((128, 2), (145, 3)) for gated in (False, True)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
