"""AffineQuant and the GPTQ tensors that become one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cpu.linear import embedding, linear
from llamagpu.quantization import AffineQuant, RandomMatrix
from llamagpu.quantization.affine import TILE_COLUMNS, take_rows
from llamagpu.quantization.gptq import gptq_numbers

SHAPES = ((1, 1), (33, 130), (64, 512), (17, 172))
GROUP_SIZES = (16, 32, 64, 96, 128, 100000)


def parts(
    bits: int, shape: tuple[int, int], group_size: int, wide: bool = False
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng([bits, *shape])
    n_groups = -(-shape[1] // group_size)
    scales = generator.standard_normal((shape[0], n_groups), np.float32)
    scales = scales if wide else scales.astype(np.float16)
    zeros = generator.integers(0, 2**bits + 1, scales.shape).astype(np.float32)
    return generator.integers(0, 2**bits, shape), scales, zeros


def plain(q: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any], group_size: int) -> NDArray[np.float32]:
    """The definition, element by element."""
    group = np.arange(q.shape[1]) // group_size
    w: NDArray[np.float32] = scales.astype(np.float32)[:, group] * (q.astype(np.float32) - zeros[:, group])
    return w


@pytest.mark.parametrize("wide", [False, True], ids=["float16", "float32"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_exact(bits: int, shape: tuple[int, int], group_size: int, wide: bool) -> None:
    q, scales, zeros = parts(bits, shape, group_size, wide)
    matrix = AffineQuant.pack(q, scales, zeros, bits, group_size)
    assert matrix.params.dtype == (np.float32 if wide else np.float16)
    np.testing.assert_array_equal(matrix.rows(), q)
    expected = plain(q, scales, zeros, group_size)
    np.testing.assert_array_equal(matrix.dequantize(), expected)
    np.testing.assert_array_equal(matrix.dequantize(shape[0] // 2), expected[shape[0] // 2 :])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_16_byte_load_is_one_row_and_neighbours_lie_together(bits: int) -> None:
    """The layout that kernels/tiles.cuh states: which weights the lanes of a warp find in one load."""
    q = np.random.default_rng(0).integers(0, 2**bits, (32, 256))
    matrix = AffineQuant.pack(q, np.ones((32, 2)), np.zeros((32, 2)), bits, 128)
    loads = matrix.q.reshape(2, 2, bits // 2, 32, 16)  # tile, block of columns, load, lane, bytes
    for tile, block, load, lane in ((0, 0, 0, 0), (1, 0, 1, 5), (0, 1, bits // 2 - 1, 31), (1, 1, 0, 18)):
        words = loads[tile, block, load, lane].view("<u4")
        r, t = divmod(lane, 4)
        upper, part = (load, 0) if bits == 4 else divmod(load, 2)
        row = q[tile * 16 + upper * 8 + r, block * 128 : (block + 1) * 128]
        for i, word in enumerate(words.tolist()):
            if bits == 8:
                start = 64 * part + 16 * i + 4 * t
                assert [word >> 8 * e & 255 for e in range(4)] == row[start : start + 4].tolist()
                continue
            for half in range(2):
                start = 32 * i + 16 * half + 4 * t
                pairs = [[word >> 4 * s & 15, word >> 4 * (s + 4) & 15] for s in (2 * half, 2 * half + 1)]
                assert [*pairs[0], *pairs[1]] == row[start : start + 4].tolist()


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_offsets_in_place_of_zeros(bits: int, shape: tuple[int, int], group_size: int) -> None:
    q, scales, zeros = parts(bits, shape, group_size)
    offsets = (zeros * np.float32(0.37)).astype(np.float16)
    matrix = AffineQuant.pack(q, scales, offsets, bits, group_size, has_offsets=True)
    assert matrix.params.dtype == np.float32
    group = np.arange(shape[1]) // group_size
    expected = scales.astype(np.float32)[:, group] * q.astype(np.float32) + offsets.astype(np.float32)[:, group]
    np.testing.assert_array_equal(matrix.dequantize(), expected)
    np.testing.assert_array_equal(take_rows([matrix], np.arange(shape[0])[::-1]).dequantize(), expected[::-1])
    x = np.random.default_rng(3).standard_normal((3, shape[1]), np.float32)
    got, by_definition = linear(x, matrix), x.astype(np.float64) @ expected.T
    assert np.square(got - by_definition).sum() <= 1e-10 * np.square(by_definition).sum()


def test_rows_of_several_in_another_order() -> None:
    first, second = (AffineQuant.pack(*parts(4, (n, 140), 32), 4, 32) for n in (20, 7))
    order = np.random.default_rng(1).permutation(27)
    expected = np.concatenate([first.dequantize(), second.dequantize()])[order]
    np.testing.assert_array_equal(take_rows([first, second], order).dequantize(), expected)


def test_a_permutation_is_of_the_inputs() -> None:
    """Column j of the stored matrix is multiplied with input perm[j]."""
    q, scales, zeros = parts(4, (20, 96), 32)
    perm = np.random.default_rng(2).permutation(96)
    matrix = AffineQuant.pack(q, scales, zeros, 4, 32, perm)
    whole = np.empty((20, 96), np.float32)
    whole[:, perm] = plain(q, scales, zeros, 32)
    x = np.random.default_rng(3).standard_normal((2, 96), np.float32)
    np.testing.assert_allclose(linear(x, matrix), x @ whole.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(embedding(matrix, np.asarray([3, 19])), whole[[3, 19]])
    assert AffineQuant.pack(q, scales, zeros, 4, 32, np.arange(96)).perm is None


@pytest.mark.parametrize(
    ("group_size", "n_scales", "problem"), [(8, 12, "smaller than the kernels' smallest"), (32, 4, "in groups of 32")]
)
def test_what_does_not_fit_is_refused(group_size: int, n_scales: int, problem: str) -> None:
    scales = np.ones((5, n_scales))
    with pytest.raises(ValueError, match=problem):
        AffineQuant.pack(np.zeros((5, 96)), scales, scales, 4, group_size)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("shape", [*SHAPES, (300, 1000)])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_in_the_order_of_memory(bits: int, shape: tuple[int, int], group_size: int, n: int) -> None:
    """The CPU's product against the definition."""
    perm = np.random.default_rng(4).permutation(shape[1]) if n == 5 else None
    matrix = AffineQuant.pack(*parts(bits, shape, group_size), bits, group_size, perm)
    x = np.random.default_rng(3).standard_normal((n, shape[1]), np.float32)
    expected = (x if perm is None else x[:, perm]).astype(np.float64) @ matrix.dequantize().astype(np.float64).T
    got = linear(x, matrix)
    assert got.shape == (n, shape[0])
    assert np.square(got - expected).sum() <= 1e-11 * np.square(expected).sum()


