"""What the tests of all kernel families share: a case, and the ways it is put to the proof.

A case runs a kernel on a device and its NumPy twin on the same numbers. Every case runs against its twin, twice; the
few that a family names as small also run in random orders of threads and blocks and in the emulator's checking build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cpu.split_bf16 import joined, place_in_split, split_bf16
from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.matrix import DeviceMatrix, padded, tile_kind, tiled
from llamagpu.backends.cuda.vectors import Target, Vectors
from llamagpu.checkpoint import Tensor
from llamagpu.quantization import AffineQuant
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


# of the kinds of kernels/tiles.cuh
GROUPS = {"": 128, "Short": 32, "Shortest": 16, "F": 64, "Offset": 32, "OffsetShortest": 16}
FLOAT_TYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def random_tensor(
    kind: str, out_features: int, in_features: int, seed: int = 0, group_size: int = 0, permuted: bool = False
) -> Tensor:
    """A weight of one of the kinds of kernels/weights.cuh and tiles.cuh. group_size: 0 for one of the kind."""
    w = random(out_features, in_features, seed=seed) / np.float32(np.sqrt(in_features))
    if kind in FLOAT_TYPES:
        floats: NDArray[Any] = w.astype(FLOAT_TYPES[kind])
        return floats
    bits = int(kind[1])
    group_size = group_size or GROUPS[kind[2:]]
    n_groups, has_offsets = -(-in_features // group_size), "Offset" in kind
    generator = np.random.default_rng([seed, out_features, in_features, bits])
    q = generator.integers(0, 2**bits, w.shape)
    zeros = generator.integers(0, 2**bits + 1, (out_features, n_groups))  # GPTQ's can be 2^bits
    scales = (generator.random((out_features, n_groups)) + 0.5) / (2**bits * in_features**0.5)
    scales = scales.astype(np.float32 if kind.endswith("F") or has_offsets else np.float16)
    if has_offsets:
        zeros = -scales * zeros * np.float32(1.1)
    perm = generator.permutation(in_features) if permuted else None
    return AffineQuant.pack(q, scales, zeros, bits, group_size, perm, has_offsets)


def kind_of(tensor: Tensor) -> str:
    """What kernels call it."""
    if isinstance(tensor, AffineQuant):
        wide = tensor.params.dtype == np.float32
        return tile_kind(tensor.bits, wide, tensor.group_size, tensor.shape[1], tensor.has_offsets)
    assert isinstance(tensor, np.ndarray)
    return next(kind for kind, dtype in FLOAT_TYPES.items() if tensor.dtype == dtype)


def widened(tensor: Tensor) -> Floats:
    """As float32, by the definition of its type, columns in order."""
    if isinstance(tensor, AffineQuant):
        dense = tensor.dequantize()
        if tensor.perm is not None:
            dense[:, tensor.perm] = dense.copy()
        return dense
    assert isinstance(tensor, np.ndarray)
    return tensor.astype(np.float32)


def upload_vectors(
    device: Device, x: Floats, reader: DeviceMatrix, squares: Floats | None = None, eps: float = 1e-5
) -> Vectors:
    """Vectors in the form that a matrix reads. squares: [n, any number] of them, where a norm is before the product."""
    if reader.tiled:
        place = None if reader.place is None else device.download(reader.place)
        data = device.upload(split_bf16(x, place).reshape(len(x), -1))
    else:
        data = upload_rows(device, x)
    if squares is None:
        return Vectors(data)
    return Vectors(data, device.upload(np.ascontiguousarray(squares.reshape(-1))), squares.shape[1], eps)


class Written:
    """A target for a kernel to write to, and the vectors that are read back from it."""

    def __init__(self, device: Device, form: str, n: int, width: int, permuted: bool = False, **rest: Any) -> None:
        """form: "rows" or "split"."""
        self.device, self.n, self.width = device, n, width
        self.order = np.random.default_rng(width).permutation(width).astype(np.int32) if permuted else None
        place = None if self.order is None else device.upload(self.order)
        if form == "rows":
            self.target = Target(rows=unwritten(device, n, padded(width)), place=place, **rest)
        else:
            self.target = Target(split=unwritten(device, n, 2 * tiled(width), dtype=np.uint16), place=place, **rest)

    def read(self) -> Floats:
        if self.target.rows is not None:
            rows = download_rows(self.device, self.target.rows, self.width)
            return rows if self.order is None else rows[:, self.order]
        split = self.device.download(self.target.split).reshape(self.n, 2, tiled(self.width))
        at = place_in_split(np.arange(tiled(self.width)))
        assert (split[..., at][..., self.width :] == 0xFFFF).all(), "a kernel wrote to the padding of its vectors"
        return joined(split, self.width, self.order)


def tolerance_of(*kinds: str) -> float:
    return TOLERANCE_F16 if {"F16", "__half"} & set(kinds) else TOLERANCE_F32  # quantised: asked are 5e-4


def upload_rows(device: Device, rows: Floats) -> DeviceArray:
    """[n, width] as kernels read it: zeros after each row, NaN before the first and after the last."""
    out = np.zeros((rows.shape[0], padded(rows.shape[1])), np.float32)
    out[:, : rows.shape[1]] = rows
    return device.upload(out)


def appended(device: Device, cache: DeviceArray, start: int, n: int, head_dim: int) -> NDArray[Any]:
    """Positions start ... start + n of keys or values that were unwritten before; nothing else may be written."""
    host = download_rows(device, cache, head_dim)
    untouched = host == -1 if host.dtype == np.int8 else np.isnan(host)
    assert untouched[:, :start].all(), "wrote before its position"
    assert untouched[:, start + n :].all(), "wrote after its position"
    return host[:, start : start + n]


def unwritten(device: Device, *shape: int, dtype: type = np.float32) -> DeviceArray:
    """Memory for results: NaN, so that a number that is never written is seen."""
    return device.upload(np.full(shape, -1, f"i{np.dtype(dtype).itemsize}").view(dtype))


def download_rows(device: Device, rows: DeviceArray, width: int) -> NDArray[Any]:
    """The rows without their padding, which must hold zeros or what was there before."""
    host = device.download(rows)
    padding = host[..., width:]
    unset = padding == -1 if padding.dtype == np.int8 else np.isnan(padding)
    assert (unset | (padding == 0)).all(), "a kernel wrote to the padding of its rows"
    return host[..., :width]
