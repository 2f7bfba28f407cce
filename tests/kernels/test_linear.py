"""kernels/linear.cu against backends/cpu/linear.py: all types of weights, with a norm before and a residual behind."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu import CPUBackend
from llamagpu.backends.cpu.linear import linear
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import FLOATS, TILES, WEIGHTS
from llamagpu.backends.cuda.matrix import padded, upload_matrix, upload_vector
from llamagpu.checkpoint import Tensor
from tests.kernels.harness import (
    Arrays,
    Case,
    Floats,
    Written,
    download_rows,
    kind_of,
    random,
    random_tensor,
    tolerance_of,
    twin_tests,
    unwritten,
    upload_rows,
    upload_vectors,
    widened,
)

EPS = 1e-5


def squares_of(x: Floats, n_squares: int) -> Floats:
    """Sums of squares of parts of each row, as a writer leaves them: [n, n_squares]."""
    parts = np.array_split(np.square(x), n_squares, axis=1)
    return np.stack([part.sum(axis=1) for part in parts], axis=1)


def name_of(w: Tensor, n: int) -> str:
    group_size = getattr(w, "group_size", 0)
    act_order = " act-order" * (getattr(w, "perm", None) is not None)
    return f"{kind_of(w)} {w.shape[0]}x{w.shape[1]} n={n}" + f" group {group_size}" * bool(group_size) + act_order


def case(w: Tensor, n: int, n_squares: int = 0, first: int = 0, step: int = 1) -> Case:
    """n_squares: 0 for a product with no norm before it."""
    out_features, in_features = w.shape
    x, norm = random(n, in_features, seed=1) * np.float32(3), random(in_features, seed=2)
    width = first + step * out_features

    def run(device: Device) -> Arrays:
        y, matrix = unwritten(device, n, padded(width)), upload_matrix(device, w)
        squares = squares_of(x, n_squares) if n_squares else None
        vectors = upload_vectors(device, x * norm if n_squares else x, matrix, squares, EPS)
        launches.linear(device, matrix, vectors, n, y, width, first, step)
        rows = download_rows(device, y, width)
        others = np.delete(rows, first + step * np.arange(out_features), axis=1)
        assert np.isnan(others).all(), "wrote between its outputs"
        return {"y": rows[:, first::step][:, :out_features]}

    def twin() -> Arrays:
        return {"y": linear(rmsnorm(x, norm, EPS) if n_squares else x, widened(w))}

    name = name_of(w, n) + f" normed {n_squares}" * bool(n_squares) + f" to {first} + {step} i" * (step > 1)
    return Case(name, run, twin, tolerance_of(kind_of(w)))


def add_case(
    w: Tensor, n: int, form: str = "split", permuted: bool = False, normed: bool = True, biased: bool = False
) -> Case:
    """linear_add, for a reader that wants rows or halves, in order or not."""
    out_features, in_features = w.shape
    x, residual, norm = random(n, in_features, seed=1), random(n, out_features, seed=2), random(out_features, seed=3)
    bias = random(out_features, seed=4) if biased else None

    def run(device: Device) -> Arrays:
        matrix, on_device = upload_matrix(device, w), upload_rows(device, residual)
        n_squares = launches.n_squares(matrix)
        squares = unwritten(device, n * n_squares)
        weight = upload_vector(device, norm) if normed else None
        written = Written(device, form, n, out_features, permuted, norm=weight, squares=squares)
        added = None if bias is None else upload_vector(device, bias)
        launches.linear_add(device, matrix, upload_vectors(device, x, matrix), n, on_device, written.target, added)
        return {
            "residual": download_rows(device, on_device, out_features),
            "vectors": written.read(),
            "squares": device.download(squares).reshape(n, n_squares).sum(axis=1),
        }

    def twin() -> Arrays:
        y = CPUBackend().linear_add(residual.copy(), x, widened(w), bias)
        return {"residual": y, "vectors": y * norm if normed else y, "squares": np.square(y).sum(axis=1)}

    name = f"add {name_of(w, n)} to {form}{' permuted' * permuted}{' no norm' * (not normed)}{' biased' * biased}"
    return Case(name, run, twin, tolerance_of(kind_of(w)))


def weight(kind: str, out_features: int, in_features: int, group_size: int = 0, permuted: bool = False) -> Tensor:
    return random_tensor(kind, out_features, in_features, group_size=group_size, permuted=permuted)


SIZES = {"F32": ((1, 1), (17, 100), (9, 515)), "F16": ((2, 8), (17, 100), (9, 1030)), "BF16": ((2, 8), (9, 1030))}
TILE_SIZES = ((1, 1), (17, 100), (70, 272))
NS = (1, 2, 3, 4, 5, 6, 7, 8)
CASES = [case(weight(kind, *size), n) for kind in FLOATS for size in SIZES[kind] for n in NS]
CASES += [case(weight(kind, *size), n) for kind in TILES for size in TILE_SIZES for n in NS]
CASES += [
    case(weight(f"Q{bits}", 33, 520, group_size, permuted), n)
    for bits in (4, 8)
    for group_size in (16, 32, 64, 128, 256, 520)
    for permuted in (False, True)
    for n in (1, 6)
]
CASES += [case(weight(kind, 13, 65), n) for kind in WEIGHTS for n in (9, 16, 19)]
CASES += [case(weight(kind, 35, 300), n, n_squares) for kind in WEIGHTS for n, n_squares in ((1, 1), (3, 40), (8, 2))]
CASES += [
    case(weight(kind, 21, 64), n, 0, first, step) for kind in WEIGHTS for n, first, step in ((1, 5, 1), (3, 1, 2))
]
CASES += [case(weight("F16", 5, 4096), 1), case(weight("F32", 4, 2048), 1), case(weight("F16", 300, 32), 2)]
CASES += [case(weight("Q4", 32, 4096), 1), case(weight("Q4", 4, 11008), 1), case(weight("Q8", 3, 4096), 2)]
CASES += [
    add_case(weight(kind, 37, 96), n, form, permuted)
    for kind in WEIGHTS
    for n, form, permuted in ((1, "split", False), (3, "rows", False), (8, "split", True), (2, "rows", True))
]
CASES += [
    add_case(weight(kind, *size), n, form, biased=True)
    for kind in WEIGHTS
    for size in ((1, 1), (37, 96), (70, 130))
    for n, form in ((1, "split"), (8, "rows"), (11, "split"))
]
CASES += [add_case(weight("Q4", 70, 130, permuted=True), 11), add_case(weight("F16", 70, 130), 11, normed=False)]

SMALL = [case(weight(kind, 11, 35), n) for kind in FLOATS for n in (1, 3, 10)]
SMALL += [case(weight(kind, 34, 1200 if kind == "Q4" else 140), n) for kind in TILES for n in (1, 5)]
SMALL += [case(weight("F16", 10, 40), 2)]  # the first row that is not there begins a pair
SMALL += [case(weight("F32", 3, 1100), 1), case(weight("Q4", 33, 3300), 9), case(weight("Q8", 33, 1100), 1)]
SMALL += [case(weight(kind, 7, 40), n, 40, 2, 3) for kind in ("F32", "Q4", "Q8F") for n in (1, 10)]
SMALL += [case(weight(kind, 15, 20), 2, 0, 1, 1) for kind in ("F32", "Q4")]  # an odd row ends where the next begins
SMALL += [
    add_case(weight(kind, 37, 70), n, form, n == 5)
    for kind in ("F32", "Q4")
    for n in (1, 5)
    for form in ("rows", "split")
]
SMALL += [
    add_case(weight(kind, out, 70), n, biased=True) for kind in ("F32", "Q4") for out in (15, 16) for n in (1, 10)
]
SMALL += [add_case(weight(kind, out, 20), 10) for kind in ("F16", "Q4Short") for out in (8, 9, 32)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
