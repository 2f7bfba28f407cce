"""Meta's folders give the very logits of the same weights in a llama2.c file."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu.convert_command import convert
from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.inspect_commands import info
from llamagpu.quantization import Deferred
from llamagpu.rope_scaling import llama3_factors
from tests.references.make_torch_files import TRAINING, model_values
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes
from tests.torch_files import (
    BFLOAT16,
    Saved,
    View,
    entries_of,
    meta_state,
    params_of,
    torch_bytes,
    write_meta,
    write_zip,
)

SHAPE = Shape(tied=False)
IDS = [1, 5, 299, 17, 5, 260, 3]


def v0_logits(folder: Path, shape: Shape, dtype: Any) -> np.ndarray[Any, Any]:
    path = folder / "reference.bin"
    rounded = {name: array.astype(dtype).astype(np.float32) for name, array in random_weights(shape).items()}
    path.write_bytes(v0_bytes(shape, rounded))
    return llamagpu.load(path, "cpu").logits(IDS)


def logits(path: Path) -> np.ndarray[Any, Any]:
    return llamagpu.load(path, "cpu", context=16).logits(IDS)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_logits_are_those_of_a_llama2c_file(n_shards: int, dtype: Any, tmp_path: Path) -> None:
    shape = Shape(tied=False, n_kv_heads=4)
    expected = v0_logits(tmp_path, shape, dtype)
    folder = write_meta(tmp_path / "model", shape, n_shards, dtype)
    np.testing.assert_array_equal(logits(folder), expected)
    np.testing.assert_array_equal(logits(folder / f"consolidated.{n_shards - 1:02}.pth"), expected)
    unzipped = write_meta(tmp_path / "unzipped", shape, n_shards, dtype, unzipped=True)
    np.testing.assert_array_equal(logits(unzipped), expected)
    np.testing.assert_array_equal(logits(unzipped / "consolidated.00"), expected)


@pytest.mark.parametrize("embedding_axis", [0, 1])
def test_embeddings_split_by_rows_or_by_columns(embedding_axis: int, tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "model", SHAPE, 2, embedding_axis=embedding_axis)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "Meta checkpoint in 2 shards"
    expected = meta_state(SHAPE)
    assert set(checkpoint.tensors) == set(expected) - {"rope.freqs"}
    for name, tensor in checkpoint.tensors.items():
        made = tensor.materialize() if isinstance(tensor, Deferred) else tensor
        assert tensor.nbytes == expected[name].nbytes
        np.testing.assert_array_equal(made, expected[name], err_msg=name)
    np.testing.assert_array_equal(logits(folder), v0_logits(tmp_path, SHAPE, np.float32))


def test_a_tied_head_is_one_that_is_absent_or_the_same_storage(tmp_path: Path) -> None:
    shape = Shape()
    expected = v0_logits(tmp_path, shape, np.float32)
    folder = write_meta(tmp_path / "model", shape)
    assert open_checkpoint(folder).config.tied_head
    np.testing.assert_array_equal(logits(folder), expected)
    state = meta_state(shape)
    state["output.weight"] = state["tok_embeddings.weight"]
    (folder / "consolidated.00.pth").write_bytes(torch_bytes(state))
    assert open_checkpoint(folder).config.tied_head
    state["output.weight"] = state["tok_embeddings.weight"].copy()
    (folder / "consolidated.00.pth").write_bytes(torch_bytes(state))
    assert not open_checkpoint(folder).config.tied_head
    np.testing.assert_array_equal(logits(folder), expected)


def test_one_zip_is_mapped_and_nothing_is_copied(tmp_path: Path) -> None:
    for tensor in open_checkpoint(write_meta(tmp_path / "model", SHAPE, dtype=np.float16)).tensors.values():
        assert isinstance(tensor, np.ndarray)
        assert not tensor.flags.owndata
        assert not tensor.flags.writeable


CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "stated": ({"max_seq_len": 77, "norm_eps": 1e-6}, 77),
    "Llama 1": ({"norm_eps": 1e-6}, 2048),
    "Llama 2": ({"norm_eps": 1e-5}, 4096),
    "Code Llama": ({"rope_theta": 1000000, "ffn_dim_multiplier": 1.0}, 16384),
    "Llama 3": ({"rope_theta": 500000.0, "ffn_dim_multiplier": 1.3}, 8192),
    "Llama 3.1": ({"rope_theta": 500000.0, "use_scaled_rope": True, "rope_scale_factor": 8}, 131072),
}


@pytest.mark.parametrize(("params", "positions"), CONFIGS.values(), ids=CONFIGS)
def test_positions_follow_from_the_family(params: dict[str, Any], positions: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_meta(tmp_path / "model", SHAPE, **params))
    assert checkpoint.config.max_seq_len == positions
    assert checkpoint.config.norm_eps == params.get("norm_eps", 1e-5)
    assert checkpoint.config.rope_theta == params.get("rope_theta", 10000)
    assert checkpoint.config.rope_layout == "interleaved"
    assert any(f"{positions} positions" in note for note in checkpoint.notes) == ("max_seq_len" not in params)


def published_factor(frequency: float, factor: float, low: float, high: float, original: int) -> float:
    """As Meta's paper and code have it: by the length of the wave."""
    wave = 2 * math.pi / frequency
    if wave < original / high:
        return 1.0
    if wave > original / low:
        return factor
    smooth = (original / wave - low) / (high - low)
    return frequency / ((1 - smooth) * frequency / factor + smooth * frequency)


