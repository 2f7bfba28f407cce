from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llamagpu
from llamagpu.backends.cuda.matrix import stored
from llamagpu.formats import native, open_checkpoint
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix
from tests.formats.test_llama2c import named
from tests.models.reference_llama import reference_logits
from tests.simple_llama_files import SHAPE, simple_llama_file
from tests.small_files import random_weights

IDS = [1, 7, 30, 7, 2, 0, 299]
FORMATS = {
    32: "simple-llama version 3 (float32)",
    8: "simple-llama version 4 (8-bit, group 128)",
    4: "simple-llama version 4 (4-bit, group 128)",
}


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, n_layers=3, n_heads=2, n_kv_heads=2, hidden_dim=128)], ids=str)
def test_files_hold_the_written_weights(bits: int, shape: object, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    data, weights = simple_llama_file(bits, shape)  # type: ignore[arg-type]
    path.write_bytes(data)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert checkpoint.format == FORMATS[bits]
    for field in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"):
        assert getattr(config, field) == getattr(shape, field), field
    assert (config.rope_layout, config.norm_eps, config.tied_head) == ("interleaved", 1e-5, False)
    expected = named(weights)
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in checkpoint.tensors.items():
        kind = {32: np.ndarray, 8: Int8Matrix, 4: Deferred}[bits] if len(tensor.shape) == 2 else np.ndarray
        assert isinstance(tensor, kind), name
        if isinstance(tensor, Deferred):
            made = tensor.materialize()
            assert isinstance(made, AffineQuant)
            assert (made.bits, made.group_size, made.perm) == (4, 128, None)
            np.testing.assert_array_equal(made.dequantize(), expected[name], err_msg=name)
        else:
            values = tensor.dequantize() if isinstance(tensor, Int8Matrix) else np.asarray(tensor)
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_logits(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    data, weights = simple_llama_file(bits)
    path.write_bytes(data)
    logits = llamagpu.load(path, device="cpu").logits(IDS)
    np.testing.assert_allclose(logits, reference_logits(SHAPE, weights, IDS), atol=1e-4)


def test_sizes_that_the_groups_do_not_divide_can_only_be_float32(tmp_path: Path) -> None:
    shape = replace(SHAPE, dim=24, hidden_dim=20, n_layers=1)
    path = tmp_path / "model.bin"
    path.write_bytes(simple_llama_file(32, shape)[0])
    logits = llamagpu.load(path, device="cpu").logits(IDS)
    np.testing.assert_allclose(logits, reference_logits(shape, random_weights(shape), IDS), atol=1e-4)


def test_on_the_gpu_8_bits_are_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(simple_llama_file(8, replace(SHAPE, n_layers=1))[0])
    for name, tensor in open_checkpoint(path).tensors.items():
        if isinstance(tensor, Int8Matrix):
            matrix = stored(tensor)
            assert isinstance(matrix, AffineQuant)
            assert (matrix.bits, matrix.group_size) == (8, 128)
            np.testing.assert_array_equal(matrix.dequantize(), tensor.dequantize(), err_msg=name)


@pytest.mark.parametrize("bits", [32, 8])
def test_a_converted_file_gives_the_same_logits(bits: int, tmp_path: Path) -> None:
    source, out = tmp_path / "source.bin", tmp_path / "model.bin"
    source.write_bytes(simple_llama_file(bits)[0])
    native.write(out, open_checkpoint(source))
    np.testing.assert_array_equal(llamagpu.load(out, "cpu").logits(IDS), llamagpu.load(source, "cpu").logits(IDS))
