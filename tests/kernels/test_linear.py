"""kernels/linear.cu against backends/cpu/linear.py."""

from __future__ import annotations

from llamagpu.backends.cpu.linear import linear
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import WEIGHTS
from llamagpu.backends.cuda.matrix import padded, upload_matrix
from tests.kernels.harness import (
    Arrays,
    Case,
    download_rows,
    random,
    random_tensor,
    tolerance_of,
    twin_tests,
    unwritten,
    upload_rows,
    widened,
)


def case(kind: str, out_features: int, in_features: int, n: int, group_size: int = 32) -> Case:
    w = random_tensor(kind, out_features, in_features, group_size=group_size)
    x = random(n, in_features, seed=1)

    def run(device: Device) -> Arrays:
        y = unwritten(device, n, padded(out_features))
        launches.linear(device, upload_matrix(device, w), upload_rows(device, x), n, y)
        return {"y": download_rows(device, y, out_features)}

    def twin() -> Arrays:
        return {"y": linear(x, widened(w))}

    group = f" group {group_size}" if kind == "Q8" else ""
    return Case(f"{kind} {out_features}x{in_features} n={n}{group}", run, twin, tolerance_of(kind))


SIZES = {
    "F32": ((1, 1), (17, 100), (9, 515)),
    "F16": ((2, 8), (17, 100), (9, 1030)),
    "Q8": ((1, 32), (17, 96), (9, 544)),
    "Q8Flat": ((3, 1), (17, 100), (9, 515)),
}
CASES = [case(kind, *size, n) for kind in WEIGHTS for size in SIZES[kind] for n in (1, 2, 3, 4, 5, 6, 7, 8)]
CASES += [case(kind, 13, 64 if kind == "Q8" else 65, n) for kind in WEIGHTS for n in (9, 16, 19)]
CASES += [case("Q8", 10, 512, 2, group_size) for group_size in (16, 64, 128, 512)]
CASES += [case("F16", 5, 4096, 1), case("F32", 4, 2048, 1), case("Q8", 3, 4096, 1), case("F16", 300, 32, 2)]
SMALL = [case(kind, 11, 32 if kind == "Q8" else 35, n) for kind in WEIGHTS for n in (1, 3, 10)]
SMALL += [case("F16", 10, 40, 2)]  # the first row that is not there begins a pair
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