@pytest.mark.parametrize(("head_dim", "factor"), [(128, 8.0), (64, 32.0), (64, 8.0)])
def test_llama3_factors_are_the_published_ones(head_dim: int, factor: float) -> None:
    factors = llama3_factors(head_dim, 500000.0, factor, 1.0, 4.0, 8192)
    assert len(factors) == head_dim // 2
    for j, found in enumerate(factors):
        expected = published_factor(500000.0 ** (-2 * j / head_dim), factor, 1.0, 4.0, 8192)
        assert found == pytest.approx(expected, rel=1e-12)
    assert factors[0] == 1
    assert factors[-1] == factor
    assert any(1.01 < value < 0.99 * factor for value in factors)


def test_scaled_rope_comes_from_params(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], float, int]] = [({}, 8.0, 1), ({"rope_scale_factor": 32}, 32.0, 0)]
    for params, factor, n_notes in cases:
        folder = write_meta(
            tmp_path / f"{factor}", SHAPE, rope_theta=500000.0, use_scaled_rope=True, max_seq_len=9, **params
        )
        checkpoint = open_checkpoint(folder)
        assert checkpoint.config.rope_factors == llama3_factors(4, 500000.0, factor, 1.0, 4.0, 8192)
        assert len(checkpoint.notes) == n_notes


def test_a_llama32_has_its_own_factor(tmp_path: Path) -> None:
    """1B and 3B are told by their width; the weights are holes in the file."""
    for dim, factor in [(2048, 32.0), (3072, 32.0), (4096, 8.0)]:
        path = write_holes(tmp_path / f"{dim}", dim, 64, 1, 1, 128256, rope_theta=5e5, use_scaled_rope=True)
        factors = open_checkpoint(path).config.rope_factors
        assert factors is not None
        assert factors[-1] == factor


