"""What a config.json leaves out or says in another way, and what the tensors say against it: read as transformers does.

Logits of such folders against transformers' own are in test_huggingface.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu import commands
from llamagpu.config import ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats import native, open_checkpoint
from llamagpu.formats.fingerprint import fingerprint
from llamagpu.formats.huggingface_config import read_config
from llamagpu.formats.huggingface_writer import write_folder as write_huggingface
from tests.float_models import float_model
from tests.formats.quantized_folders import Quantized, tensors_of
from tests.references.make_huggingface import (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    TOKENS,
    build,
    expected,
    random_tensors,
    write_folder,
)  # fmt: skip
from tests.tokenizers.tokenizer_json import llama3_like

PATH = Path("config.json")
ORIGINAL = "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64}


def config_of(values: dict[str, Any], **changes: Any) -> tuple[ModelConfig, tuple[str, ...]]:
    return read_config(PATH, values | changes)


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


@pytest.mark.parametrize(
    ("changes", "positions", "n_notes"),
    [
        ({"max_position_embeddings": 64, "rope_scaling": YARN}, 256, 0),  # as Qwen tells people to write it
        ({"max_position_embeddings": 256, "rope_scaling": YARN}, 256, 0),  # the product
        ({"max_position_embeddings": 80, "rope_scaling": YARN}, 256, 0),  # Qwen3's have some positions more
        ({"max_position_embeddings": 64, "rope_parameters": YARN | {"rope_theta": 1e6}}, 256, 0),
        ({"max_position_embeddings": 64, "rope_scaling": YARN | {"factor": 2.5}}, 160, 0),
        ({"max_position_embeddings": 999, ORIGINAL: 32, "rope_scaling": YARN}, 128, 1),  # which goes first
        ({"max_position_embeddings": 300, "rope_scaling": YARN}, 256, 1),
        ({"max_position_embeddings": 64, "rope_scaling": without(YARN, ORIGINAL)}, 256, 1),
        ({"max_position_embeddings": 256, "rope_scaling": without(YARN, "factor")}, 256, 0),
        # the others say what they were stretched to
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}}, 64, 0),
        ({"max_position_embeddings": 256, "rope_scaling": {
            "rope_type": "llama3", "factor": 4.0, ORIGINAL: 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
         256, 0),
    ],
)  # fmt: skip
def test_positions_of_a_stretched_model(changes: dict[str, Any], positions: int, n_notes: int) -> None:
    config, notes = config_of(QWEN2, **changes)
    assert config.max_seq_len == positions
    assert len(notes) == n_notes


def test_yarn_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = QWEN2 | {"vocab_size": 512, "max_position_embeddings": 64, "rope_scaling": YARN}
    folder = write_folder(tmp_path, config, random_tensors(config, seed=1))
    (folder / "tokenizer.json").write_bytes(llama3_like())
    commands.run(str(folder), "Once upon", device="cpu", context=256, max_tokens=3, seed=1)
    assert capsys.readouterr().out
    assert llamagpu.load(folder, device="cpu").context == 256


def test_a_window_within_what_yarn_stretches_to() -> None:
    config, _ = config_of(MISTRAL, max_position_embeddings=64, sliding_window=100, rope_scaling=YARN)
    assert (config.sliding_window, config.max_seq_len) == (100, 256)


def test_yarn_keeps_its_positions_when_it_is_written(tmp_path: Path) -> None:
    config = LLAMA | {"max_position_embeddings": 48, "rope_scaling": YARN | {ORIGINAL: 48}}
    source = open_checkpoint(write_folder(tmp_path / "source", config, random_tensors(config, seed=1)))
    (tmp_path / "written").mkdir()
    write_huggingface(tmp_path / "written", source)
    again = open_checkpoint(tmp_path / "written")
    assert (again.config.max_seq_len, again.notes) == (192, ())
    np.testing.assert_allclose(logits_of(again.path), logits_of(source.path), atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("named", [[], None, "missing"])
def test_a_model_is_what_its_model_type_says(model_type: str, named: Any) -> None:
    values = {"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}[model_type]
    expected_config, _ = config_of(values)
    changed = without(values, "architectures") | ({} if named == "missing" else {"architectures": named})
    assert config_of(changed) == (expected_config, ())
    assert expected_config.architecture == model_type


@pytest.mark.parametrize(
    ("named", "n_notes"),
    [(["LLaMAForCausalLM"], 0), (["LlamaForCausalLM", "LlamaModel"], 0), (["LlamaModel"], 1), (["Mine\x1b"], 1)],
)
def test_an_architecture_under_another_name(named: list[str], n_notes: int) -> None:
    config, notes = config_of(LLAMA, architectures=named)
    assert (config, len(notes)) == (config_of(LLAMA)[0], n_notes)
    assert "".join(notes).isprintable()
    assert config_of(LLAMA, architectures=["LLaMAForCausalLM"], model_type=None)[0] == config


# Of transformers 5.24, by model_type.
DEFAULTS = {"llama": (2048, 32000, 4), "mistral": (131072, 32000, 8), "qwen2": (32768, 151936, 32)}
DEFAULTS["qwen3"] = DEFAULTS["qwen2"]


@pytest.mark.parametrize("values", [LLAMA, MISTRAL, QWEN2, QWEN3], ids=lambda values: values["model_type"])
def test_what_old_files_leave_out(values: dict[str, Any]) -> None:
    positions, vocab_size, n_kv_heads = DEFAULTS[values["model_type"]]
    told = {"max_position_embeddings": positions, "vocab_size": vocab_size, "rms_norm_eps": 1e-6}
    changes = {} if values is LLAMA else {"num_attention_heads": 32, "hidden_size": 64}
    others = ("num_key_value_heads", "rope_theta", "tie_word_embeddings")
    config, notes = config_of(without(values, *told, *others), **changes)
    assert (config.max_seq_len, config.vocab_size, config.norm_eps) == (positions, vocab_size, 1e-6)
    assert (config.n_kv_heads, config.rope_theta, config.tied_head) == (n_kv_heads, 10000, False)
    told |= {} if values is LLAMA else {"num_key_value_heads": n_kv_heads}
    assert [note.split(": ")[0] for note in notes] == [f"config.json has no {key}" for key in told]
    assert all(f": {value} is taken" in note for note, value in zip(notes, told.values(), strict=True))


def logits_of(path: Path) -> np.ndarray:
    return llamagpu.load(path, device="cpu").logits(TOKENS)


def test_a_tied_matrix_under_the_name_of_the_head(tmp_path: Path) -> None:
    config = LLAMA | {"tie_word_embeddings": True}
    tensors = random_tensors(config, seed=5)
    before = logits_of(write_folder(tmp_path / "a", config, tensors))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    both = open_checkpoint(write_folder(tmp_path / "b", config, tensors))
    np.testing.assert_array_equal(logits_of(both.path), before)  # equal ones are as good as one
    del tensors["model.embed_tokens.weight"]
    alone = open_checkpoint(write_folder(tmp_path / "c", config, tensors, 2))
    assert (alone.config.tied_head, alone.notes, "output.weight" in alone.tensors) == (True, (), False)
    np.testing.assert_array_equal(logits_of(alone.path), before)
    with pytest.raises(ModelFormatError, match=r"model\.embed_tokens\.weight: is missing"):
        open_checkpoint(write_folder(tmp_path / "d", LLAMA, tensors))  # not tied: another matrix


@pytest.mark.parametrize("name", ["llama all biases", "llama output bias", "qwen3 bias"])
def test_biases_through_every_file_that_we_write(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / "source")
    source = open_checkpoint(folder)
    assert source.config.out_bias
    assert source.config.ffn_bias == ("all" in name)
    assert np.asarray(source.tensors["layers.1.attention.wo.bias"]).any()
    native.write(tmp_path / "model.bin", source)
    (tmp_path / "written").mkdir()
    write_huggingface(tmp_path / "written", source)
    logits = logits_of(folder)
    np.testing.assert_array_equal(logits_of(tmp_path / "model.bin"), logits)
    np.testing.assert_array_equal(logits_of(tmp_path / "written"), logits)
    assert open_checkpoint(tmp_path / "written").config == source.config
    assert np.abs(logits[1::2] - expected(name)).max() < 1e-4


def test_biases_that_are_zeros_or_not_there_leave_a_model_as_it_was(tmp_path: Path) -> None:
    """Its fingerprint too, by which sessions know it."""
    config = LLAMA | {"attention_bias": True}
    tensors = random_tensors(config, seed=2)
    assert not np.any(tensors["model.layers.0.self_attn.o_proj.bias"])
    zeros = open_checkpoint(write_folder(tmp_path / "a", config, tensors))
    fewer = {key: value for key, value in tensors.items() if not key.endswith("o_proj.bias")}
    absent = open_checkpoint(write_folder(tmp_path / "b", config | {"mlp_bias": True}, fewer))
    for checkpoint in (zeros, absent):
        assert checkpoint.config.qkv_bias
        assert not {"out_bias", "ffn_bias"} & set(checkpoint.config.to_dict())
    assert fingerprint(zeros) == fingerprint(absent)
    biased = float_model("llama, biases")
    assert {"out_bias", "ffn_bias"} <= set(biased.config.to_dict())


def test_a_bias_that_some_layers_lack(tmp_path: Path) -> None:
    config = LLAMA | {"attention_bias": True, "output_bias": True}
    tensors = random_tensors(config, seed=2)
    del tensors["model.layers.1.self_attn.o_proj.bias"]
    with pytest.raises(ModelFormatError, match=r"model\.layers\.1\.self_attn\.o_proj\.bias: is missing"):
        open_checkpoint(write_folder(tmp_path, config, tensors))


@pytest.mark.parametrize("architecture", ["memory_llama", "rwkv4", "micro_rwkv"])
def test_a_bias_that_an_architecture_has_not(architecture: str) -> None:
    base = float_model().config.to_dict() | {"architecture": architecture}
    more = {"n_heads": 4, "n_kv_heads": 4} | ({"mem_len": 4} if architecture == "memory_llama" else {})
    with pytest.raises(ModelFormatError, match="out_bias: is true"):
        ModelConfig.checked("x", base | more | {"out_bias": True})
    with pytest.raises(ModelFormatError, match="ffn_bias: must be true or false"):
        ModelConfig.checked("x", base | {"ffn_bias": 1})


def test_a_quantised_model_with_a_bias_in_the_output(tmp_path: Path) -> None:
    case = Quantized(config=Quantized().config | {"attention_bias": True, "output_bias": True})
    tensors, _ = tensors_of(case)
    config = case.config | {"quantization_config": case.settings()}
    checkpoint = open_checkpoint(write_folder(tmp_path / "a", config, tensors))
    assert checkpoint.config.out_bias
    logits = logits_of(checkpoint.path)
    for i in range(2):
        tensors[f"model.layers.{i}.self_attn.o_proj.bias"] = np.zeros(config["hidden_size"], np.float32)
    assert np.abs(logits - logits_of(write_folder(tmp_path / "b", config, tensors))).max() > 0.1
