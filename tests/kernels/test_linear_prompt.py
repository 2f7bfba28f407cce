"""kernels/linear_prompt.cu against backends/cpu/linear.py: as near as the kernels that add up float32."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.linear import linear
from llamagpu.backends.cpu.split_halves import split_halves
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import TILES
from llamagpu.backends.cuda.matrix import pad_rows, padded, upload_matrix
from tests.kernels.harness import (
    Arrays,
    Case,
    Floats,
    download_rows,
    random,
    random_tensor,
    tolerance_of,
    twin_tests,
    unwritten,
    widened,
)


def case(
    kind: str, out_features: int, in_features: int, n: int, scale: float = 1.0, group_size: int = 0, first: int = 0,
    step: int = 1,
) -> Case:  # fmt: skip
    w = random_tensor(kind, out_features, in_features, group_size=group_size)
    x: Floats = random(n, in_features, seed=1) * np.float32(scale)
    x[n // 2] *= 100
    width = first + step * out_features

    def run(device: Device) -> Arrays:
        high, low, inverse_scales = split_halves(x)
        halves = device.upload(pad_rows(high)), device.upload(pad_rows(low)), device.upload(inverse_scales)
        y = unwritten(device, n, padded(width))
        launches.linear_prompt(device, upload_matrix(device, w), *halves, n, y, width, first, step)
        return {"y": download_rows(device, y, width)[:, first::step][:, :out_features]}

    def twin() -> Arrays:
        return {"y": linear(x, widened(w))}

    how = f" scale {scale:g}" + f" group {group_size}" * bool(group_size) + f" to {first} + {step} i" * (step > 1)
    return Case(f"{kind} {out_features}x{in_features} n={n}{how}", run, twin, tolerance_of(kind))


SIZES = ((1, 32, 9), (17, 96, 16), (64, 64, 64), (70, 128, 65), (130, 352, 33))
ODD_SIZES = ((3, 1, 9), (63, 50, 63), (65, 100, 70))  # in_features that 16 and 32 do not divide
CASES = [case(kind, *size) for kind in ("F32", "F16", "BF16", "Q4", "Q8F", "Q4Offset") for size in (*SIZES, *ODD_SIZES)]
CASES += [case(kind, 70, 200, 12) for kind in TILES]
CASES += [case(kind, 20, 64, 20, scale) for kind in ("F32", "F16", "Q4") for scale in (1e-6, 1e6)]
CASES += [case(kind, 20, 520, 12, group_size=size) for kind in ("Q4", "Q8") for size in (16, 64, 256, 520)]
CASES += [case(kind, 20, 64, 12, first=3, step=2) for kind in ("F16", "Q4")]
SMALL = [case(kind, 66, 81, 66) for kind in ("F32", "F16", "BF16", "Q4", "Q8F", "Q8Offset")]
SMALL += [case("F32", 66, 70, 9), case("F16", 66, 70, 9), case("Q4", 32, 130, 9)]  # the last row ends the matrix
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
