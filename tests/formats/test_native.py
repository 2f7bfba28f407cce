from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import native, open_checkpoint
from llamagpu.formats.atomic import atomic_write
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v2_bytes


def source(tmp_path: Path, quantized: bool) -> Checkpoint:
    shape = Shape(hidden_dim=20, tied=False)
    weights = random_weights(shape)
    path = tmp_path / "source.bin"
    path.write_bytes(v2_bytes(shape, weights, 8) if quantized else v0_bytes(shape, weights))
    opened = open_checkpoint(path)
    return Checkpoint(path, "test", opened.config, opened.tensors, TokenizerSpec("llama2c", tokenizer_bin()))


@pytest.mark.parametrize("quantized", [False, True])
def test_what_is_written_is_read_back(quantized: bool, tmp_path: Path) -> None:
    before = source(tmp_path, quantized)
    native.write(tmp_path / "model.bin", before)
    after = open_checkpoint(tmp_path / "model.bin")
    assert after.config == before.config
    assert after.tokenizer == before.tokenizer
    assert list(after.tensors) != []
    assert set(after.tensors) == set(before.tensors)
    for name, tensor in before.tensors.items():
        read = after.tensors[name]
        if isinstance(tensor, Int8Matrix):
            assert isinstance(read, Int8Matrix)
            assert read.group_size == tensor.group_size
            np.testing.assert_array_equal(read.q, tensor.q)
            np.testing.assert_array_equal(read.scales, tensor.scales)
        else:
            assert read.dtype == tensor.dtype  # type: ignore[union-attr]
            np.testing.assert_array_equal(np.asarray(read), tensor)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_weights_stay_what_they_are(dtype: Any, tmp_path: Path) -> None:
    before = source(tmp_path, quantized=False)
    halves = {name: np.asarray(tensor).astype(dtype) for name, tensor in before.tensors.items()}
    native.write(tmp_path / "model.bin", Checkpoint(before.path, "", before.config, halves))
    after = open_checkpoint(tmp_path / "model.bin")
    assert after.tokenizer is None
    for name, half in halves.items():
        np.testing.assert_array_equal(np.asarray(after.tensors[name]), half)
        assert after.tensors[name].dtype == dtype  # type: ignore[union-attr]


