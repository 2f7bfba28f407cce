from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llamagpu
from llamagpu.formats import open_checkpoint
from llamagpu.quantization import AffineQuant, Deferred
from tests.formats.test_llama2c import named
from tests.llama2rs_files import SHAPE, llama2rs_file
from tests.models.reference_llama import reference_logits
from tests.small_files import Floats, random_weights, v0_bytes

IDS = [1, 7, 30, 7, 2, 0, 299]
CASES = [("A", False), ("B", False), ("B", True), ("C", False), ("C", True)]


def written(path: Path, *args: object, **kwargs: object) -> dict[str, Floats]:
    made = llama2rs_file(*args, **kwargs)  # type: ignore[arg-type]
    path.write_bytes(made.data)
    return made.weights


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("variant", "act_order"), CASES)
def test_matrices_are_what_gptq_means(
    variant: str, act_order: bool, group_size: int, n_kv_heads: int, tmp_path: Path
) -> None:
    """Rows of 64 inputs are one group of 128, and those of 160 end in a group that is not full."""
    shape = replace(SHAPE, n_kv_heads=n_kv_heads)
    path = tmp_path / "model.bin"
    weights = written(path, variant, group_size, act_order, shape)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert checkpoint.format == f"llama2.rs (variant {variant}, 4-bit GPTQ)"
    assert (config.dim, config.hidden_dim, config.n_layers, config.n_heads) == (64, 160, 2, 8)
    assert (config.n_kv_heads, config.vocab_size, config.max_seq_len) == (n_kv_heads, 300, 2048)
    assert (config.rope_layout, config.rope_theta, config.tied_head) == ("half_split", 10000, False)
    assert config.norm_eps == pytest.approx(1e-5, rel=1e-6)
    assert bool(checkpoint.notes) == (variant == "A")  # it has no place for act-order
    expected = named(weights)
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in checkpoint.tensors.items():
        if isinstance(tensor, Deferred):
            assert tensor.kind == f"4-bit GPTQ (group {group_size})"
            made = tensor.materialize()
            assert isinstance(made, AffineQuant)
            assert (made.bits, made.params.dtype.name) == (4, "float16")  # the scales fit
            assert (made.perm is not None) == (act_order and group_size < made.shape[1])
            values = np.empty(made.shape, np.float32)
            values[:, slice(None) if made.perm is None else made.perm] = made.dequantize()
            np.testing.assert_array_equal(values, expected[name], err_msg=name)
        else:
            np.testing.assert_array_equal(np.asarray(tensor), expected[name], err_msg=name)
    assert sum(isinstance(tensor, Deferred) for tensor in checkpoint.tensors.values()) == 14


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("variant", "act_order"), CASES)
def test_logits(variant: str, act_order: bool, group_size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    weights = written(path, variant, group_size, act_order)
    expected = reference_logits(SHAPE, weights, IDS, half_split=True)
    np.testing.assert_allclose(llamagpu.load(path, device="cpu").logits(IDS), expected, atol=1e-4)
    assert np.abs(expected - reference_logits(SHAPE, weights, IDS)).max() > 0.01  # the layout of RoPE matters


@pytest.mark.parametrize("n_kv_heads", [2, 8])
def test_float32_with_an_epsilon(n_kv_heads: int, tmp_path: Path) -> None:
    shape = replace(SHAPE, n_kv_heads=n_kv_heads)
    path = tmp_path / "model.bin"
    weights = written(path, "float32", shape=shape)
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "llama2.rs (float32)"
    assert (checkpoint.config.n_kv_heads, checkpoint.config.rope_layout) == (n_kv_heads, "half_split")
    for name, array in named(weights).items():
        np.testing.assert_array_equal(np.asarray(checkpoint.tensors[name]), array, err_msg=name)
    expected = reference_logits(shape, weights, IDS, half_split=True)
    np.testing.assert_allclose(llamagpu.load(path, device="cpu").logits(IDS), expected, atol=1e-4)


def test_a_file_of_llama2c_stays_one(tmp_path: Path) -> None:
    for n_kv_heads in (2, 8):
        shape = replace(SHAPE, n_kv_heads=n_kv_heads)
        path = tmp_path / "model.bin"
        path.write_bytes(v0_bytes(shape, random_weights(shape)))
        checkpoint = open_checkpoint(path)
        assert checkpoint.format == "llama2.c version 0 (float32)"
        assert (checkpoint.config.n_kv_heads, checkpoint.config.rope_layout) == (n_kv_heads, "interleaved")


@pytest.mark.parametrize("variant", ["C", "float32"])
def test_the_epsilon_is_the_files(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    written(path, variant, eps=1e-6)
    assert open_checkpoint(path).config.norm_eps == pytest.approx(1e-6, rel=1e-6)


# dim, hidden_dim, n_layers, n_heads, n_kv_heads; lengths of variants A, B and C
LLAMA_2 = [
    ("7B", 128, (4096, 11008, 32, 32, 32), (4516364316, 4520919068, 4520919072)),
    ("13B", 128, (5120, 13824, 40, 40, 40), (8103366684, 8110493724, 8110493728)),
    ("70B", 128, (8192, 28672, 80, 64, 8), (38735478812, 38760382492, 38760382496)),
    ("70B", 64, (8192, 28672, 80, 64, 8), (41141960732, 41166864412, 41166864416)),
]


def sparse_file(path: Path, sizes: tuple[int, ...], length: int) -> None:
    """A file of this header and length that takes no room on the disk; skips where there is no such thing."""
    dim, hidden_dim, n_layers, n_heads, _ = sizes
    with open(path, "wb") as file:
        file.write(struct.pack("<7if", dim, hidden_dim, n_layers, n_heads, n_heads, -32000, 2048, 1e-5))
        try:
            file.truncate(length)
        except OSError as error:
            pytest.skip(f"no file of {length} bytes here: {error}")
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no sparse files")


@pytest.mark.parametrize(("name", "group_size", "sizes", "lengths"), LLAMA_2)
def test_lengths_of_real_models(
    name: str, group_size: int, sizes: tuple[int, ...], lengths: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    for variant, length in zip("ABC", lengths, strict=True):
        sparse_file(path, sizes, length)
        checkpoint = open_checkpoint(path)
        assert f"variant {variant}" in checkpoint.format
        assert checkpoint.config.n_kv_heads == sizes[4]
        kinds = {tensor.kind for tensor in checkpoint.tensors.values() if isinstance(tensor, Deferred)}
        assert kinds == {f"4-bit GPTQ (group {group_size})"}


MEASURE = """
import json, sys, time
from llamagpu.cli import run_command
from llamagpu.devices import peak_memory_bytes
start = time.perf_counter()
status = run_command(["info", sys.argv[1]])
print(json.dumps({"status": status, "seconds": time.perf_counter() - start, "bytes": peak_memory_bytes()}))
"""


def test_a_file_of_39_gigabytes_opens_at_once_and_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "70b.bin"
    sparse_file(path, LLAMA_2[2][2], LLAMA_2[2][3][2])
    result = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, timeout=60, check=True)
    *table, last = result.stdout.decode().splitlines()
    measured = json.loads(last)
    assert measured["status"] == 0
    assert measured["seconds"] < 5
    assert measured["bytes"] is None or measured["bytes"] < 300e6
    rows = dict(row.split(maxsplit=1) for row in table)
    assert rows["format"] == "llama2.rs (variant C, 4-bit GPTQ)"
    assert rows["heads"] == "64 of 128, 8 for keys and values"
    assert rows["parameters"].startswith("68,976,648,192 ")
