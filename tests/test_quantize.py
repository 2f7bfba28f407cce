"""GPTQ of whole models: the calibration's forward pass is the model's, and what it makes is better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.calibrate import FEWEST_TOKENS, CalibratedLayers, calibration_sequences
from llamagpu.checkpoint import Checkpoint
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.quantization import AffineQuant, Deferred, round_to_nearest
from llamagpu.quantization.gptq_solver import Hessian, gptq
from llamagpu.quantize import Recipe, quantised
from llamagpu.tokenizers import open_spec, read_spec
from tests.float_models import MODELS, float_model
from tests.models.reference_by_names import forward_by_names
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v2_bytes

SEQUENCES = [np.random.default_rng(i).integers(0, 320, n) for i, n in enumerate((40, 64, 17))]


def made(plan: Checkpoint) -> Checkpoint:
    """Every Deferred matrix put together, once, in order."""
    tensors = {name: t.materialize() if isinstance(t, Deferred) else t for name, t in plan.tensors.items()}
    return replace(plan, tensors=tensors)


def plain_weights(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    out = {}
    for name, tensor in checkpoint.tensors.items():
        values = tensor.dequantize() if isinstance(tensor, AffineQuant) else np.asarray(tensor, np.float32)
        if isinstance(tensor, AffineQuant) and tensor.perm is not None:
            values = values[:, np.argsort(tensor.perm)]
        out[name] = values
    return out


def logits(checkpoint: Checkpoint, ids: NDArray[Any]) -> NDArray[np.float64]:
    config = checkpoint.config
    if config.first_window_layer:  # the reference has one window for all layers
        return LLM(checkpoint, "cpu").logits(ids.tolist()).astype(np.float64)
    return forward_by_names(
        plain_weights(checkpoint), ids.tolist(), config.head_dim, config.norm_eps, config.rope_theta,
        config.rope_layout == "half_split", config.rope_factors, config.rope_attention_factor, config.sliding_window,
    )  # fmt: skip


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_calibration_runs_the_quantised_model(name: str, act_order: bool) -> None:
    """x after the last layer, through norm and head, is what the finished model says of the same tokens."""
    source = float_model(name)
    layers: list[CalibratedLayers] = []
    kept_init = CalibratedLayers.__init__

    def keep(self: CalibratedLayers, *arguments: Any) -> None:
        kept_init(self, *arguments)
        layers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalibratedLayers, "__init__", keep)
        result = made(quantised(source, Recipe(4, 32, 8, SEQUENCES, act_order)))
    assert all(isinstance(t, AffineQuant) == (len(t.shape) == 2) for t in result.tensors.values())
    weights = plain_weights(result)
    head = weights["tok_embeddings.weight" if source.config.tied_head else "output.weight"]
    for ids, x in zip(SEQUENCES, layers[0].x, strict=True):
        normed = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + source.config.norm_eps) * weights["norm.weight"]
        np.testing.assert_allclose(normed @ head.T, logits(result, ids), atol=1e-4)
    assert {t.perm is not None for t in result.tensors.values() if isinstance(t, AffineQuant)} == {act_order, False}


def test_first_matrices_are_solved_for_what_they_read() -> None:
    """wq and wk of the first layer, by hand: the rows of the quantised embedding, normed."""
    source = float_model()
    result = made(quantised(source, Recipe(4, 16, 4, SEQUENCES, act_order=True)))
    table = round_to_nearest(np.asarray(source.tensors["tok_embeddings.weight"]), 4, 16)
    x = table.dequantize()[np.concatenate(SEQUENCES)]
    norm = np.asarray(source.tensors["layers.0.attention_norm.weight"])
    hessian = Hessian(64)
    hessian.add(x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * norm)
    for name in ("layers.0.attention.wq.weight", "layers.0.attention.wk.weight"):
        expected = gptq(np.asarray(source.tensors[name]), hessian.sum, 4, 16, act_order=True)
        found = result.tensors[name]
        assert isinstance(found, AffineQuant)
        np.testing.assert_array_equal(found.perm, expected.perm)
        assert (found.rows() == expected.rows()).mean() > 0.99  # sums of x x^T in another order


def test_planned_sizes_are_those_of_what_is_made() -> None:
    for recipe in (Recipe(4, 32, 8), Recipe(8, 0, 16), Recipe(4, 128, 4, SEQUENCES, act_order=True)):
        plan = quantised(float_model("qwen2"), recipe)
        solved: list[int] = []
        assert plan.nbytes >= made(plan).nbytes > 0.97 * plan.nbytes  # a perm in order is not stored
        plan = quantised(float_model("qwen2"), recipe, solved.append)
        made(plan)
        assert len(solved) == (14 if recipe.sequences else 0)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", "float16"), ("float16", "float16")])
def test_embedding_and_head_of_16_bits(dtype: str, expected: str) -> None:
    result = made(quantised(float_model(dtype=dtype), Recipe(4, 32, 16)))
    for name in ("tok_embeddings.weight", "output.weight"):
        tensor = result.tensors[name]
        assert isinstance(tensor, np.ndarray)
        assert tensor.dtype == expected
    huge = float_model()
    np.asarray(huge.tensors["output.weight"])[3, 3] = 1e9
    with pytest.raises(ModelFormatError, match=r"output\.weight: has .*too large for float16"):
        made(quantised(huge, Recipe(4, 32, 16)))


@pytest.mark.parametrize("name", ["layers.1.attention.wo.weight", "tok_embeddings.weight"])
@pytest.mark.parametrize("sequences", [None, SEQUENCES])
def test_weights_that_are_no_numbers(name: str, sequences: Any) -> None:
    source = float_model()
    np.asarray(source.tensors[name])[5, 5] = np.nan
    with pytest.raises(ModelFormatError, match=f"{name}: has weights that are no numbers"):
        made(quantised(source, Recipe(4, 32, 8, sequences)))


def test_quantised_sources_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "q8.bin"
    path.write_bytes(v2_bytes(Shape(), random_weights(Shape()), 8))
    with pytest.raises(UsageError, match=r"already quantised.*int8.*--quantize none"):
        quantised(open_checkpoint(path), Recipe(4, 32, 8))
    with pytest.raises(UsageError, match=r"already quantised.*8-bit"):
        quantised(quantised(float_model(), Recipe(4, 32, 8)), Recipe(8, 32, 8))


def test_calibration_text_becomes_sequences(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(tokenizer_bin())
    tokenizer = open_spec(read_spec(path), path)
    model = tmp_path / "m.bin"
    model.write_bytes(v0_bytes(Shape(), random_weights(Shape())))
    config = open_checkpoint(model).config  # of 32 positions and 300 tokens
    text = "on the table " * 200
    ids = tokenizer.encode(text, add_bos=False)
    sequences = calibration_sequences(text, tokenizer, config, 100)
    assert [len(s) for s in sequences] == [32, 32, 32, 8]
    assert {int(s[0]) for s in sequences} == {1}
    assert [int(t) for s in sequences for t in s[1:]] == ids[:100]
    whole = calibration_sequences(text, tokenizer, config, 1 << 20)
    assert sum(len(s) - 1 for s in whole) == len(ids)
    with pytest.raises(UsageError, match=f"too few to learn from: give {FEWEST_TOKENS}"):
        calibration_sequences("on the", tokenizer, config, 100)
    with pytest.raises(UsageError, match="has token"):
        calibration_sequences(text, tokenizer, replace(config, vocab_size=20), 1000)