def test_matrices_that_are_put_together_one_at_a_time(tmp_path: Path) -> None:
    """Deferred ones are made once each, in order; with offsets, permuted, of odd sizes. The rest comes along."""
    before = source(tmp_path, quantized=False)
    made: list[str] = []
    quantized = {}
    for i, (name, tensor) in enumerate(before.tensors.items()):
        if len(tensor.shape) == 2:
            generator = np.random.default_rng(i)
            q, scales = generator.integers(0, 16, tensor.shape), generator.random((tensor.shape[0], 1))
            perm = generator.permutation(tensor.shape[1]) if i % 2 else None
            offsets = i % 3 == 0
            quantized[name] = AffineQuant.pack(q, scales, np.rint(scales), 4, 1 << 20, perm, has_offsets=offsets)

    def deferred(name: str) -> Deferred:
        def make() -> AffineQuant:
            made.append(name)
            return quantized[name]

        return Deferred(quantized[name].shape, 10, "4-bit", make)

    tensors: dict[str, Tensor] = {
        name: deferred(name) if name in quantized else t for name, t in before.tensors.items()
    }
    config = replace(before.config, rope_factors=(1.5,) * (before.config.head_dim // 2), sliding_window=9)
    about = {"stop_tokens": (2, 7), "chat_template": "{{ 'é' }}", "sampling": {"temperature": 0.6, "top_k": 20}}
    progress: list[int] = []
    whole = replace(before, config=config, tensors=tensors, **about)  # type: ignore[arg-type]
    native.write(tmp_path / "model.bin", whole, progress.append)
    assert made == list(quantized)
    assert sum(progress) == whole.nbytes
    after = open_checkpoint(tmp_path / "model.bin")
    assert (after.config, after.stop_tokens, after.chat_template, after.sampling) == (config, *about.values())
    for name, matrix in quantized.items():
        read = after.tensors[name]
        assert isinstance(read, AffineQuant)
        assert read.has_offsets == matrix.has_offsets
        np.testing.assert_array_equal(read.dequantize(), matrix.dequantize())
        np.testing.assert_array_equal(read.perm, matrix.perm)
    with safe_open(tmp_path / "model.bin", "np") as file:
        assert set(file.keys()) >= {f"{name}.tiles" for name in quantized}


def test_damaged_descriptions_are_refused(tmp_path: Path) -> None:
    before = source(tmp_path, quantized=False)
    native.write(tmp_path / "model.bin", replace(before, stop_tokens=(2,), sampling={"top_k": 20}))
    data = (tmp_path / "model.bin").read_bytes()
    for old, new in ((b'"[2]"', b'"[-]"'), (b'"[2]"', b'"[9' + b"9" * 30 + b']"'), (b'top_k\\": 20', b'top_q\\": 20')):
        assert data.count(old) == 1
        changed = data.replace(old, new)
        length = struct.unpack_from("<Q", data)[0] + len(changed) - len(data)
        (tmp_path / "model.bin").write_bytes(struct.pack("<Q", length) + changed[8:])
        with pytest.raises(ModelFormatError, match=r"stop_tokens|sampling"):
            open_checkpoint(tmp_path / "model.bin")


def affine_source(tmp_path: Path) -> Checkpoint:
    """4-bit layers, one of them with act-order."""
    before = source(tmp_path, quantized=False)
    tensors = dict(before.tensors)
    for i, (name, tensor) in enumerate(before.tensors.items()):
        if len(tensor.shape) == 2:
            generator = np.random.default_rng(i)
            n_groups = -(-tensor.shape[1] // 16)
            scales = generator.random((tensor.shape[0], n_groups)).astype(np.float16)
            perm = generator.permutation(tensor.shape[1]) if i % 3 == 0 else None
            q = generator.integers(0, 16, tensor.shape)
            tensors[name] = AffineQuant.pack(q, scales, np.full(scales.shape, 8), 4, 16, perm)
    return Checkpoint(before.path, "", before.config, tensors)


def test_quantised_matrices_are_read_back_in_place(tmp_path: Path) -> None:
    before = affine_source(tmp_path)
    native.write(tmp_path / "model.bin", before)
    after = open_checkpoint(tmp_path / "model.bin")
    for name, tensor in before.tensors.items():
        read = after.tensors[name]
        assert type(read) is type(tensor) or isinstance(read, np.ndarray)
        if isinstance(tensor, AffineQuant):
            assert isinstance(read, AffineQuant)
            assert (read.bits, read.group_size, read.shape) == (tensor.bits, tensor.group_size, tensor.shape)
            np.testing.assert_array_equal(read.dequantize(), tensor.dequantize())
            assert read.q.base is not None, "a view into the mapped file"
            assert (read.perm is None) == (tensor.perm is None)
            if tensor.perm is not None:
                np.testing.assert_array_equal(np.asarray(read.perm), tensor.perm)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda entry: entry.update(bits=5), "5 bits"),
        (lambda entry: entry.update(group_size=48), "group size 48"),
        (lambda entry: entry.update(shape=[1 << 39, 16]), "does not hold"),
        (lambda entry: entry.update(shape=[16]), "sizes"),
        (lambda entry: entry.update(shape=[16, -16]), "sizes"),
        (lambda entry: entry.update(shape="ab"), "sizes"),
        (lambda entry: entry.pop("bits"), "KeyError"),
        (lambda entry: entry.update(has_offsets=1), "sizes"),
        (lambda entry: entry.update(has_offsets=True), "offsets are float32"),
    ],
)
def test_a_false_description_of_a_quantised_matrix(change: Any, problem: str, tmp_path: Path) -> None:
    native.write(tmp_path / "model.bin", affine_source(tmp_path))
    raw = (tmp_path / "model.bin").read_bytes()
    length = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8 : 8 + length])
    described = json.loads(header["__metadata__"]["affine"])
    change(described["layers.0.attention.wk.weight"])
    header["__metadata__"]["affine"] = json.dumps(described)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 256)
    (tmp_path / "model.bin").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    with pytest.raises(ModelFormatError, match=f"layers.0.attention.wk.weight.*{problem}"):
        open_checkpoint(tmp_path / "model.bin")