def gptq_pack(numbers: NDArray[Any], bits: int, axis: int) -> NDArray[np.int32]:
    """As AutoGPTQ packs: 32 / bits neighbours along the axis in a word, the first in the lowest bits."""
    moved = np.moveaxis(numbers.astype(np.uint64), axis, -1)
    moved = moved.reshape(*moved.shape[:-1], -1, 32 // bits)
    words = (moved << np.arange(0, 32, bits, dtype=np.uint64)).sum(axis=-1).astype(np.uint32)
    packed: NDArray[np.int32] = np.moveaxis(words, -1, axis).view(np.int32)
    return packed


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("group_size", [16, 32, 64, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_tensors(bits: int, group_size: int, version: Literal[1, 2], act_order: bool) -> None:
    """Against the definition: W[i, o] = scales[g_idx[i], o] * (q[i, o] - zero[g_idx[i], o])."""
    n_in, n_out = 256, 48
    generator = np.random.default_rng([bits, 5])
    size = n_in if group_size == -1 else group_size
    n_groups = n_in // size
    q = generator.integers(0, 2**bits, (n_in, n_out))
    stored = generator.integers(0, 2**bits, (n_groups, n_out))
    stored[0] = 2**bits - 1  # of version 1 this means 2^bits: one more than the bits can hold
    scales = generator.random((n_groups, n_out)).astype(np.float16)
    g_idx = np.arange(n_in) // size
    if act_order:
        g_idx = generator.permutation(g_idx)
    zeros = stored + (version == 1)
    w = scales.astype(np.float32)[g_idx] * (q - zeros[g_idx]).astype(np.float32)
    packed = gptq_pack(q, bits, 0), gptq_pack(stored, bits, 1)
    matrix = gptq_numbers(*packed, scales, group_size, g_idx.astype(np.int32), bits, version).pack()
    assert (matrix.perm is not None) == (act_order and n_groups > 1)
    x = generator.standard_normal((3, n_in), np.float32)
    np.testing.assert_allclose(linear(x, matrix), x @ w, rtol=2e-5, atol=2e-2 if bits == 8 else 2e-3)
    columns = np.arange(n_in) if matrix.perm is None else matrix.perm
    np.testing.assert_array_equal(matrix.dequantize(), w.T[:, columns])


def test_gptq_groups_that_are_none() -> None:
    q, stored, scales = np.zeros((64, 32)), np.zeros((2, 32)), np.ones((2, 32), np.float16)
    packed = gptq_pack(q, 4, 0), gptq_pack(stored, 4, 1)
    with pytest.raises(ValueError, match="g_idx does not put 64 inputs in 2 groups of 32"):
        gptq_numbers(*packed, scales, 32, np.zeros(64, np.int32))
    with pytest.raises(ValueError, match="do not fit"):
        gptq_numbers(*packed, scales, 16)


@pytest.mark.parametrize("name", ["gptq_ref_exllama", "gptq_ref_cuda_old_half"])
def test_autogptqs_own_reference(name: str, data: Path) -> None:
    """What AutoGPTQ's kernels gave for these tensors; they add in float16, hence the difference."""
    tensors = np.load(data / "gptq" / f"{name}.npz")
    matrix = gptq_numbers(tensors["qweight"], tensors["qzeros"], tensors["scales"], 128).pack()
    y = linear(tensors["x"].astype(np.float32)[None], matrix)[0]
    expected = tensors["expected"]
    assert round(float(np.abs(y - expected).max()), 3) <= 0.004
    assert np.abs(y - expected).max() <= 6e-4 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_random_matrices_say_their_size(bits: int) -> None:
    matrix = RandomMatrix(50, 300, bits)
    made = matrix.materialize()
    assert made.shape == matrix.shape
    assert made.nbytes == matrix.nbytes
    values = made.dequantize() if isinstance(made, AffineQuant) else made.astype(np.float32)
    assert 0.3 < float(np.std(values)) * 300**0.5 < 2
    assert TILE_COLUMNS == 128
