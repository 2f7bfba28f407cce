"""The solver beside GPTQ as the paper states it, in plain loops: remove a column, update all the others, repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.quantization import round_to_nearest
from llamagpu.quantization.gptq_solver import DAMPING, Hessian, gptq
from llamagpu.quantization.round_to_nearest import best_scales

Doubles = NDArray[np.float64]


def plain_gptq(w: Doubles, h: Doubles, bits: int, group_size: int, act_order: bool) -> tuple[Any, ...]:
    """Optimal Brain Quantization in a fixed order: the inverse of H loses a row and a column by one step of Gauss."""
    rows, columns = w.shape
    w, h = w.copy(), h.copy()
    order = sorted(range(columns), key=lambda j: -h[j, j]) if act_order else list(range(columns))
    for j in range(columns):
        h[j, j] = h[j, j] or 1
    mean = sum(h[j, j] for j in range(columns)) / columns
    for j in range(columns):
        h[j, j] += DAMPING * mean
    inverse = np.linalg.inv(h)
    q = np.zeros((rows, columns), int)
    scales, zeros = [], []
    for place, j in enumerate(order):
        if place % group_size == 0:
            members = order[place : place + group_size]
            scale, zero = best_scales(w[:, members].astype(np.float32), bits)
            scales.append(scale)
            zeros.append(zero)
        for row in range(rows):
            number = round(w[row, j] / scale[row]) + zero[row]
            q[row, place] = min(max(number, 0), 2**bits - 1)
            error = (w[row, j] - (q[row, place] - zero[row]) * scale[row]) / inverse[j, j]
            for k in range(columns):
                w[row, k] -= error * inverse[j, k]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return q, np.array(scales).T, np.array(zeros).T, order


def inputs(n: int, in_features: int, seed: int) -> NDArray[np.float32]:
    """Correlated, and of different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, in_features)) @ rng.standard_normal((in_features, in_features))
    return np.asarray(mixed * np.exp(rng.standard_normal(in_features)), np.float32)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("in_features", "group_size"), [(48, 16), (40, 1 << 20), (300, 32), (280, 256)])
def test_the_same_as_plain_loops(in_features: int, group_size: int, bits: int, act_order: bool) -> None:
    rng = np.random.default_rng(in_features + bits)
    w = np.asarray(rng.standard_normal((5, in_features)), np.float32)
    hessian = Hessian(in_features)
    x = inputs(3 * in_features, in_features, seed=bits)
    x[:, 7] = 0  # a dead input
    for part in np.split(x, 3):
        hessian.add(part)
    solved = gptq(w, hessian.sum, bits, group_size, act_order)
    q, scales, zeros, order = plain_gptq(w.astype(np.float64), hessian.sum, bits, group_size, act_order)
    found_scales, found_zeros = solved.scales_and_zeros()
    assert (solved.perm is not None) == act_order
    np.testing.assert_array_equal(order if solved.perm is None else solved.perm, order)
    # float32 here, float64 there: a number at the middle between two may go to either, and take what follows along.
    same_row = [np.array_equal(a, b) for a, b in zip(solved.rows(), q, strict=True)]
    assert sum(same_row) >= 4
    np.testing.assert_array_equal(found_scales[same_row], scales[same_row])
    np.testing.assert_array_equal(found_zeros[same_row], zeros[same_row])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [16, 64, 1 << 20])
def test_less_error_of_the_product_than_round_to_nearest(group_size: int, act_order: bool) -> None:
    rng = np.random.default_rng(1)
    w = np.asarray(rng.standard_normal((24, 96)), np.float32)
    x = inputs(400, 96, seed=2)
    hessian = Hessian(96)
    hessian.add(x)
    solved = gptq(w, hessian.sum, 4, group_size, act_order)
    read = x if solved.perm is None else x[:, solved.perm]
    error = np.square(x @ w.T - read @ solved.dequantize().T).sum()
    nearest = np.square(x @ (w - round_to_nearest(w, 4, group_size).dequantize()).T).sum()
    assert error < 0.7 * nearest


def test_zeros_that_a_file_can_say() -> None:
    """All weights above 0: their zero would be 0."""
    w = np.asarray(np.random.default_rng(0).uniform(1, 2, (4, 64)), np.float32)
    hessian = Hessian(64)
    hessian.add(inputs(100, 64, seed=3))
    for matrix in (gptq(w, hessian.sum, 4, 32, smallest_zero=1), round_to_nearest(w, 4, 32, smallest_zero=1)):
        assert set(np.unique(matrix.scales_and_zeros()[1])) == {1}
        assert np.abs(matrix.dequantize() - w).max() < 0.8
    assert set(np.unique(round_to_nearest(w, 4, 32).scales_and_zeros()[1])) == {0}


def test_what_is_no_number_is_refused() -> None:
    w = np.ones((4, 32), np.float32)
    hessian = np.eye(32)
    hessian[3, 3] = np.nan
    with pytest.raises(ValueError, match="inputs that are no numbers"):
        gptq(w, hessian, 4, 32)
    w[1, 1] = np.inf
    with pytest.raises(ValueError, match="weights that are no numbers"):
        gptq(w, np.eye(32), 4, 32)
    with pytest.raises(ValueError, match="weights that are no numbers"):
        round_to_nearest(w, 4, 32)