def test_a_perm_that_is_none(tmp_path: Path) -> None:
    before = affine_source(tmp_path)
    name = next(n for n, t in before.tensors.items() if isinstance(t, AffineQuant) and t.perm is not None)
    tensor = before.tensors[name]
    assert isinstance(tensor, AffineQuant)
    broken = replace(tensor, perm=np.zeros(tensor.shape[1], np.int32))
    native.write(tmp_path / "model.bin", replace(before, tensors={**before.tensors, name: broken}))
    with pytest.raises(ModelFormatError, match="no permutation"):
        open_checkpoint(tmp_path / "model.bin")


def test_deferred_matrices_offsets_and_what_ends_a_text_are_kept(tmp_path: Path) -> None:
    """A model as GGUF has it: made as it is written, one matrix after the other."""
    before = affine_source(tmp_path)
    name = "layers.1.feed_forward.w1.weight"
    shape = before.tensors[name].shape
    generator = np.random.default_rng(7)
    scales = generator.standard_normal((shape[0], 1), np.float32)
    matrix = AffineQuant.pack(generator.integers(0, 16, shape), scales, -scales / 3, 4, 16, has_offsets=True)
    bfloat = np.asarray(before.tensors["norm.weight"]).astype(ml_dtypes.bfloat16)
    deferred = Deferred((shape[0], shape[1]), 10, "Q4_1", lambda: matrix)
    tensors = {**before.tensors, name: deferred, "norm.weight": bfloat}
    counted: list[int] = []
    whole = replace(before, tensors=tensors, stop_tokens=(2, 299), chat_template="{{ 'a\n\"b' }}")
    native.write(tmp_path / "model.bin", whole, counted.append)
    assert sum(counted) == whole.nbytes
    after = open_checkpoint(tmp_path / "model.bin")
    read = after.tensors[name]
    assert isinstance(read, AffineQuant)
    assert read.has_offsets
    np.testing.assert_array_equal(read.dequantize(), matrix.dequantize())
    assert after.tensors["norm.weight"].dtype == ml_dtypes.bfloat16  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.asarray(after.tensors["norm.weight"]), bfloat)
    assert (after.stop_tokens, after.chat_template) == ((2, 299), whole.chat_template)


@pytest.mark.parametrize("text", ["[300]", "[-1]", "7", "[true]", '["a"]', "[", "[" * 100_000, "[1e400]"])
def test_stop_tokens_that_are_none(text: str, tmp_path: Path) -> None:
    native.write(tmp_path / "model.bin", replace(source(tmp_path, quantized=False), stop_tokens=(1,)))
    raw = (tmp_path / "model.bin").read_bytes()
    length = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["stop_tokens"] = text
    changed = json.dumps(header).encode()
    (tmp_path / "model.bin").write_bytes(struct.pack("<Q", len(changed)) + changed + raw[8 + length :])
    with pytest.raises(ModelFormatError, match="stop_tokens: is no JSON list of ids"):
        open_checkpoint(tmp_path / "model.bin")


def test_any_safetensors_tool_can_read_it(tmp_path: Path) -> None:
    before = source(tmp_path, quantized=True)
    native.write(tmp_path / "model.bin", before)
    with safe_open(tmp_path / "model.bin", framework="np") as file:
        assert json.loads(file.metadata()["config"])["dim"] == 16
        tensor = before.tensors["layers.0.feed_forward.w2.weight"]
        assert isinstance(tensor, Int8Matrix)
        np.testing.assert_array_equal(file.get_tensor("layers.0.feed_forward.w2.weight.q"), tensor.q)


def test_tensors_of_whole_lines_start_on_256_bytes(tmp_path: Path) -> None:
    native.write(tmp_path / "model.bin", source(tmp_path, quantized=False))
    raw = (tmp_path / "model.bin").read_bytes()
    length = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    starts = [8 + length + entry["data_offsets"][0] for entry in header.values()
              if (entry["data_offsets"][1] - entry["data_offsets"][0]) % 256 == 0]  # fmt: skip
    assert len(starts) > 10
    assert all(start % 256 == 0 for start in starts)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"), atomic_write(tmp_path / "missing" / "model.bin"):
        pass
