"""Offsets past 2^31 elements: the embedding of a large vocabulary, keys and values of a long context.

Arrays of many gigabytes stand in sparse files, of which only the pages that are touched exist. Each case asks for
results that lie past element 2^31 of an array; where that takes a grid of many blocks, only the last of them are run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention import attention
from llamagpu.backends.cpu.attention_window import Ring, attention_window
from llamagpu.backends.cpu.kv_int8 import quantize_rows, widen_rows
from llamagpu.backends.cpu.linear import linear
from llamagpu.backends.cpu.rope import rope
from llamagpu.backends.cuda import launches, wkv_launches
from llamagpu.backends.cuda.kernels import FLOATS, KV_TYPES
from llamagpu.backends.cuda.matrix import DeviceMatrix, padded, pair_order
from llamagpu.backends.cuda.vectors import Target, Vectors
from llamagpu.config import ModelConfig
from tests.emulated_device import EmulatedDevice
from tests.kernels.harness import (
    TOLERANCE_F16,
    Floats,
    download_rows,
    error,
    needs_emulator,
    random,
    unwritten,
    upload_rows,
)
from tests.kernels.test_attention_window import angles as angles_of
from tests.kernels.test_attention_window import side_by_side, turned_in_cache
from tests.kernels.test_qkv_rope import DTYPES, FLOAT_KV, heads

pytestmark = needs_emulator

PAST = 1 << 31  # elements
DIM = 4096
ROWS = 6  # the last of a matrix, which lie past them
N_ROWS = PAST // DIM + ROWS
HEAD_DIM = 64
KEPT = 40  # the last positions of a cache, which lie past them within each key head
CAPACITY = PAST // HEAD_DIM + KEPT

Pair = tuple[NDArray[Any], NDArray[Any]]


@pytest.fixture
def sparse() -> EmulatedDevice:
    device = EmulatedDevice()
    try:
        device.sparse((PAST, 4), np.float32)
    except OSError as error:
        pytest.skip(f"no sparse file of 32 GB can be had: {error}")
    return device


def stored(values: Floats, kind: str) -> NDArray[Any]:
    """As a float matrix of the device; NumPy's bfloat16 goes as its bits."""
    bits: NDArray[Any] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return bits if kind == "BF16" else values.astype({"F32": np.float32, "F16": np.float16}[kind])


def widened(rows: NDArray[Any], kind: str) -> Floats:
    return np.asarray(rows.view(ml_dtypes.bfloat16) if kind == "BF16" else rows, np.float32)


def tall_matrix(device: EmulatedDevice, kind: str, width: int = DIM) -> tuple[DeviceMatrix, Floats]:
    """A matrix [.., width] whose last ROWS lie past element 2^31, zeros but for these, and these."""
    rows, n_rows = stored(random(ROWS, width), kind), PAST // width + ROWS
    data = device.sparse((n_rows, width), rows.dtype)
    data[-ROWS:] = rows
    return DeviceMatrix(kind, data, None, 0, n_rows, width), widened(rows, kind)


@pytest.mark.parametrize("kind", FLOATS)
def test_embedding(kind: str, sparse: EmulatedDevice) -> None:
    table, rows = tall_matrix(sparse, kind)
    x = unwritten(sparse, ROWS, DIM)
    tokens = sparse.upload(np.arange(N_ROWS - ROWS, N_ROWS, dtype=np.int32))
    launches.embedding(sparse, table, tokens, ROWS, x, Target())
    np.testing.assert_array_equal(sparse.download(x), rows)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("kind", FLOATS)
def test_linear(kind: str, n: int, sparse: EmulatedDevice) -> None:
    """The head of a large vocabulary."""
    w, rows = tall_matrix(sparse, kind)
    x = random(n, DIM, seed=1)
    y = sparse.sparse((n, padded(N_ROWS)), np.float32)
    sparse.last_blocks = 1
    launches.linear(sparse, w, Vectors(upload_rows(sparse, x)), n, y, N_ROWS)
    assert error(y[:, N_ROWS - ROWS : N_ROWS], linear(x, rows)) <= TOLERANCE_F16


@pytest.mark.parametrize("kind", FLOATS)
def test_linear_prompt(kind: str, sparse: EmulatedDevice) -> None:
    n, (w, rows) = 9, tall_matrix(sparse, kind)
    x = random(n, DIM, seed=1)
    y = sparse.sparse((n, padded(N_ROWS)), np.float32)
    high, low = (unwritten(sparse, n, padded(DIM), dtype=np.float16) for _ in range(2))
    inverse_scales = unwritten(sparse, n)
    launches.split_halves(sparse, upload_rows(sparse, x), DIM, n, high, low, inverse_scales)
    sparse.last_blocks = 1
    launches.linear_prompt(sparse, w, high, low, inverse_scales, n, y, N_ROWS)
    assert error(y[:, N_ROWS - ROWS : N_ROWS], linear(x, rows)) <= TOLERANCE_F16


