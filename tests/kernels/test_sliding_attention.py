"""kernels/sliding_attention.cu against backends/cpu/sliding_attention.py."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.sliding_attention import sliding_attention
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


def case(n: int, n_heads: int, head_dim: int) -> Case:
    dim = n_heads * head_dim
    qkv = random(n, 3 * dim)

    def run(device: Device) -> Arrays:
        y = unwritten(device, n, padded(dim))
        launches.sliding_attention(device, upload_rows(device, qkv), dim, n_heads, n, y)
        return {"y": download_rows(device, y, dim)}

    return Case(f"{n}, {n_heads} of {head_dim}", run, lambda: {"y": sliding_attention(qkv, n_heads)}, TOLERANCE_F32)


# one token, less than a row for each, exactly, W of 2 and 3 with a last row that is part zeros, and of 4
SIZES = (
    (1, 1, 4), (2, 2, 8), (9, 3, 20), (100, 2, 33), (255, 1, 12), (256, 2, 8), (257, 2, 12), (511, 1, 8), (512, 1, 4),
    (600, 2, 24), (1000, 1, 96), (1024, 1, 8),
)  # fmt: skip
CASES = [case(*sizes) for sizes in SIZES]
SMALL = [case(9, 2, 5), case(300, 1, 3)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


def test_the_twin_is_softmax_over_256_rows() -> None:
    """Of one token: itself, and 255 rows of zeros."""
    qkv = random(1, 12)
    q, k, v = qkv.reshape(3, 4)
    share = np.exp(q @ k / 2) / (np.exp(q @ k / 2) + 255)
    np.testing.assert_allclose(sliding_attention(qkv, 1)[0], share * v, rtol=1e-5)
