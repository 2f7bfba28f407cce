"""kernels/linear_group.cu against backends/cpu/linear.py: several matrices of one type, or of several, at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest

from llamagpu.backends.cpu.linear import linear, linear_group
from llamagpu.backends.cpu.split_bf16 import split_bf16
from llamagpu.backends.cuda import CUDABackend, launches, recurrent_launches
from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.kernels import FLOATS, TILES, WEIGHTS
from llamagpu.backends.cuda.matrix import padded
from llamagpu.backends.cuda.matrix_group import MatrixGroup, upload_group
from llamagpu.backends.recurrent import Activation, Segment
from llamagpu.checkpoint import Tensor
from llamagpu.errors import UsageError
from llamagpu.quantization import RandomMatrix
from tests.emulated_device import EmulatedDevice
from tests.kernels.harness import (
    Arrays,
    Case,
    Floats,
    download_rows,
    needs_emulator,
    random,
    random_tensor,
    tolerance_of,
    twin_tests,
    unwritten,
    upload_rows,
    upload_vectors,
    widened,
)


class Shape(NamedTuple):
    """A segment to be made up."""

    kind: str
    out_features: int
    source: int
    activation: Activation = Activation.NONE
    biased: bool = False

    def segment(self, source_widths: Sequence[int], seed: int) -> Segment:
        w = random_tensor(self.kind, self.out_features, source_widths[self.source], seed=seed)
        bias = random(1, self.out_features, seed=seed)[0] if self.biased else None
        return Segment(w, self.source, self.activation, bias)


def upload_bundle(device: Device, vectors: Sequence[Floats]) -> tuple[DeviceArray, DeviceArray]:
    """As rows and split: vector after vector, of all tokens each."""
    rows = [np.pad(x, ((0, 0), (0, padded(x.shape[1]) - x.shape[1]))).reshape(-1) for x in vectors]
    split = [split_bf16(x, None).reshape(-1) for x in vectors]
    return device.upload(np.concatenate(rows)), device.upload(np.concatenate(split))


def outputs(device: Device, group: MatrixGroup, y: DeviceArray, n: int) -> dict[str, Floats]:
    ends = [segment.out_prefix for segment in group.segments[1:]] + [group.out_width]
    found = {}
    for i, (segment, end) in enumerate(zip(group.segments, ends, strict=True)):
        own = y[n * segment.out_prefix : n * end].reshape(n, -1)
        found[f"y{i}"] = download_rows(device, own, segment.matrix.out_features)
    return found


def case(shapes: Sequence[Shape], source_widths: Sequence[int], n: int) -> Case:
    segments = [shape.segment(source_widths, seed) for seed, shape in enumerate(shapes)]
    vectors = [random(n, width, seed=20 + i) for i, width in enumerate(source_widths)]

    def run(device: Device) -> Arrays:
        group = upload_group(device, segments, source_widths)
        rows, split = upload_bundle(device, vectors)
        y = unwritten(device, n * group.out_width)
        recurrent_launches.linear_group(device, group, rows, split, n, y)
        return outputs(device, group, y, n)

    def twin() -> Arrays:
        products = [(vectors[s.source], widened(s.tensor), s.activation, s.bias) for s in segments]
        return {f"y{i}": y for i, y in enumerate(linear_group(products))}

    kinds = dict.fromkeys(shape.kind for shape in shapes)
    name = f"{' '.join(kinds)} {len(shapes)} to {'+'.join(map(str, source_widths))} n={n}"
    return Case(name, run, twin, tolerance_of(*kinds))


def several(kind: str) -> list[Shape]:
    """Matrices of different sizes that read different vectors; one begins and ends within a pair of rows."""
    return [
        Shape(kind, 35, 0, Activation.TANH),
        Shape(kind, 1, 2, Activation.SIGMOID, True),
        Shape(kind, 16, 1, biased=True),
        Shape(kind, 70, 2, Activation.DECAY6, True),
        Shape(kind, 9, 0),
    ]


NS = (1, 2, 3, 4, 5, 6, 7, 8, 9)
CASES = [case(several(kind), (70, 40, 300), n) for kind in WEIGHTS for n in NS]
CASES += [
    case([Shape(kind, 40, 0, activation, i % 2 > 0) for i, activation in enumerate(Activation)], (96,), n)
    for kind in ("F32", "Q4")
    for n in (1, 6)
]
CASES += [case([Shape(kind, 1, 0)], (1,), 1) for kind in (*FLOATS, "Q4")]
# as of RWKV-7: 4-bit matrices beside small ones of float16
MIXED = [Shape("Q4", 130, 0), Shape("F16", 24, 1, Activation.TANH), Shape("Q4", 130, 2), Shape("Q8F", 33, 1)]
MIXED += [Shape("F16", 8, 3, Activation.DECAY7, True), Shape("Q4", 130, 3, Activation.SIGMOID)]
CASES += [case(MIXED, (130, 130, 130, 130), n) for n in (1, 4, 5, 13)]
CASES += [
    case([Shape(kind, 300, 0), Shape(kind, 20, 1)], (1030, 2100), n) for kind in ("F16", "Q4", "Q8") for n in (1, 8)
]

SMALL = [case(several(kind), (35, 16, 140), n) for kind in ("F32", "F16", "Q4", "Q8Shortest") for n in (1, 10)]
SMALL += [case([Shape("Q4", 33, 1, biased=True), Shape("F32", 33, 1, biased=True)], (16, 20), 5)]
SMALL += [case([Shape(kind, 8, 0, biased=True), Shape(kind, 10, 0, biased=True)], (20,), 2) for kind in FLOATS]
SMALL += [case([Shape(kind, 32, 0, biased=True), Shape(kind, 16, 0, biased=True)], (20,), 2) for kind in ("Q4", "F32")]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_each_matrix_of_a_group_is_one_for_other_kernels_too(kind: str, device: Device) -> None:
    """Few tokens and a prompt, by the kernels of one matrix."""
    widths = (70, 40, 300)
    segments = [shape.segment(widths, seed) for seed, shape in enumerate(several(kind))]
    group = upload_group(device, segments, widths)
    backend = CUDABackend(device)
    for segment, own in zip(segments, group.segments, strict=True):
        x = random(11, own.matrix.in_features)
        expected, out = linear(x, widened(segment.tensor)), own.matrix.out_features
        few, many = unwritten(device, 3, padded(out)), unwritten(device, 11, padded(out))
        launches.linear(device, own.matrix, upload_vectors(device, x[:3], own.matrix), 3, few, out)
        backend.product(upload_rows(device, x), 11, own.matrix, many, out)
        assert download_rows(device, few, out) == pytest.approx(expected[:3], rel=1e-2, abs=1e-3)
        assert download_rows(device, many, out) == pytest.approx(expected, rel=1e-2, abs=1e-3)
        assert (own.bias is None) == (segment.bias is None)
        if own.bias is not None and segment.bias is not None:
            assert (device.download(own.bias)[:out] == segment.bias).all()


@needs_emulator
def test_a_group_knows_its_launches_and_bytes() -> None:
    widths = (130, 130, 130, 130)
    device = EmulatedDevice()
    group = upload_group(device, [shape.segment(widths, 0) for shape in MIXED], widths)
    assert [launch.kind for launch in group.launches] == ["Q4", "F16", "Q8F"]
    assert [launch.table.shape for launch in group.launches] == [(15, 12), (4, 12), (2, 12)]
    assert group.nbytes == sum(
        launch.data.nbytes + (0 if launch.params is None else launch.params.nbytes) for launch in group.launches
    )
    assert group.out_width == 3 * padded(130) + padded(24) + padded(33) + padded(8)
    assert upload_group(device, [Shape("F32", 3, 0).segment(widths, 0)], widths).bias is None


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_random_matrices_go_into_groups(bits: int, device: Device) -> None:
    matrices = [RandomMatrix(50, 96, bits, 32, seed) for seed in (1, 2)]
    tensors: list[Tensor] = [matrix.materialize() for matrix in matrices]
    group = upload_group(device, [Segment(matrix, 0) for matrix in matrices], (96,))
    x, y = random(2, 96), unwritten(device, 2 * group.out_width)
    recurrent_launches.linear_group(device, group, *upload_bundle(device, [x]), 2, y)
    for tensor, got in zip(tensors, outputs(device, group, y, 2).values(), strict=True):
        assert got == pytest.approx(linear(x, widened(tensor)), rel=1e-2, abs=1e-3)


@needs_emulator
def test_act_order_is_refused() -> None:
    w = random_tensor("Q4", 20, 256, permuted=True)
    with pytest.raises(UsageError, match="act-order"):
        upload_group(EmulatedDevice(), [Segment(w, 0)], (256,))
    assert set(TILES) < set(WEIGHTS)
