"""``bench`` with a recurrent model, whose state takes the place of keys and values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamagpu.backends.cpu import CPUBackend
from llamagpu.backends.cuda import CUDABackend
from llamagpu.backends.cuda.device import Device
from llamagpu.bench import measure
from llamagpu.bench_shapes import random_checkpoint
from tests.test_bench import SETTINGS, check_arithmetic


def test_a_recurrent_model(device: Device) -> None:
    """Its weights are read once a token, its state is read and written, wherever the token stands."""
    checkpoint = random_checkpoint("tiny-rwkv", 16, 16, 128, 4096, 0)
    layers, dim, heads, hidden, ranks = 2, 64, 4, 256, (8, 8, 8, 16)
    matrices = layers * (4 * dim * dim + 2 * dim * hidden + 2 * dim * sum(ranks)) - 2 * dim * ranks[2] + 128 * dim
    vectors = layers * (16 + 3) * dim - dim + 4 * dim  # x, w0, a0, v0, k_k, k_a, r_k and norms; no v0 in the first
    state = 2 * 4 * layers * (2 * dim + heads * 16 * 16)
    for backend, size in ((CPUBackend(), 4), (CUDABackend(device), 2)):
        with_kernels = isinstance(backend, CUDABackend)
        measured = measure(checkpoint, backend, replace(SETTINGS, kernels=with_kernels))
        check_arithmetic(measured)
        assert [row.kv_bytes for row in measured.decode] == [state] * 2
        rows = [row.weight_bytes for row in measured.decode]
        assert rows[0] == rows[1]
        assert rows[0] == pytest.approx(size * matrices + 4 * vectors + size * dim, rel=0.02)  # padding, tables
        if with_kernels:
            assert measured.kernels is not None
            kernels = {row.kernel.partition("<")[0] for row in measured.kernels}
            assert {"wkv7", "norm_shift_mix", "linear_group", "linear_squared_relu"} <= kernels
