"""Hugging Face folders of RWKV-4 to 7: against transformers, and forward passes that share nothing with ours."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from tests.references import make_rwkv_transformers
from tests.references.rwkv_reference import VERSIONS, Reference, random_weights
from tests.rwkv_files import Arrays, huggingface_arrays, huggingface_config, write_folder

IDS = make_rwkv_transformers.TOKENS


def logits(folder: Path) -> Any:
    return LLM(open_checkpoint(folder), "cpu").logits(IDS)


@pytest.mark.parametrize("case", make_rwkv_transformers.CASES)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    """That halves the stream where config.json says so, against overflows of float16. It changes nothing but how large
    the eps of a norm is beside it, and that is no part of the model: the reference shows that it is all."""
    folder = make_rwkv_transformers.build(case, tmp_path)
    with np.load(make_rwkv_transformers.STORED) as stored:
        expected = stored[case]
    if case == "rescaled":
        weights = make_rwkv_transformers.weights_of(case)
        np.testing.assert_allclose(Reference(weights, 4, rescale_every=1).logits(IDS), expected, atol=1e-4)
        expected = Reference(weights, 4).logits(IDS)
    np.testing.assert_allclose(logits(folder), expected, atol=1e-4)


@pytest.mark.skipif(not (find_spec("torch") and find_spec("transformers")), reason="what it computed is stored")
@pytest.mark.parametrize("case", make_rwkv_transformers.CASES)
def test_transformers_still_computes_what_is_stored(case: str, tmp_path: Path) -> None:
    with np.load(make_rwkv_transformers.STORED) as stored:
        expected = stored[case]
    found = make_rwkv_transformers.computed(make_rwkv_transformers.build(case, tmp_path))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [{}, {"head_dim": 32, "n_layers": 1}, {"dim": 24, "head_dim": 3, "rank": 2}], ids=str)
def test_equals_an_independent_forward_pass(version: int, shape: dict[str, int], tmp_path: Path) -> None:
    weights = random_weights(version, **shape)
    folder = write_folder(tmp_path, huggingface_arrays(weights), huggingface_config(weights))
    head_eps = 1e-5 * weights["blocks.0.att.r_k"].shape[1] if version == 7 else 64e-5
    np.testing.assert_allclose(logits(folder), Reference(weights, version, head_eps).logits(IDS), atol=1e-4)
    np.testing.assert_array_equal(logits(folder / "model.safetensors"), logits(folder))


def test_the_norm_of_a_head_is_that_of_config_json(tmp_path: Path) -> None:
    weights = random_weights(7, head_dim=16)
    folder = write_folder(tmp_path, huggingface_arrays(weights), huggingface_config(weights) | {"norm_eps": 1e-2})
    config = open_checkpoint(folder).config
    assert (config.norm_eps, config.group_norm_eps) == (1e-2, 0.16)
    weights = random_weights(6)
    folder = write_folder(tmp_path, huggingface_arrays(weights), huggingface_config(weights) | {"head_size_divisor": 4})
    expected = Reference(weights, 6, 16e-5).logits(IDS)
    np.testing.assert_allclose(logits(folder), expected, atol=1e-4)


def test_mixes_in_one_tensor(tmp_path: Path) -> None:
    """As the first release of flash-linear-attention's RWKV-7 has them."""
    weights = random_weights(7)
    arrays = huggingface_arrays(weights)
    for i in range(3):
        rows = [arrays.pop(f"model.layers.{i}.attn.x_{x}").reshape(-1) for x in "rwkvag"]
        arrays[f"model.layers.{i}.attn.x_x"] = np.stack(rows)
    folder = write_folder(tmp_path, arrays, huggingface_config(weights))
    np.testing.assert_allclose(logits(folder), Reference(weights, 7, 8e-5).logits(IDS), atol=1e-4)


def test_what_is_beside_the_weights(tmp_path: Path) -> None:
    weights = random_weights(6)
    config = huggingface_config(weights) | {"eos_token_id": [3, 9]}
    folder = write_folder(tmp_path, huggingface_arrays(weights), config)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.stop_tokens, checkpoint.chat_template) == ((3, 9), "{{ messages }}")
    assert checkpoint.sampling == {"temperature": 0.5}
    assert "never run" in checkpoint.notes[0]


REFUSED: list[tuple[int, dict[str, Any], str]] = [
    (4, {"hidden_size": 64}, "hidden_size"),
    (4, {"vocab_size": 71}, "vocab_size"),
    (4, {"attention_hidden_size": 64}, "attention_hidden_size"),
    (4, {"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon"),
    (4, {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    (4, {"model_type": "rwkv6"}, "model_type"),
    (5, {"head_size": 16}, "head_size"),
    (5, {"head_size_divisor": 0}, "head_size_divisor"),
    (5, {"num_hidden_layers": 4}, "num_hidden_layers"),
    (6, {"intermediate_size": 10}, "intermediate_size"),
    (6, {"quantization_config": {"bits": 4}}, "quantization_config"),
    (7, {"attn": {"layers": [1]}}, "attn"),
    (7, {"hidden_act": "swish"}, "hidden_act"),
    (7, {"norm_first": False}, "norm_first"),
    (7, {"norm_bias": False}, "norm_bias"),
    (7, {"norm_eps": "small"}, "norm_eps"),
    (7, {"norm_eps": float("nan")}, "norm_eps"),
    (7, {"value_dim": [32, 64, 32]}, "value_dim"),
    (7, {"num_heads": 3}, "num_heads"),
    (7, {"head_dim": True}, "head_dim"),
]


@pytest.mark.parametrize(("version", "change", "field"), REFUSED, ids=str)
def test_config_json_that_does_not_fit(version: int, change: dict[str, Any], field: str, tmp_path: Path) -> None:
    weights = random_weights(version)
    folder = write_folder(tmp_path, huggingface_arrays(weights), huggingface_config(weights) | change)
    with pytest.raises(ModelFormatError, match=field) as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)


def without(arrays: Arrays, name: str) -> Arrays:
    return {other: array for other, array in arrays.items() if other != name}


@pytest.mark.parametrize("version", VERSIONS)
def test_tensors_that_do_not_fit(version: int, tmp_path: Path) -> None:
    weights = random_weights(version)
    arrays = huggingface_arrays(weights)
    config = huggingface_config(weights)
    head, key = (
        [name for name in arrays if "head" in name],
        [name for name in arrays if "ffn.k" in name or "d.key" in name],
    )
    cases: list[tuple[Arrays, str]] = [
        (without(arrays, head[0]), "is missing"),
        (without(arrays, key[-1]), "is missing"),
        ({**arrays, "model.layers.0.attn.q_proj.weight": arrays[key[0]]}, r"layers.0.attn.q_proj.weight: is a tensor"),
        ({**arrays, "rwkv.model.odd": arrays[key[0]]}, "rwkv.model.odd: is a tensor that no RWKV has"),
        ({**arrays, key[0]: arrays[key[0]][:, :-1]}, f"{key[0]}: of shape"),
        ({**arrays, key[0]: arrays[key[0]].astype(np.int32)}, f"{key[0]}: has type int32"),
        ({**arrays, key[0]: np.stack([arrays[key[0]]] * 2)}, f"{key[0]}: is of shape"),
    ]
    for i, (changed, problem) in enumerate(cases):
        with pytest.raises(ModelFormatError, match=problem):
            open_checkpoint(write_folder(tmp_path / str(i), changed, config))
