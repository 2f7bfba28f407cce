"""kernels/grouped_attention.cu against backends/cpu/grouped_attention.py."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.grouped_attention import grouped_attention
from llamagpu.backends.cuda import micro_rwkv_launches as launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded
from tests.kernels.harness import (
    TOLERANCE_F32,
    Arrays,
    Case,
    download_rows,
    random,
    twin_tests,
    unwritten,
    upload_rows,
)


def case(n: int, n_heads: int, d: int) -> Case:
    dim = launches.GROUPS * n_heads * d
    qkvw = random(n, 4 * dim)

    def run(device: Device) -> Arrays:
        y = unwritten(device, n, padded(dim))
        launches.grouped_attention(device, upload_rows(device, qkvw), dim, n_heads, n, y)
        return {"y": download_rows(device, y, dim)}

    return Case(f"{n}, {n_heads} of {d}", run, lambda: {"y": grouped_attention(qkvw, n_heads)}, TOLERANCE_F32)


SIZES = (
    (1, 1, 1), (1, 4, 3), (2, 3, 5), (7, 8, 24), (20, 4, 6), (33, 2, 1), (50, 12, 2), (130, 5, 7), (257, 3, 4),
    (3, 20, 9),
)  # fmt: skip
CASES = [case(*sizes) for sizes in SIZES]
SMALL = [case(5, 3, 2), case(2, 13, 10)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


def test_the_twin_of_one_head_is_values_times_w() -> None:
    """A head that sees itself alone: the views are then the channels as they lie, a group after another."""
    qkvw = random(3, 32)
    values, w = qkvw.reshape(3, 4, 4, 2)[:, :, 2], qkvw.reshape(3, 4, 4, 2)[:, :, 3]
    expected = (values * w).transpose(1, 0, 2).reshape(3, 8)
    np.testing.assert_allclose(grouped_attention(qkvw, 1), expected, rtol=1e-6)
