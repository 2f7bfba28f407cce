"""kernels/layernorm.cu against backends/cpu/layernorm.py, to rows and to what quantised weights read."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.layernorm import layernorm
from llamagpu.backends.cpu.split_bf16 import joined
from llamagpu.backends.cuda import recurrent_launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded, tiled, upload_vector
from llamagpu.backends.cuda.vectors import Target
from tests.kernels.harness import (
    TOLERANCE_F32,
    Arrays,
    Case,
    Written,
    download_rows,
    random,
    twin_tests,
    unwritten,
    upload_rows,
)

EPS = 1e-5


def case(dim: int, n: int, form: str, permuted: bool = False, scale: float = 1.0, shift: float = 0.5) -> Case:
    """form: "rows", "split", "both" or "in place"."""
    x = random(n, dim) * np.float32(scale) + np.float32(shift)
    weight, bias = 1 + random(1, dim, seed=2)[0] / 4, random(1, dim, seed=3)[0]

    def run(device: Device) -> Arrays:
        rows, weights = upload_rows(device, x), (upload_vector(device, weight), upload_vector(device, bias))
        if form in ("rows", "split"):
            written = Written(device, form, n, dim, permuted)
            recurrent_launches.layernorm(device, rows, *weights, dim, EPS, n, written.target)
            return {"y": written.read(), "x": download_rows(device, rows, dim)}
        split = unwritten(device, n, 2 * tiled(dim), dtype=np.uint16) if form == "both" else None
        out = rows if form == "in place" else unwritten(device, n, padded(dim))
        recurrent_launches.layernorm(device, rows, *weights, dim, EPS, n, Target(rows=out, split=split))
        y = download_rows(device, out, dim)
        if split is not None:
            assert np.allclose(joined(device.download(split).reshape(n, 2, -1), dim, None), y, rtol=1e-4)
        return {"y": y} if form == "in place" else {"y": y, "x": download_rows(device, rows, dim)}

    def twin() -> Arrays:
        y = layernorm(x, weight, bias, EPS)
        return {"y": y} if form == "in place" else {"y": y, "x": x}

    name = f"{dim} x{n} {form}{' permuted' * permuted}{f' scale {scale:g} shift {shift:g}' * (scale != 1)}"
    return Case(name, run, twin, TOLERANCE_F32)


DIMS = (1, 5, 16, 17, 64, 100, 255, 256, 257, 768, 1000, 1024, 1030, 4096, 4101)
CASES = [case(dim, n, form) for dim in DIMS for n, form in ((1, "rows"), (3, "in place"), (9, "split"))]
CASES += [case(dim, 2, form, True) for dim in (100, 1030) for form in ("rows", "split")]
CASES += [case(dim, 2, "both") for dim in (20, 300)]
# where eps counts, where squares are large, and where the mean is large beside the rest
CASES += [case(100, 2, "rows", False, scale, shift) for scale, shift in ((1e-4, 0.0), (1e4, 1e4), (1e-2, 10.0))]
SMALL = [case(64, 2, "rows"), case(1030, 2, "in place"), case(1040, 1, "split"), case(37, 3, "rows", True)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


def test_mean_and_variance_of_the_twin() -> None:
    y = layernorm(random(3, 50) * 7 + 3, np.ones(50, np.float32), np.zeros(50, np.float32), 0.0)
    assert np.allclose(y.mean(axis=1), 0, atol=1e-6)
    assert np.allclose(y.var(axis=1), 1, rtol=1e-5)