def write_holes(
    folder: Path, dim: int, hidden: int, n_layers: int, n_shards: int, vocab_size: int, **params: Any
) -> Path:
    """A model of float16 zeros, which take no room on disk."""
    folder.mkdir()
    shape = Shape(dim, hidden, n_layers, dim // 128, dim // 128, vocab_size)
    (folder / "params.json").write_text(json.dumps(params_of(shape, **params)))

    def hole(*size: int) -> View:
        numel = math.prod(size)
        return View(
            np.broadcast_to(np.float16(0), numel), 0, size, tuple(math.prod(size[i + 1 :]) for i in range(len(size)))
        )

    for n in range(n_shards):
        state = {"tok_embeddings.weight": hole(vocab_size, dim // n_shards), "norm.weight": hole(dim)}
        state["output.weight"] = hole(vocab_size // n_shards, dim)
        for i in range(n_layers):
            for name in ("wq", "wk", "wv"):
                state[f"layers.{i}.attention.{name}.weight"] = hole(dim // n_shards, dim)
            state[f"layers.{i}.attention.wo.weight"] = hole(dim, dim // n_shards)
            for name in ("w1", "w3"):
                state[f"layers.{i}.feed_forward.{name}.weight"] = hole(hidden // n_shards, dim)
            state[f"layers.{i}.feed_forward.w2.weight"] = hole(dim, hidden // n_shards)
            state[f"layers.{i}.attention_norm.weight"] = state[f"layers.{i}.ffn_norm.weight"] = hole(dim)
        with open(folder / f"consolidated.{n:02}.pth", "wb") as file:
            write_zip(file, entries_of(Saved(state)), zip64=True)
    return folder


def test_a_65b_model_opens_at_once(tmp_path: Path) -> None:
    """130 GB in 8 shards of holes: LLaMA-65B's shape."""
    folder = write_holes(tmp_path / "model", 8192, 22016, 80, 8, 32000)
    assert sum(path.stat().st_size for path in folder.glob("*.pth")) > 130e9
    start = time.process_time()
    checkpoint = open_checkpoint(folder)
    seconds = time.process_time() - start
    assert checkpoint.nbytes > 130e9
    assert seconds < 5  # half a second on a free core
    tracemalloc.start()
    open_checkpoint(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    wo = checkpoint.tensors["layers.79.attention.wo.weight"]
    assert isinstance(wo, Deferred)
    assert (wo.shape, wo.kind) == ((8192, 8192), "float16")


def test_llama2c_training_checkpoint() -> None:
    checkpoint = open_checkpoint(TRAINING)
    config = checkpoint.config
    assert (config.dim, config.n_heads, config.n_kv_heads, config.hidden_dim) == (8, 2, 1, 24)
    assert (config.max_seq_len, config.tied_head, config.norm_eps) == (16, True, 1e-5)
    assert set(checkpoint.tensors) == set(model_values())
    for name, values in model_values().items():
        np.testing.assert_array_equal(np.asarray(checkpoint.tensors[name]), values)
    assert np.isfinite(llamagpu.load(TRAINING, "cpu").logits([1, 2, 19])).all()


@pytest.mark.parametrize("n_shards", [1, 2])
def test_commands(n_shards: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """info, convert and run, with the tokenizer beside the model's folder, as Meta ships Llama 1 and 2."""
    folder = write_meta(tmp_path / "7B", SHAPE, n_shards, BFLOAT16, max_seq_len=32)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin(300))
    info(str(folder))
    shown = capsys.readouterr().out
    assert "Meta checkpoint" in shown
    assert "bfloat16" in shown
    assert f"from {tmp_path / 'tokenizer.bin'}" in shown
    out = tmp_path / "model.bin"
    convert(str(folder), str(out))
    for name, tensor in open_checkpoint(out).tensors.items():
        assert np.asarray(tensor).dtype == BFLOAT16, name
    np.testing.assert_array_equal(logits(out), logits(folder))
    first = "".join(llamagpu.load(folder, "cpu").generate("the", max_tokens=8, seed=1))
    assert first == "".join(llamagpu.load(out, "cpu").generate("the", max_tokens=8, seed=1))


def test_a_zip_is_taken_before_its_unzipped_folder(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "model", SHAPE)
    expected = logits(folder)
    (folder / "consolidated.00").mkdir()
    np.testing.assert_array_equal(logits(folder), expected)


def test_old_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + bytes(100))
    with pytest.raises(ModelFormatError, match=r"before 1\.6.*save it again"):
        open_checkpoint(path)
    hugging_face = {"model.embed_tokens.weight": np.zeros((3, 2), np.float32)}
    path.write_bytes(torch_bytes(hugging_face))
    with pytest.raises(ModelFormatError, match=r"Hugging Face's.*safetensors"):
        open_checkpoint(path)
