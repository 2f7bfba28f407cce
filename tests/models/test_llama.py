from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import llamagpu
from llamagpu.checkpoint import Checkpoint
from llamagpu.errors import UsageError
from llamagpu.formats import native, open_checkpoint
from tests.models.reference_llama import reference_logits
from tests.small_files import Shape, q8_values, random_weights, v0_bytes, v2_bytes

SHAPES = [
    Shape(),
    Shape(tied=False, n_kv_heads=1),
    Shape(dim=24, n_heads=3, n_kv_heads=3, hidden_dim=7, n_layers=3, vocab_size=33),
    Shape(dim=12, n_heads=6, n_kv_heads=2, hidden_dim=20, tied=False),
]
IDS = [1, 7, 30, 7, 2, 0, 29, 11, 11, 5, 1, 3]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_equal_an_independent_forward_pass(shape: Shape, tmp_path: Path) -> None:
    weights = random_weights(shape)
    path = tmp_path / "model.bin"
    path.write_bytes(v0_bytes(shape, weights))
    logits = llamagpu.load(path, device="cpu").logits(IDS)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference_logits(shape, weights, IDS), atol=2e-5)


@pytest.mark.parametrize("group_size", [4, 8])
def test_logits_of_an_8_bit_model(group_size: int, tmp_path: Path) -> None:
    """hidden_dim 20: at group 8, groups of w2 cross its rows."""
    shape = Shape(hidden_dim=20, tied=False)
    weights = random_weights(shape)
    path = tmp_path / "model.bin"
    path.write_bytes(v2_bytes(shape, weights, group_size))
    rounded = {k: q8_values(v, group_size) if v.ndim > 1 and "norm" not in k else v for k, v in weights.items()}
    np.testing.assert_allclose(llamagpu.load(path).logits(IDS), reference_logits(shape, rounded, IDS), atol=2e-5)


def test_half_split_rope(tmp_path: Path) -> None:
    shape = Shape()
    weights = random_weights(shape)
    source, path = tmp_path / "source.bin", tmp_path / "model.bin"
    source.write_bytes(v0_bytes(shape, weights))
    opened = open_checkpoint(source)
    config = dataclasses.replace(opened.config, rope_layout="half_split")
    native.write(path, Checkpoint(source, "", config, opened.tensors))
    expected = reference_logits(shape, weights, IDS, half_split=True)
    np.testing.assert_allclose(llamagpu.load(path).logits(IDS), expected, atol=2e-5)
    assert np.abs(expected - reference_logits(shape, weights, IDS)).max() > 0.01


@pytest.mark.parametrize("chunk", [1, 3, 5, 12])
def test_chunks_of_any_size_give_the_same_logits(
    chunk: int, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = llamagpu.load(small_model)
    whole = llm.logits(IDS)
    monkeypatch.setattr("llamagpu.llm.PROMPT_CHUNK", chunk)
    np.testing.assert_allclose(llm.logits(IDS), whole, atol=1e-5)


def test_two_runs_give_equal_bits(small_model: Path) -> None:
    first, second = llamagpu.load(small_model), llamagpu.load(small_model)
    np.testing.assert_array_equal(first.logits(IDS), second.logits(IDS))
    np.testing.assert_array_equal(first.logits(IDS), first.logits(IDS))


def test_logits_refuse_what_is_no_token(small_model: Path) -> None:
    llm = llamagpu.load(small_model)
    for ids in ([300], [-1], [1, 10**9]):
        with pytest.raises(UsageError, match="is not of this model"):
            llm.logits(ids)
    for ids in ([], [1] * 33):
        with pytest.raises(UsageError, match="fit the context"):
            llm.logits(ids)


def test_float16_weights_run_as_float32(small_model: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(small_model)
    halves = {name: np.asarray(tensor).astype(np.float16) for name, tensor in opened.tensors.items()}
    widened = {name: half.astype(np.float32) for name, half in halves.items()}
    logits = []
    for tensors in (halves, widened):
        native.write(tmp_path / "model.bin", Checkpoint(small_model, "", opened.config, tensors))
        logits.append(llamagpu.load(tmp_path / "model.bin").logits(IDS))
    np.testing.assert_array_equal(logits[0], logits[1])


def test_stories260k_logits(data: Path) -> None:
    ids = np.load(data / "llama2c" / "stories260K.greedy200.ids.npy")
    expected = np.load(data / "llama2c" / "stories260K.greedy200.logits.npy")
    logits = llamagpu.load(data / "llama2c" / "stories260K.bin", device="cpu").logits(ids[:200].tolist())
    assert np.abs(logits - expected).max() < 1e-4


def test_stories260k_text(data: Path) -> None:
    folder = data / "llama2c"
    expected = (folder / "stories260K.expected_stdout_200.txt").read_text()
    for name, n_characters in [("stories260K.bin", len(expected)), ("stories260K_q80.bin", 295)]:
        llm = llamagpu.load(folder / name, device="cpu", tokenizer=folder / "tok512.bin")
        text = "".join(llm.generate("", max_tokens=220, temperature=0))
        assert text[:n_characters] == expected[:n_characters]
