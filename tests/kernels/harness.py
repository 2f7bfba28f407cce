"""What the tests of all kernel families share: a case, and the ways it is put to the proof.

A case runs a kernel on a device and its NumPy twin on the same numbers. Every case runs against its twin, twice; the
few that a family names as small also run in random orders of threads and blocks and in the emulator's checking build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.matrix import padded
from llamagpu.checkpoint import Tensor
from llamagpu.quantization import Int8Matrix
from tests.emulated_device import EmulatedDevice, reason_for_no_emulator

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]
TOLERANCE_F32, TOLERANCE_F16 = 1e-6, 1e-5  # normalised squared error, by the type of weights, keys and values
SEEDS = range(1, 9)  # of random orders

needs_emulator = pytest.mark.skipif(bool(reason_for_no_emulator()), reason=reason_for_no_emulator())


@dataclass(frozen=True)
class Case:
    """name: of the test. run: the kernel's results. twin: what they must be. tolerance: 0 asks for equal numbers."""

    name: str
    run: Callable[[Device], Arrays]
    twin: Callable[[], Arrays]
    tolerance: float

    def __str__(self) -> str:
        return self.name


def error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Normalised squared error: |got - expected|^2 / |expected|^2."""
    assert got.shape == expected.shape
    assert np.isfinite(expected).all(), "the twin itself is not finite"
    difference = got.astype(np.float64) - expected.astype(np.float64)
    scale = float(np.square(expected.astype(np.float64)).sum())
    return float(np.square(difference).sum()) / (scale or 1.0)


def check_twin(case: Case, device: Device) -> None:
    """The kernel is within the tolerance of its twin, and a second run gives the same bits."""
    got, again, expected = case.run(device), case.run(device), case.twin()
    assert set(got) == set(expected)
    for name, values in expected.items():
        assert error(got[name], values) <= case.tolerance, f"{name}: {error(got[name], values):.3g}"
        assert got[name].tobytes() == again[name].tobytes(), f"{name}: two runs differ"


def twin_tests(cases: Sequence[Case], small: Sequence[Case]) -> tuple[Callable[..., None], ...]:
    """test_twin, test_random_orders, test_checking_build and test_small of a family, for its test file to name."""

    @pytest.mark.parametrize("case", cases, ids=str)
    def test_twin(case: Case, device: Device) -> None:
        check_twin(case, device)

    @needs_emulator
    @pytest.mark.parametrize("case", small, ids=str)
    def test_random_orders(case: Case) -> None:
        first = case.run(EmulatedDevice())
        for seed in SEEDS:
            for name, values in case.run(EmulatedDevice(seed=seed)).items():
                assert values.tobytes() == first[name].tobytes(), f"{name}: order {seed} gives other bits"

    @needs_emulator
    @pytest.mark.parametrize("case", small, ids=str)
    def test_checking_build(case: Case) -> None:
        for name, values in case.twin().items():
            assert error(case.run(EmulatedDevice(check=True))[name], values) <= case.tolerance

    @pytest.mark.parametrize("case", small, ids=str)
    def test_small(case: Case, device: Device) -> None:
        """What compute-sanitizer runs on a GPU, where there is no checking build."""
        check_twin(case, device)

    return test_twin, test_random_orders, test_checking_build, test_small


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def random_tensor(kind: str, out_features: int, in_features: int, seed: int = 0, group_size: int = 32) -> Tensor:
    """A weight of one of the kinds of kernels/weights.cuh. Groups of Q8Flat may cross rows."""
    w = random(out_features, in_features, seed=seed) / np.float32(np.sqrt(in_features))
    if kind == "F32":
        return w
    if kind == "F16":
        return w.astype(np.float16)
    group_size = np.gcd(group_size, w.size) if kind == "Q8Flat" else group_size
    groups = w.reshape(-1, int(group_size))
    scales = (np.abs(groups).max(axis=1) / np.float32(127)).astype(np.float32)
    return Int8Matrix(np.rint(groups / scales[:, None]).astype(np.int8).reshape(w.shape), scales, int(group_size))


def widened(tensor: Tensor) -> Tensor:
    """As the CPU backend holds it: float16 as float32."""
    return tensor if isinstance(tensor, Int8Matrix) else tensor.astype(np.float32)


def tolerance_of(*kinds: str) -> float:
    return TOLERANCE_F16 if {"F16", "__half"} & set(kinds) else TOLERANCE_F32


def upload_rows(device: Device, rows: Floats) -> DeviceArray:
    """[n, width] as kernels read it: zeros after each row, NaN before the first and after the last."""
    out = np.zeros((rows.shape[0], padded(rows.shape[1])), np.float32)
    out[:, : rows.shape[1]] = rows
    return device.upload(out)


def appended(device: Device, cache: DeviceArray, start: int, n: int, head_dim: int) -> NDArray[Any]:
    """Positions start ... start + n of keys or values that were unwritten before; nothing else may be written."""
    host = download_rows(device, cache, head_dim)
    assert np.isnan(host[:, :start]).all(), "wrote before its position"
    assert np.isnan(host[:, start + n :]).all(), "wrote after its position"
    return host[:, start : start + n]


def unwritten(device: Device, *shape: int, dtype: type = np.float32) -> DeviceArray:
    """Memory for results: NaN, so that a number that is never written is seen."""
    return device.upload(np.full(shape, -1, f"i{np.dtype(dtype).itemsize}").view(dtype))


def download_rows(device: Device, rows: DeviceArray, width: int) -> NDArray[Any]:
    """The rows without their padding, which must hold zeros or what was there before."""
    host = device.download(rows)
    padding = host[..., width:]
    assert (np.isnan(padding) | (padding == 0)).all(), "a kernel wrote to the padding of its rows"
    return host[..., :width]
