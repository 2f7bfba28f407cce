"""ggml's block types against the gguf package: the same float32, bit for bit."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from numpy.typing import NDArray

from llamagpu.backends.cpu.linear import linear
from llamagpu.quantization import ggml
from tests.formats.gguf_files import PLACES_OF_D

BLOCKS = [pytest.param(code, block, id=block.kind) for code, block in ggml.BLOCKS.items()]
PLACES = PLACES_OF_D | {"Q4_1": (0, 2), "Q5_1": (0, 2)}


def random_bytes(block: ggml.Block, n_rows: int, n_columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Any bytes, but for finite float16 of every size and sign: subnormal ones and zeros too."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (n_rows, n_columns // block.n_weights, block.n_bytes), np.uint8)
    for at in PLACES.get(block.kind, (0,)):
        d = rng.integers(0, 0x7C00, data.shape[:2], np.uint16) | rng.integers(0, 2, data.shape[:2], np.uint16) << 15
        d[0, 0] = 0
        data[:, :, at : at + 2] = d.astype("<u2")[:, :, None].view(np.uint8)
    return data


@pytest.mark.parametrize(("code", "block"), BLOCKS)
@pytest.mark.parametrize("shape", [(1, 256), (37, 768), (600, 1024)], ids=str)
def test_every_bit_of_every_weight(code: int, block: ggml.Block, shape: tuple[int, int]) -> None:
    """600 rows of 1024 are repacked in several pieces."""
    assert ggml.CHUNK_WEIGHTS < 600 * 1024
    data = random_bytes(block, *shape)
    kind = gguf.GGMLQuantizationType(code)
    assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (block.kind, (block.n_weights, block.n_bytes))
    matrix = ggml.repack(data, block)
    assert (matrix.shape, matrix.bits, matrix.has_offsets) == (shape, block.bits, block.zero is None)
    assert matrix.params.dtype == (np.float16 if block.exact_in_half else np.float32)
    expected = dequantize(data.reshape(shape[0], -1), kind)
    np.testing.assert_array_equal(matrix.dequantize().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("code", "block"), [(c, b) for c, b in ggml.BLOCKS.items() if b.n_weights == 32])
def test_rows_of_one_block(code: int, block: ggml.Block) -> None:
    """A group is then the whole row."""
    data = random_bytes(block, 5, 32)
    expected = dequantize(data.reshape(5, -1), gguf.GGMLQuantizationType(code))
    np.testing.assert_array_equal(ggml.repack(data, block).dequantize(), expected)


@pytest.mark.parametrize(("code", "block"), BLOCKS)
def test_products(code: int, block: ggml.Block) -> None:
    data = random_bytes(block, 48, 512, seed=1)
    for at in PLACES.get(block.kind, (0,)):
        data[:, :, at + 1] = data[:, :, at + 1] & 0x80 | 0x20  # of one size, so that no weight is lost in the others
    matrix = ggml.repack(data, block)
    x = np.random.default_rng(2).standard_normal((3, 512), np.float32)
    weights: NDArray[Any] = dequantize(data.reshape(48, -1), gguf.GGMLQuantizationType(code)).astype(np.float64)
    expected = x.astype(np.float64) @ weights.T
    assert np.square(linear(x, matrix) - expected).sum() <= 1e-11 * np.square(expected).sum()


@pytest.mark.parametrize(("code", "block"), BLOCKS)
@pytest.mark.parametrize("bad", [0x7C00, 0xFC00, 0x7E01], ids=["infinite", "minus infinite", "no number"])
def test_scales_that_are_no_numbers(code: int, block: ggml.Block, bad: int) -> None:
    for at in PLACES.get(block.kind, (0,)):
        data = random_bytes(block, 40, 512)
        data[33, 1, at : at + 2] = np.array([bad], "<u2").view(np.uint8)
        with pytest.raises(ValueError, match="no finite number in rows 0 to 39"):
            ggml.repack(data, block)


def test_types_that_are_known_by_name() -> None:
    ours = {code: name for code, name in ggml.NAMES.items() if code in list(gguf.GGMLQuantizationType)}
    assert ours == {kind.value: kind.name for kind in gguf.GGMLQuantizationType if kind.value in ggml.NAMES}
    assert set(ggml.BLOCKS) | set(ggml.FLOATS) <= set(ggml.NAMES)
