"""Hugging Face folders: logits against transformers', and what the files beside the weights say."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu import commands, convert_command, inspect_commands
from llamagpu.backends.cpu.rope import rope_angles
from llamagpu.checkpoint import llama_shapes
from llamagpu.config import ModelConfig
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import native, open_checkpoint
from llamagpu.formats.huggingface_config import read_config
from llamagpu.generation import Generation
from llamagpu.llm import model_path
from tests.formats.quantized_folders import Quantized, build_pair
from tests.references.make_huggingface import (
    CASES,
    KEPT,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    TOKENS,
    build,
    computed,
    expected,
    random_tensors,
    write_folder,
)  # fmt: skip
from tests.tokenizers.tokenizer_json import llama3_like, qwen2_like

PATH = Path("config.json")


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    logits = llamagpu.load(build(name, tmp_path), device="cpu").logits(TOKENS)[KEPT]
    assert np.abs(logits - expected(name)).max() < 1e-4
    assert np.abs(expected(name)).max() > 1


def test_the_stored_logits_are_those_of_transformers() -> None:
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: only the stored results of transformers are compared with")
    for name in CASES:
        assert np.abs(computed(name) - expected(name)).max() < 1e-5, name


def test_a_case_without_its_peculiarity_is_far_off(tmp_path: Path) -> None:
    """So the comparison above would notice: RoPE scaling and windows matter at these lengths."""
    for name, changes in {
        "llama linear": {"rope_scaling": None},
        "llama llama3": {"rope_scaling": CASES["llama llama3"][0]["rope_scaling"] | {"factor": 4.0}},
        "llama yarn": {"rope_scaling": CASES["llama yarn"][0]["rope_scaling"] | {"attention_factor": 1.0}},
        "mistral window": {"sliding_window": 10},
        "qwen2 window": {"max_window_layers": 0},
    }.items():
        folder = build(name, tmp_path / name)
        (folder / "config.json").write_text(json.dumps(CASES[name][0] | changes))
        logits = llamagpu.load(folder, device="cpu").logits(TOKENS)[KEPT]
        assert np.abs(logits - expected(name)).max() > 0.1, name


def config_of(values: dict[str, Any], **changes: Any) -> ModelConfig:
    return read_config(PATH, values | changes)[0]


def test_what_config_json_means() -> None:
    config = config_of(LLAMA)
    assert (config.architecture, config.dim, config.n_kv_heads, config.head_dim) == ("llama", 64, 2, 16)
    assert (config.rope_layout, config.rope_theta, config.max_seq_len) == ("half_split", 500.0, 128)
    assert (config.qkv_bias, config.qk_norm, config.sliding_window, config.tied_head) == (False, False, 0, False)
    assert config_of(LLAMA, num_key_value_heads=None).n_kv_heads == 4
    assert config_of(LLAMA, head_dim=None).head_dim == 16
    assert config_of(LLAMA, head_dim=24).head_dim == 24
    assert config_of(LLAMA, attention_bias=True).qkv_bias
    assert config_of(LLAMA, hidden_act="swish", mlp_bias=None, num_experts=0, partial_rotary_factor=1.0) == config
    assert config_of(LLAMA, architectures=None) == config
    assert config_of(LLAMA, rope_scaling={"type": "default", "rope_theta": 500.0}, rope_theta=1.0) == config
    assert config_of(QWEN2).qkv_bias
    assert config_of(QWEN3).qk_norm
    assert config_of({key: value for key, value in QWEN3.items() if key != "head_dim"}).head_dim == 128


@pytest.mark.parametrize(
    ("values", "changes", "window", "first"),
    [
        (LLAMA, {"sliding_window": 5}, 0, 0),  # which Llama does not have
        (MISTRAL, {"max_position_embeddings": 5000}, 4096, 0),  # what transformers takes where nothing is said
        (MISTRAL, {}, 0, 0),  # which never closes
        (MISTRAL, {"sliding_window": 1 << 40}, 0, 0),
        (MISTRAL, {"sliding_window": None}, 0, 0),
        (MISTRAL, {"sliding_window": 5, "layer_types": ["sliding_attention"] * 3}, 5, 0),
        (QWEN2, {"sliding_window": 5, "max_window_layers": 1}, 0, 0),
        (QWEN2, {"sliding_window": 5, "max_window_layers": 1, "use_sliding_window": True}, 5, 1),
        (QWEN3, {"sliding_window": 5, "max_window_layers": 0, "use_sliding_window": True}, 5, 0),
        (QWEN3, {"sliding_window": 5, "max_window_layers": 28, "use_sliding_window": True}, 0, 0),
        (QWEN3, {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, 0, 0),
        (QWEN3, {"layer_types": ["full_attention"] * 3}, 0, 0),
    ],
)
def test_windows(values: dict[str, Any], changes: dict[str, Any], window: int, first: int) -> None:
    config = config_of(values, **changes)
    assert (config.sliding_window, config.first_window_layer) == (window, first)


def test_stretched_frequencies_of_llama_3_1() -> None:
    """Wavelengths by hand: below 8192 / 4 positions they stay, above 8192 they grow eightfold."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    config = config_of(LLAMA, head_dim=128, rope_theta=500000.0, rope_scaling=scaling)
    assert config.rope_factors is not None
    for j, factor in enumerate(config.rope_factors):
        wavelength = 2 * np.pi * 500000.0 ** (2 * j / 128)
        if wavelength < 2048:
            assert factor == 1
        elif wavelength > 8192:
            assert factor == 8
        else:
            assert 1 < factor < 8
    assert rope_angles(1, 1, config)[0].shape == (1, 64)


