"""Damaged simple-llama files: the magic says what they are, so each field that lies is named."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llamagpu.formats import open_checkpoint
from llamagpu.quantization import Deferred
from tests.formats.test_hostile_files import refuse
from tests.simple_llama_files import SHAPE, simple_llama_file

SMALL = replace(SHAPE, n_layers=1, hidden_dim=128, vocab_size=40)
FIELDS = ["dim", "hidden_dim", "n_heads", "n_layers", "vocab_size", "max_seq_len"]


@cache
def small_file(bits: int) -> bytes:
    return simple_llama_file(bits, SMALL)[0]


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_a_wrong_length_is_refused(bits: int, tmp_path: Path) -> None:
    data = small_file(bits)
    path = tmp_path / "model.bin"
    for length in [4, 8, 9, 28, 32, 40, 255, 256, 257, 256 + 4 * 128, len(data) // 2, len(data) - 4, len(data) - 1]:
        path.write_bytes(data[:length])
        refuse(path, "length")
    for extra in (1, 4, 4096):
        path.write_bytes(data + bytes(extra))
        refuse(path, "length")


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1, 3, 1 << 20])
@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_header_field_is_refused(field: str, value: int, bits: int, tmp_path: Path) -> None:
    data = bytearray(small_file(bits))
    struct.pack_into("<i", data, 8 + 4 * FIELDS.index(field), value)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    if field == "max_seq_len" and 0 < value < 1 << 24:
        assert open_checkpoint(path).config.max_seq_len == value  # the file holds nothing of that length
    elif value <= 0 or value == 2**31 - 1:
        refuse(path, field)
    else:  # the field itself may be possible, and then its neighbour or the length gives it away
        refuse(path)


@pytest.mark.parametrize("version", [-1, 0, 1, 2, 5, 2**31 - 1])
def test_a_wrong_version_is_refused(version: int, tmp_path: Path) -> None:
    data = bytearray(small_file(8))
    struct.pack_into("<i", data, 4, version)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    refuse(path, "version")


def test_versions_are_not_taken_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for bits, version in [(32, 4), (8, 3), (4, 3)]:
        data = bytearray(small_file(bits))
        struct.pack_into("<i", data, 4, version)
        path.write_bytes(data)
        refuse(path, "bitwidth" if version == 4 else "length")
    for bits, other in [(8, 4), (4, 8)]:
        data = bytearray(small_file(bits))
        struct.pack_into("<i", data, 36, other)
        path.write_bytes(data)
        refuse(path, "length")


@pytest.mark.parametrize(
    ("at", "field", "values"), [(32, "group_size", [0, -128, 64, 127, 2**31 - 1]), (36, "bitwidth", [0, -8, 2, 16, 32])]
)
def test_a_wrong_group_size_or_bitwidth_is_refused(at: int, field: str, values: list[int], tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for value in values:
        data = bytearray(small_file(4))
        struct.pack_into("<i", data, at, value)
        path.write_bytes(data)
        refuse(path, field)


@pytest.mark.parametrize("field", ["dim", "hidden_dim"])
def test_sizes_that_the_groups_do_not_divide_are_refused(field: str, tmp_path: Path) -> None:
    data = bytearray(small_file(4))
    struct.pack_into("<i", data, 8 + 4 * FIELDS.index(field), 192)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    refuse(path, field)


def test_any_four_bits_are_a_number(tmp_path: Path) -> None:
    """simple-llama never writes 0 for -8; a file that has it is read as it stands."""
    data = bytearray(small_file(4))
    start = 256 + 4 * 3 * SMALL.dim
    data[start : start + 2] = b"\x0f\xf0"
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    embedding = open_checkpoint(path).tensors["tok_embeddings.weight"]
    assert isinstance(embedding, Deferred)
    row = embedding.materialize().dequantize(0, 1)[0]  # type: ignore[union-attr]
    scale = np.frombuffer(data, "<f4", 1, start + SMALL.vocab_size * SMALL.dim // 2)[0]
    np.testing.assert_array_equal(row[:4], np.array([-8, 7, 7, -8], np.float32) * scale)