@pytest.mark.parametrize("kind", FLOATS)
def test_linear_sparse(kind: str, sparse: EmulatedDevice) -> None:
    """With few and long rows: each block looks at all of them, for a few columns."""
    width, n_compared = 1 << 20, 16
    w_t, rows = tall_matrix(sparse, kind, width)
    h = sparse.sparse((1, padded(w_t.out_features)), np.float32)
    h[0, w_t.out_features - ROWS : w_t.out_features] = np.arange(1, ROWS + 1)
    residual = random(1, width, seed=2)
    on_device = upload_rows(sparse, residual)
    sparse.last_blocks = 1
    wkv_launches.linear_sparse(sparse, w_t, h, on_device)
    expected = residual + np.arange(1, ROWS + 1, dtype=np.float32) @ rows
    got = download_rows(sparse, on_device, width)
    assert error(got[:, -n_compared:], expected[:, -n_compared:]) <= TOLERANCE_F16
    np.testing.assert_array_equal(got[:, : width // 2], residual[:, : width // 2])  # that block alone was run


class Cache:
    """Keys and values of two key heads, CAPACITY positions each: the last KEPT are there, or nothing is."""

    config = replace(heads(8, 4, 2, HEAD_DIM, "half_split"), max_seq_len=CAPACITY)

    def __init__(self, device: EmulatedDevice, kv: str, filled: bool) -> None:
        shape = (2, CAPACITY, HEAD_DIM)
        self.arrays: Pair = (device.sparse(shape, DTYPES[kv]), device.sparse(shape, DTYPES[kv]))
        scales = (device.sparse(shape[:2], np.float32), device.sparse(shape[:2], np.float32))
        self.scales: Pair | None = scales if kv == "signed char" else None
        self.floats: list[Floats] = []
        for i in range(2) if filled else ():
            rows = random(2, KEPT, HEAD_DIM, seed=3 + i)
            if self.scales:
                numbers, of_rows = quantize_rows(rows)
                self.arrays[i][:, -KEPT:], self.scales[i][:, -KEPT:] = numbers, of_rows
                self.floats.append(widen_rows(numbers, of_rows))
            else:
                self.arrays[i][:, -KEPT:] = rows.astype(DTYPES[kv])
                self.floats.append(self.arrays[i][:, -KEPT:].astype(np.float32))


def partial_results(device: EmulatedDevice, n: int) -> Pair:
    return unwritten(device, n, HEAD_DIM), unwritten(device, n, 2)


def merged(device: EmulatedDevice, config: ModelConfig, n: int, parts: Pair, n_splits: int) -> Floats:
    out = unwritten(device, n, padded(config.q_dim))
    launches.attention_merge(device, parts[0], parts[1], n, n_splits, config, Target(rows=out))
    return np.asarray(download_rows(device, out, config.q_dim))


@pytest.mark.parametrize("n", [1, 12], ids=["decode", "prompt"])
@pytest.mark.parametrize("kv", KV_TYPES)
def test_attention(kv: str, n: int, sparse: EmulatedDevice) -> None:
    """Of the last positions, which see only their neighbours: attention_decode for one, attention_split for many."""
    cache, n_splits, window = Cache(sparse, kv, filled=True), 2, KEPT - 12
    config, start = cache.config, CAPACITY - n
    q = random(n, config.q_dim)
    parts = partial_results(sparse, n_splits * n * config.n_heads)
    position = sparse.upload(np.asarray([start], np.int32))
    launches.attention_split(
        sparse, upload_rows(sparse, q), *cache.arrays, cache.scales, position, n, n_splits, config, window,
        *parts,
    )  # fmt: skip
    expected = attention(q.reshape(n, 4, HEAD_DIM), cache.floats[0], cache.floats[1], KEPT - n, window)
    assert error(merged(sparse, config, n, parts, n_splits), expected) <= TOLERANCE_F16


@pytest.mark.parametrize("kv", KV_TYPES)
def test_rope_append(kv: str, sparse: EmulatedDevice) -> None:
    cache, n = Cache(sparse, kv, filled=False), 9
    config, start = cache.config, CAPACITY - n
    order = pair_order(config)
    qkv = random(n, config.q_dim + 2 * config.kv_dim)
    turned = unwritten(sparse, n, padded(config.q_dim))
    angles = sparse.sparse((CAPACITY, HEAD_DIM), np.float32)
    cos, sin = np.split(random(n, HEAD_DIM, seed=9), 2, axis=1)  # of any angles: they are looked up
    angles[-n:] = np.concatenate([cos, sin], axis=1)
    launches.rope_append(
        sparse, upload_rows(sparse, qkv[:, order]), None, None, angles, sparse.upload(np.asarray([start], np.int32)),
        n, config, *cache.arrays, cache.scales, turned,
    )  # fmt: skip
    q, k, v = (part.reshape(n, -1, HEAD_DIM) for part in np.split(qkv, [config.q_dim, config.q_dim + config.kv_dim], 1))
    q, k = rope(q, cos, sin, config.rope_layout), rope(k, cos, sin, config.rope_layout)
    assert error(download_rows(sparse, turned, config.q_dim), q.reshape(n, -1)) <= TOLERANCE_F16
    for i, rows in enumerate((k.transpose(1, 0, 2), v.transpose(1, 0, 2))):
        got = cache.arrays[i][:, -n:]
        if cache.scales:
            numbers, scales = quantize_rows(rows)
            assert np.abs(got.astype(int) - numbers).max() <= 1  # a tie of its rounding may fall to the other side
            np.testing.assert_allclose(cache.scales[i][:, -n:], scales, rtol=1e-6)
        else:
            assert error(got.astype(np.float32), rows) <= TOLERANCE_F16


@pytest.mark.parametrize("kv", FLOAT_KV)
def test_qkv_rope(kv: str, sparse: EmulatedDevice) -> None:
    cache = Cache(sparse, kv, filled=False)
    config, start, order = cache.config, CAPACITY - 1, pair_order(cache.config)
    w, x = random(len(order), config.dim), random(1, config.dim, seed=1)
    padded_rows = np.zeros((len(order), padded(config.dim)), np.float32)
    padded_rows[:, : config.dim] = w[order]
    matrix = DeviceMatrix("F32", sparse.upload(padded_rows), None, 0, len(order), config.dim)
    q = unwritten(sparse, 1, padded(config.q_dim))
    angles = sparse.sparse((CAPACITY, HEAD_DIM), np.float32)
    cos, sin = np.split(random(1, HEAD_DIM, seed=9), 2, axis=1)
    angles[-1:] = np.concatenate([cos, sin], axis=1)
    launches.qkv_rope(
        sparse, matrix, Vectors(upload_rows(sparse, x)), None, angles, sparse.upload(np.asarray([start], np.int32)), 1,
        config, *cache.arrays, q,
    )  # fmt: skip
    parts = np.split(linear(x, w), [config.q_dim, config.q_dim + config.kv_dim], axis=1)
    of_q, k, v = (part.reshape(1, -1, HEAD_DIM) for part in parts)
    of_q, k = rope(of_q, cos, sin, config.rope_layout), rope(k, cos, sin, config.rope_layout)
    assert error(download_rows(sparse, q, config.q_dim), of_q.reshape(1, -1)) <= TOLERANCE_F16
    for array, rows in zip(cache.arrays, (k, v), strict=True):
        assert error(array[:, -1].astype(np.float32), rows[0]) <= TOLERANCE_F16


@pytest.mark.parametrize("kv", FLOAT_KV)
def test_attention_window(kv: str, sparse: EmulatedDevice) -> None:
    """A window so wide that the second key head begins past 2^31 elements, of which few are seen so far."""
    ring, n_seen, n_splits = Ring(PAST // HEAD_DIM + KEPT, 4), 30, 2
    config = Cache.config
    q = random(1, config.n_heads, HEAD_DIM)
    keys: NDArray[Any] = random(2, n_seen, HEAD_DIM, seed=1).astype(DTYPES[kv])
    values: NDArray[Any] = random(2, n_seen, HEAD_DIM, seed=2).astype(DTYPES[kv])
    shape = (2, ring.n_places, HEAD_DIM)
    cached: Pair = (sparse.sparse(shape, DTYPES[kv]), sparse.sparse(shape, DTYPES[kv]))
    cached[0][:, :n_seen], cached[1][:, :n_seen] = side_by_side(keys, config), values
    small = Ring(n_seen, 4)  # has the same places for the tokens so far
    turned = side_by_side(turned_in_cache(q, n_seen - 1, small, config), config).reshape(1, -1)
    parts = partial_results(sparse, n_splits * config.n_heads)
    launches.attention_window(
        sparse, upload_rows(sparse, np.asarray(turned, np.float32)), *cached, angles_of(sparse, small, config),
        sparse.upload(np.asarray([n_seen - 1], np.int32)), 1, n_splits, config, ring, *parts,
    )  # fmt: skip
    floats = keys.astype(np.float32), values.astype(np.float32)
    expected = attention_window(q, *floats, n_seen - 1, small, config)
    assert error(merged(sparse, config, 1, parts, n_splits), expected) <= TOLERANCE_F16


def test_the_cases_lie_past_two_to_the_31() -> None:
    assert (N_ROWS - ROWS) * DIM >= PAST
    assert (CAPACITY - KEPT) * HEAD_DIM >= PAST
    assert math.prod((2, CAPACITY, HEAD_DIM)) < 1 << 63