def with_text_files(folder: Path, **files: Any) -> Path:
    """``files``: by name without .json, what goes into them."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{name}.json").write_bytes(data)
    return folder


def small_folder(folder: Path, vocab_size: int = 512, **changes: Any) -> Path:
    config = LLAMA | {"vocab_size": vocab_size} | changes
    return with_text_files(write_folder(folder, config, random_tensors(config, seed=1)), tokenizer=llama3_like())


def test_end_tokens_sampling_and_chat_template(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, eos_token_id=502)
    plain = open_checkpoint(folder)
    assert (plain.stop_tokens, plain.sampling, plain.chat_template) == ((502,), {}, None)
    with_text_files(
        folder,
        generation_config={"eos_token_id": [501, 502, 99999, -1], "temperature": 0.6, "top_p": 0.9, "top_k": None,
                           "min_p": float("nan"), "repetition_penalty": 10**400, "max_length": 20},
        tokenizer_config={
            "eos_token": {"content": "<|begin_of_text|>"},
            "added_tokens_decoder": {"500": {"content": "<|begin_of_text|>"}, "501": {"content": "<|end_of_text|>"}},
            "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}],
        },
    )  # fmt: skip
    checkpoint = open_checkpoint(folder)
    assert checkpoint.stop_tokens == (501, 502, 500)
    assert checkpoint.sampling == {"temperature": 0.6, "top_p": 0.9}
    assert checkpoint.chat_template == "yes"
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with_text_files(folder, generation_config={"do_sample": False, "temperature": 0.6})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.chat_template == "{{ messages }}"
    assert checkpoint.sampling == {}


def test_a_generation_ends_with_an_end_token(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    generation = llamagpu.load(folder, device="cpu").generate("Once", max_tokens=8, temperature=0)
    assert isinstance(generation, Generation)
    assert "".join(generation)
    assert generation.stop_reason == "max_tokens"
    with_text_files(folder, generation_config={"eos_token_id": generation.tokens[3]})
    again = llamagpu.load(folder, device="cpu").generate("Once", max_tokens=8, temperature=0)
    assert "".join(again) is not None
    assert again.stop_reason == "eos"
    assert again.tokens == generation.tokens[: generation.tokens.index(generation.tokens[3])]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    llm = llamagpu.load(small_folder(tmp_path / "less", vocab_size=400), device="cpu")
    with pytest.raises(ModelFormatError, match="is 503, but the model has 400 tokens"):
        llm.tokenizer.encode("a")
    # but added tokens may be beyond: the first Llama 2 folders had a <pad> that the model has no row for
    folder = small_folder(tmp_path / "pad", vocab_size=502)
    assert llamagpu.load(folder, device="cpu").tokenizer.vocab_size == 503
    with pytest.raises(ModelFormatError, match="is 503, but the model has 502 tokens"):
        llamagpu.load(folder, device="cpu", tokenizer=folder / "tokenizer.json")


def test_a_name_that_is_there_twice_is_found_at_once(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    names = ",".join(f'"{i}":0' for i in range(120_000))
    (folder / "generation_config.json").write_text(f'{{{names},"119999":1}}')
    with pytest.raises(ModelFormatError, match="119999: is there twice"):
        open_checkpoint(folder)


def test_a_folder_that_holds_a_meta_file_too(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    (folder / "consolidated.00.pth").write_bytes(b"half a download")
    assert open_checkpoint(folder).format.startswith("Hugging Face")
    with pytest.raises(ModelFormatError, match="give the folder that it is in"):
        open_checkpoint(folder / "config.json")


@pytest.mark.parametrize("template", ["a\ud800", "{" * 40_000, "\x01" * (1 << 22)], ids=["surrogate", "braces", "long"])
def test_a_template_that_no_file_can_keep_stops_convert(template: str, tmp_path: Path) -> None:
    checkpoint = replace(open_checkpoint(small_folder(tmp_path)), chat_template=template)
    (tmp_path / "out.bin").write_bytes(b"a good file")
    with pytest.raises(UsageError, match="chat template"):
        native.write(tmp_path / "out.bin", checkpoint)
    assert (tmp_path / "out.bin").read_bytes() == b"a good file"
    assert not list(tmp_path.glob("*.part"))


def test_settings_that_change_nothing() -> None:
    assert config_of(LLAMA, rope_scaling={"rope_type": "default", "factor": 1.0}).rope_factors is None
    without = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    assert config_of(without, rope_theta=None).rope_theta == 10000


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    """Nor is one that lies beside the folder taken for it."""
    (tmp_path / "tokenizer.json").write_bytes(llama3_like())
    folder = build("llama mha", tmp_path / "model")
    with pytest.raises(UsageError, match="holds no tokenizer"):
        llamagpu.load(folder, device="cpu").tokenizer.encode("a")
    assert llamagpu.load(small_folder(folder), tokenizer=tmp_path / "tokenizer.json", device="cpu").tokenizer.vocab_size


def test_sentencepiece_where_tokenizer_json_is_missing(tmp_path: Path) -> None:
    demo = open_checkpoint(model_path("demo")).tokenizer
    assert demo is not None
    folder = small_folder(tmp_path, vocab_size=4200)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(demo.data)
    with_text_files(
        folder, added_tokens={"<|im_end|>": 4100}, tokenizer_config={"add_bos_token": False, "eos_token": "<|im_end|>"}
    )
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tokenizer is not None
    assert replace(checkpoint.tokenizer, facts=None) == demo
    assert checkpoint.stop_tokens == (4100,)
    assert checkpoint.notes == ()
    tokenizer = llamagpu.load(folder, device="cpu").tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (None, 4100, 4101)


def test_an_untied_head_that_is_said_to_be_tied_is_used(tmp_path: Path) -> None:
    config = LLAMA | {"tie_word_embeddings": True}
    tensors = random_tensors(LLAMA, seed=5)
    logits = llamagpu.load(write_folder(tmp_path / "a", LLAMA, tensors), device="cpu").logits(TOKENS)
    checkpoint = open_checkpoint(write_folder(tmp_path / "b", config, tensors))
    assert "lm_head.weight" in checkpoint.notes[0]
    np.testing.assert_array_equal(llamagpu.load(tmp_path / "b", device="cpu").logits(TOKENS), logits)


def test_old_tensors_that_are_computed_anew(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, seed=5)
    names = set(open_checkpoint(write_folder(tmp_path, LLAMA, tensors)).tensors)
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for i in range(3)}
    assert set(open_checkpoint(write_folder(tmp_path, LLAMA, tensors)).tensors) == names


def test_a_file_of_the_folder_stands_for_the_model(tmp_path: Path) -> None:
    whole, sharded = build("llama mha", tmp_path / "whole"), build("llama gqa tied", tmp_path / "sharded")
    for folder, file in ((whole, "model.safetensors"), (sharded, "model-00002-of-00003.safetensors")):
        assert set(open_checkpoint(folder / file).tensors) == set(open_checkpoint(folder).tensors)


def test_every_command_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantized, _ = build_pair(Quantized(config=QWEN2 | {"hidden_size": 128, "vocab_size": 512}), tmp_path)
    with_text_files(quantized, tokenizer=qwen2_like())
    for folder in (small_folder(tmp_path / "bfloat16"), quantized, build("mistral", tmp_path / "mistral")):
        if folder.name == "mistral":
            convert_command.convert(str(folder), str(tmp_path / "mistral.bin"), tokenizer="none")
            logits = llamagpu.load(tmp_path / "mistral.bin", device="cpu").logits(TOKENS)
            np.testing.assert_array_equal(logits, llamagpu.load(folder, device="cpu").logits(TOKENS))
            continue
        inspect_commands.info(str(folder))
        told = capsys.readouterr().out
        assert "Hugging Face" in told
        assert "huggingface, 503 tokens" in told
        inspect_commands.tokenize(str(folder), "Once upon")
        assert len(capsys.readouterr().out.split()) in (2, 3)
        out = str(tmp_path / f"{folder.name}.bin")
        convert_command.convert(str(folder), out)
        texts = []
        for model in (str(folder), out):
            commands.run(model, "Once upon", device="cpu", seed=1, max_tokens=8)
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] != ""
    inspect_commands.info(str(quantized))
    assert "GPTQ 4-bit (group 32) x 21" in capsys.readouterr().out


def test_a_vast_model_opens_at_once(tmp_path: Path) -> None:
    """Sparse files of 40 GB: nothing is read before it is used."""
    config = LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 22, "vocab_size": 128256,
                      "num_attention_heads": 64, "num_key_value_heads": 8}  # fmt: skip
    shapes = llama_shapes(read_config(PATH, config)[0])
    names = list(random_tensors(LLAMA | {"num_hidden_layers": 22, "vocab_size": 8}, seed=0))
    offset, header = 0, {}
    from llamagpu.formats.huggingface import their_name

    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[their_name(name)] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    assert set(header) == set(names)
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            os.truncate(file.name, 8 + len(text) + offset)
        except OSError as error:
            pytest.skip(f"no sparse file of {offset} bytes here: {error}")
    start = time.process_time()
    checkpoint = open_checkpoint(tmp_path)
    assert time.process_time() - start < 1
    assert checkpoint.nbytes == offset > 36e9
