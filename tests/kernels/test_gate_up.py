"""kernels/gate_up.cu against backends/cpu/swiglu.py over backends/cpu/linear.py."""

from __future__ import annotations

from llamagpu.backends.cpu.linear import linear
from llamagpu.backends.cpu.swiglu import swiglu
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


def case(kind: str, out_features: int, in_features: int, n: int, scale: int = 1) -> Case:
    gate = random_tensor(kind, out_features, in_features, seed=1)
    up = random_tensor(kind, out_features, in_features, seed=2)
    x = random(n, in_features, seed=3) * scale

    def run(device: Device) -> Arrays:
        y = unwritten(device, n, padded(out_features))
        weights = upload_matrix(device, gate), upload_matrix(device, up)
        launches.gate_up(device, *weights, upload_rows(device, x), n, y)
        return {"y": download_rows(device, y, out_features)}

    def twin() -> Arrays:
        return {"y": swiglu(linear(x, widened(gate)), linear(x, widened(up)))}

    return Case(f"{kind} {out_features}x{in_features} n={n} scale {scale}", run, twin, tolerance_of(kind))


SIZES = {"F32": (17, 100), "F16": (17, 100), "Q8": (17, 96), "Q8Flat": (17, 100)}
CASES = [case(kind, *SIZES[kind], n) for kind in WEIGHTS for n in (1, 2, 3, 4, 5, 6, 7, 8, 11)]
CASES += [case("F16", 1, 8, 1), case("F32", 1, 1, 2), case("F16", 70, 1030, 1)]
CASES += [case("F32", 9, 64, 2, scale=200)]  # exp(-gate) overflows: silu goes to 0
SMALL = [case(kind, 6, 32 if kind == "Q8" else 35, n) for kind in WEIGHTS for n in (1, 10)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
