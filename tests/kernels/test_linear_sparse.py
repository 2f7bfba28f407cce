"""kernels/linear_sparse.cu against backends/cpu/linear_sparse.py, and that against the dense product."""

from __future__ import annotations

import numpy as np
import pytest

from llamagpu.backends.cpu.linear_sparse import linear_sparse
from llamagpu.backends.cuda import wkv_launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import FLOATS
from llamagpu.backends.cuda.matrix import upload_matrix
from tests.kernels.harness import (
    Arrays,
    Case,
    Floats,
    download_rows,
    error,
    random,
    random_tensor,
    tolerance_of,
    twin_tests,
    upload_rows,
    widened,
)

CHUNK = 4096  # kernels/linear_sparse.cu


def activations(hidden: int, share: float) -> Floats:
    """As a squared ReLU leaves them, with a share of zeros."""
    h = np.square(random(1, hidden, seed=1))
    h[random(1, hidden, seed=2) < np.quantile(random(1, hidden, seed=2), share)] = 0
    return h if share < 1 else np.zeros_like(h)


def case(kind: str, hidden: int, dim: int, share: float, h: Floats | None = None) -> Case:
    w_t, residual = random_tensor(kind, hidden, dim), random(1, dim, seed=3)
    x = activations(hidden, share) if h is None else h

    def run(device: Device) -> Arrays:
        on_device = upload_rows(device, residual)
        wkv_launches.linear_sparse(device, upload_matrix(device, w_t), upload_rows(device, x), on_device)
        return {"residual": download_rows(device, on_device, dim)}

    def twin() -> Arrays:
        return {"residual": residual + linear_sparse(x, widened(w_t))}

    name = f"{kind} {hidden}x{dim}, {np.count_nonzero(x)} of them"
    return Case(name, run, twin, tolerance_of(kind))


def one_of(hidden: int, k: int) -> Floats:
    h = np.zeros((1, hidden), np.float32)
    h[0, k] = -3
    return h


SIZES = ((1, 1), (7, 20), (129, 16), (600, 33), (1000, 100), (3, 200))
CASES = [case(kind, *sizes, share) for kind in FLOATS for sizes in SIZES for share in (0.0, 0.5, 0.9, 1.0)]
CASES += [case(kind, CHUNK + 900, 40, share) for kind in FLOATS for share in (0.0, 0.9)]
CASES += [case("F32", 2 * CHUNK, 18, 0.8), case("BF16", CHUNK, 20, 0.0), case("F16", CHUNK + 1, 8, 0.5)]
CASES += [case("F16", 5000, 24, 0, one_of(5000, k)) for k in (0, 255, 256, CHUNK - 1, CHUNK, 4999)]
SMALL = [case(kind, 700, 34, 0.2) for kind in FLOATS]
SMALL += [case("F16", 600, 34, 0), case("F16", 40, 16, 0), case("F32", 608, 20, 0.5), case("F32", 600, 20, 0)]
SMALL += [case("BF16", CHUNK + 20, 40, 0.5), case("F16", 9, 5, 1), case("F32", 1, 1, 0)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_the_twin_is_the_dense_product(share: float) -> None:
    w_t, h = random(4000, 50), activations(4000, share)  # two blocks of rows, where none is zero
    assert error(linear_sparse(h, w_t), h.astype(np.float64) @ w_t) <= 1e-12
