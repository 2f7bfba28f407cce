"""Damaged llama2.rs files: the header says little, so the exact length must be that of one layout, and only one."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.quantization import Deferred
from tests.formats.test_hostile_files import FIELDS, refuse
from tests.llama2rs_files import SHAPE, llama2rs_file

VARIANTS = ["A", "B", "C", "float32"]
SMALL = replace(SHAPE, n_layers=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_wrong_length_names_what_it_might_be(variant: str, tmp_path: Path) -> None:
    data = llama2rs_file(variant, shape=SMALL).data
    path = tmp_path / "model.bin"
    for length in [28, 29, 31, 32, 33, 100, len(data) // 2, len(data) - 99, len(data) - 1]:
        path.write_bytes(data[:length])
        refuse(path)
    for extra in (1, 8):
        path.write_bytes(data + bytes(extra))
        problem = refuse(path, "length").problem
        assert f"{len(data)} ({variant}, " in problem
        assert "a llama2.c file of this header has " in problem


@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1, 3, 12, 1 << 20])
@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_header_field_is_refused(field: str, value: int, tmp_path: Path) -> None:
    made = llama2rs_file("C", shape=SMALL)
    data = bytearray(made.data)
    struct.pack_into("<i", data, 4 * FIELDS.index(field), value)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    if field == "n_kv_heads" and value in (3, 12):  # a number that llama2.rs gets wrong itself: it is not believed
        assert open_checkpoint(path).config.n_kv_heads == SMALL.n_kv_heads
    else:
        refuse(path)


@pytest.mark.parametrize("value", [0.0, -1e-5, float("nan"), float("inf")])
@pytest.mark.parametrize("variant", ["C", "float32"])
def test_a_wrong_epsilon_is_refused(variant: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(llama2rs_file(variant, shape=SMALL, eps=value).data)
    refuse(path, "norm_eps")


def test_a_length_that_fits_two_layouts_is_refused(tmp_path: Path) -> None:
    """With these sizes, the orders of variant B take as many bytes as the keys and values of another head."""
    shape = replace(SMALL, hidden_dim=128, n_kv_heads=8)
    path = tmp_path / "model.bin"
    path.write_bytes(llama2rs_file("A", 128, shape=shape).data)
    problem = refuse(path, "length").problem
    assert "(A, group 128, n_kv_heads 8)" in problem
    assert "(B, group 64, n_kv_heads 4)" in problem
    path.write_bytes(llama2rs_file("C", 128, shape=shape).data)
    assert open_checkpoint(path).config.n_kv_heads == 8


def test_group_sizes_beyond_the_longest_row_are_one(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(llama2rs_file("C", 128, shape=replace(SMALL, hidden_dim=64)).data)
    tensor = open_checkpoint(path).tensors["layers.0.feed_forward.w2.weight"]
    assert isinstance(tensor, Deferred)
    assert tensor.kind == "4-bit GPTQ (group 64)"


@pytest.mark.parametrize("value", [-1, 1, 160, 2**31 - 1, -(2**31)])
def test_an_order_that_is_none_is_refused_when_it_is_read(value: int, tmp_path: Path) -> None:
    """The last matrix is w3; after it come the norm, the tables and the head."""
    data = bytearray(llama2rs_file("C", shape=SMALL).data)
    after = 4 * (SMALL.dim + 2048 * 8 + 300 * SMALL.dim)
    struct.pack_into("<i", data, len(data) - after - 4 * SMALL.dim, value)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    tensor = open_checkpoint(path).tensors["layers.0.feed_forward.w3.weight"]
    assert isinstance(tensor, Deferred)
    with pytest.raises(ModelFormatError, match=r"layers.0.feed_forward.w3.weight: has a g_index"):
        tensor.materialize()


def test_sizes_without_a_packed_layout(tmp_path: Path) -> None:
    """A hidden_dim of 20 is no whole number of words: only float32 files have that."""
    shape = replace(SMALL, hidden_dim=20)
    data = llama2rs_file("float32", shape=shape).data
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    assert open_checkpoint(path).config.hidden_dim == 20
    path.write_bytes(data + b"x")
    assert "group" not in refuse(path, "length").problem


def test_weights_that_are_no_numbers_are_read_as_they_are(tmp_path: Path) -> None:
    """They are said so when the first token is sampled, as those of any other format."""
    data = bytearray(llama2rs_file("C", shape=SMALL).data)
    data[-4 * (64 + 2048 * 8 + 300 * 64) - 4 * 64 - 200 : -4 * (64 + 2048 * 8 + 300 * 64) - 4 * 64] = b"\xff" * 200
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    tensor = open_checkpoint(path).tensors["layers.0.feed_forward.w3.weight"]
    assert isinstance(tensor, Deferred)
    made = tensor.materialize()
    assert np.isnan(made.dequantize()).any()  # type: ignore[union-attr]
