"""Each NumPy operation against its definition, written out in float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention import attention
from llamagpu.backends.cpu.linear import BLOCK_ELEMENTS, embedding, linear
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.backends.cpu.swiglu import swiglu
from llamagpu.config import ModelConfig, RopeLayout
from llamagpu.quantization import Int8Matrix
from tests.small_files import q8_groups

Floats = NDArray[np.float32]


def random_floats(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantize_int8(weights: Floats, group_size: int) -> Int8Matrix:
    q, scales = q8_groups(weights.reshape(-1), group_size)
    return Int8Matrix(q.reshape(weights.shape), scales, group_size)


def nmse(got: NDArray[np.floating], expected: NDArray[np.float64]) -> float:
    """Squared error over squared size of the expected values."""
    assert got.shape == expected.shape
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


@pytest.mark.parametrize("dim", [1, 2, 7, 64, 333])
@pytest.mark.parametrize("n", [1, 3])
def test_rmsnorm(n: int, dim: int) -> None:
    x, weight = random_floats(n, dim), random_floats(dim, seed=1)
    expected = np.empty((n, dim))
    for i in range(n):
        mean_square = sum(float(v) ** 2 for v in x[i]) / dim
        expected[i] = x[i].astype(np.float64) / math.sqrt(mean_square + 1e-5) * weight
    assert nmse(rmsnorm(x, weight, 1e-5), expected) < 1e-12


def test_rmsnorm_of_zeros_is_zero() -> None:
    np.testing.assert_array_equal(rmsnorm(np.zeros((2, 4), np.float32), np.ones(4, np.float32), 1e-5), 0)


@pytest.mark.parametrize(("n", "out_features", "in_features"), [(1, 1, 1), (1, 5, 3), (4, 7, 64), (9, 33, 17)])
def test_linear(n: int, out_features: int, in_features: int) -> None:
    x, w = random_floats(n, in_features), random_floats(out_features, in_features, seed=1)
    expected = np.array([[sum(float(a) * float(b) for a, b in zip(row, col, strict=True)) for col in w] for row in x])
    assert nmse(linear(x, w), expected) < 1e-12


@pytest.mark.parametrize(
    ("n", "out_features", "in_features", "group_size"),
    [(1, 6, 32, 32), (3, 6, 32, 8), (2, 8, 12, 32), (1, 32, 172, 32), (2, 3, BLOCK_ELEMENTS // 2, 64)],
)
def test_linear_with_8_bit_weights(n: int, out_features: int, in_features: int, group_size: int) -> None:
    x, w = random_floats(n, in_features), random_floats(out_features, in_features, seed=1)
    quantized = quantize_int8(w, group_size)
    flat = [float(q) * float(quantized.scales[i // group_size]) for i, q in enumerate(quantized.q.reshape(-1))]
    values = np.array(flat).reshape(w.shape)
    assert nmse(linear(x, quantized), x.astype(np.float64) @ values.T) < 1e-11
    assert np.abs(values - w).max() <= quantized.scales.max() / 2 * 1.0001


def test_scales_must_cover_the_matrix() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        Int8Matrix(np.zeros((2, 8), np.int8), np.zeros(3, np.float32), 4)


def test_embedding_rows() -> None:
    table = random_floats(10, 12)
    tokens = np.array([3, 9, 3])
    np.testing.assert_array_equal(embedding(table, tokens), table[[3, 9, 3]])
    quantized = quantize_int8(table, 8)
    np.testing.assert_array_equal(embedding(quantized, tokens), quantized.dequantize()[[3, 9, 3]])


@pytest.mark.parametrize("layout", ["interleaved", "half_split"])
@pytest.mark.parametrize(("start", "head_dim"), [(0, 2), (5, 8), (1000, 16)])
def test_rope(layout: RopeLayout, start: int, head_dim: int) -> None:
    n, heads = 3, 2
    x = random_floats(n, heads, head_dim)
    expected = np.empty(x.shape)
    for i in range(n):
        for h in range(heads):
            for j in range(head_dim // 2):
                angle = (start + i) * 10000.0 ** (-2 * j / head_dim)
                first, second = (2 * j, 2 * j + 1) if layout == "interleaved" else (j, j + head_dim // 2)
                turned = complex(x[i, h, first], x[i, h, second]) * complex(math.cos(angle), math.sin(angle))
                expected[i, h, first], expected[i, h, second] = turned.real, turned.imag
    config = ModelConfig("llama", 16, 16, 1, heads, heads, head_dim, 32, 2048)
    got = rope(x, *rope_angles(start, n, config), layout)
    assert nmse(got, expected) < 1e-12


@pytest.mark.parametrize(
    ("n", "start", "n_heads", "n_kv_heads", "head_dim"),
    [(1, 0, 1, 1, 2), (1, 6, 4, 2, 8), (5, 0, 4, 4, 4), (5, 3, 6, 2, 16), (7, 30, 8, 1, 6)],
)
def test_attention(n: int, start: int, n_heads: int, n_kv_heads: int, head_dim: int) -> None:
    capacity = start + n + 2
    q = random_floats(n, n_heads, head_dim)
    keys, values = (
        random_floats(n_kv_heads, capacity, head_dim, seed=1),
        random_floats(n_kv_heads, capacity, head_dim, seed=2),
    )
    keys[:, start + n :] = values[:, start + n :] = np.nan  # beyond the newest token: must not be looked at
    expected = np.empty((n, n_heads * head_dim))
    for i in range(n):
        for h in range(n_heads):
            kv = h // (n_heads // n_kv_heads)
            scores = [
                math.exp(float(q[i, h].astype(np.float64) @ keys[kv, t]) / math.sqrt(head_dim))
                for t in range(start + i + 1)
            ]
            mixed = sum(s * values[kv, t].astype(np.float64) for t, s in enumerate(scores)) / sum(scores)
            expected[i, h * head_dim : (h + 1) * head_dim] = mixed
    assert nmse(attention(q, keys, values, start), expected) < 1e-11


def test_attention_with_huge_scores_stays_finite() -> None:
    q = np.full((1, 1, 4), 1e4, np.float32)
    keys, values = np.full((1, 3, 4), 1e4, np.float32), random_floats(1, 3, 4)
    np.testing.assert_allclose(attention(q, keys, values, 2)[0], values[0].mean(axis=0), rtol=1e-5)


def test_swiglu() -> None:
    gate, up = random_floats(3, 17) * 10, random_floats(3, 17, seed=1)
    expected = np.array([[float(g) / (1 + math.exp(-float(g))) * float(u) for g, u in zip(a, b, strict=True)]
                         for a, b in zip(gate, up, strict=True)])  # fmt: skip
    assert nmse(swiglu(gate, up), expected) < 1e-12
    extreme = swiglu(np.array([[-1e4, 1e4]], np.float32), np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(extreme, [[0, 1e4]])
