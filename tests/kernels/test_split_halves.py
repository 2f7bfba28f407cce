"""kernels/split_halves.cu against backends/cpu/split_halves.py: the same bits."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.split_halves import split_halves
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded
from tests.kernels.harness import Arrays, Case, Floats, download_rows, random, twin_tests, unwritten, upload_rows


def case(dim: int, n: int, scale: float = 1.0, permuted: bool = False) -> Case:
    x: Floats = random(n, dim) * np.float32(scale)
    x[0, 0] *= 50  # one large element, as activations have
    x[-1] *= n == 3  # a row of zeros

    place = np.random.default_rng(dim).permutation(dim).astype(np.int32) if permuted else None

    def run(device: Device) -> Arrays:
        high = unwritten(device, n, padded(dim), dtype=np.float16)
        low = unwritten(device, n, padded(dim), dtype=np.float16)
        inverse_scales = unwritten(device, n)
        order = None if place is None else device.upload(place)
        launches.split_halves(device, upload_rows(device, x), dim, n, high, low, inverse_scales, order)
        halves = {"high": download_rows(device, high, dim), "low": download_rows(device, low, dim)}
        return {**halves, "inverse_scales": device.download(inverse_scales)}

    def twin() -> Arrays:
        high, low, inverse_scales = split_halves(x)
        back = slice(None) if place is None else np.argsort(place)
        return {"high": high[:, back], "low": low[:, back], "inverse_scales": inverse_scales}

    return Case(f"{dim} x{n} scale {scale:g}{' permuted' * permuted}", run, twin, 0.0)


CASES = [case(dim, n) for dim in (1, 17, 64, 100, 1030, 4096) for n in (1, 3)]
CASES += [case(100, 2, scale) for scale in (1e-37, 1e-30, 1e-5, 1e5, 1e30)]
CASES += [case(dim, 2, permuted=True) for dim in (6, 100, 1030)]
SMALL = [case(21, 2, permuted=True), case(1030, 3), case(20, 2), case(20, 1, 1e-37)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


def test_the_halves_hold_22_bits() -> None:
    x = random(50, 300) * np.float32(1000)
    high, low, inverse_scales = split_halves(x)
    back = (high.astype(np.float64) + low) * inverse_scales[:, None]
    assert (np.abs(back - x) <= np.abs(x).max(axis=1, keepdims=True) * 2.0**-23).all()
