"""kernels/split_bf16.cu against backends/cpu/split_bf16.py: the same bits."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.split_bf16 import joined, place_in_split, split_bf16
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import tiled
from tests.kernels.harness import Arrays, Case, Floats, random, twin_tests, unwritten, upload_rows


def case(width: int, n: int, scale: float = 1.0, permuted: bool = False) -> Case:
    x: Floats = random(n, width) * np.float32(scale)
    place = np.random.default_rng(width).permutation(width).astype(np.int32) if permuted else None
    inside = place_in_split(np.arange(width))

    def run(device: Device) -> Arrays:
        split = unwritten(device, n, 2 * tiled(width), dtype=np.uint16)
        order = None if place is None else device.upload(place)
        launches.split_bf16(device, upload_rows(device, x), width, n, split, order)
        host = device.download(split).reshape(n, 2, tiled(width))
        outside = np.setdiff1d(np.arange(tiled(width)), inside)
        assert (host[..., outside] == 0xFFFF).all(), "wrote to the padding"
        return {"split": host[..., inside]}

    def twin() -> Arrays:
        return {"split": split_bf16(x, place)[..., inside]}

    return Case(f"{width} x{n} scale {scale:g}{' permuted' * permuted}", run, twin, 0.0)


CASES = [case(width, n, permuted=permuted) for width in (1, 31, 128, 300) for n in (1, 3) for permuted in (False, True)]
CASES += [case(64, 2, scale) for scale in (1e-30, 1e30)]
SMALL = [case(130, 2), case(35, 3, permuted=True)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


def test_the_halves_hold_16_bits() -> None:
    x = random(3, 300) * np.float32(1000)
    assert (np.abs(joined(split_bf16(x), 300) - x) <= np.abs(x) * 2.0**-16).all()


def test_not_a_number_stays_so() -> None:
    x = np.asarray([[np.nan, np.inf, -np.inf]], np.float32)
    x.view(np.uint32)[0, 0] = 0x7FFFFFFF  # a GPU's own
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(joined(split_bf16(x), 3)).any()
