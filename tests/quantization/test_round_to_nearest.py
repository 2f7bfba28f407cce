from __future__ import annotations

import numpy as np
import pytest

from llamagpu.quantization import round_to_nearest
from llamagpu.quantization.round_to_nearest import best_scales


def plain_best(w: list[float], bits: int) -> float:
    """The least squared error of one group over a fine grid of scales and every zero: slow, and close to the best."""
    values = np.array(w)
    least = np.inf
    spread = max(values.max(), 0) - min(values.min(), 0)
    for zero in range(2**bits):
        for scale in spread / (2**bits - 1) * np.linspace(0.4, 1.1, 141):
            q = np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1)
            least = min(least, float(np.square((q - zero) * scale - values).sum()))
    return least


def test_close_to_the_best_there_is() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((12, 32)).astype(np.float32)
    w[3] += 2  # off the middle
    w[4, 7] = 9  # one that stands out
    found = np.square(round_to_nearest(w, 4, 32).dequantize() - w).sum(axis=1)
    best = np.array([plain_best(row.tolist(), 4) for row in w])
    assert (found < 1.25 * best + 1e-6).all()
    assert found.sum() < 1.08 * best.sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 1 << 20])
def test_better_than_the_span_of_each_group(group_size: int, bits: int) -> None:
    """Rows of 172: the last group of each is shorter. Each group by itself, as files have had them for long."""
    rng = np.random.default_rng(bits)
    w = rng.standard_normal((40, 172)).astype(np.float32) * np.float32(0.05)
    matrix = round_to_nearest(w, bits, group_size)
    scales, zeros = matrix.scales_and_zeros()
    assert matrix.params.dtype == np.float16
    assert matrix.group_size == min(group_size, 172)
    assert scales.shape == (40, -(-172 // group_size))
    assert zeros.min() >= 0
    assert zeros.max() < 2**bits
    np.testing.assert_array_equal(zeros, np.rint(zeros))
    error = plain = 0.0
    for row, found in zip(w, matrix.dequantize(), strict=True):
        for start in range(0, 172, group_size):
            group = row[start : start + group_size]
            scale = (max(group.max(), 0) - min(group.min(), 0)) / (2**bits - 1)
            zero = round(-min(group.min(), 0) / scale)
            q = np.clip(np.rint(group / scale) + zero, 0, 2**bits - 1)
            plain += float(np.square((q - zero) * scale - group).sum())
            error += float(np.square(found[start : start + group_size] - group).sum())
    assert error < (0.95 if bits == 4 else 1) * plain


def test_groups_of_nothing_and_of_one_sign() -> None:
    w = np.zeros((3, 32), np.float32)
    w[1] = 1e-9  # far below the smallest scale of float16
    w[2] = np.linspace(3, 6, 32)
    for bits in (4, 8):
        read = round_to_nearest(w, bits, 16).dequantize()
        np.testing.assert_array_equal(read[0], 0)
        assert np.abs(read[1]).max() < 1e-7
        assert np.abs(read[2] - w[2]).max() < 0.5 * 6 / (2**bits - 1) * 1.1
    scales, _ = best_scales(np.zeros((2, 16), np.float32), 4)
    assert (scales > 0).all()


def test_16_bit_sources_and_many_rows() -> None:
    """More rows than are worked on at a time, in other types: the same as row by row."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((700, 256)).astype(np.float16)
    whole = round_to_nearest(w, 4, 64)
    for row in (0, 255, 256, 699):
        alone = round_to_nearest(w[row : row + 1].astype(np.float32), 4, 64)
        np.testing.assert_array_equal(alone.dequantize()[0], whole.dequantize(row, row + 1)[0])
