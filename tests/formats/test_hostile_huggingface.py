"""Damaged and hostile Hugging Face folders: each is a ModelFormatError of one line that names file and field."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from tests.references.make_huggingface import (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    Arrays,
    build,
    random_tensors,
    safetensors_bytes,
    write_folder,
)  # fmt: skip

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


def refuse(folder: Path, file: str, field: str) -> ModelFormatError:
    """Opening fails in one line that names the file and the field and says what to do; no big allocation."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError) as caught:
            open_checkpoint(folder)
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (1 << 20)
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{folder / file if file else folder}: "), message
    assert field in caught.value.field, message
    assert message.isprintable()
    assert len(caught.value.remedy) > 5
    return caught.value


def without(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != name}


ORIGINAL = "original_max_position_embeddings"
YARN = {"type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "another architecture": ("architectures", LLAMA | {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}),
    "two architectures": (
        "architectures", LLAMA | {"architectures": ["LlamaForCausalLM", "LlamaModel"], "model_type": None}
    ),
    "an empty list of architectures": ("architectures", LLAMA | {"architectures": [], "model_type": "mamba"}),
    "an architecture that is a text": ("architectures", LLAMA | {"architectures": "LlamaForCausalLM"}),
    "no architecture": ("architectures", LLAMA | {"architectures": None, "model_type": None}),
    "an unknown model type": ("architectures", LLAMA | {"architectures": None, "model_type": "gemma"}),
    "an architecture of numbers": ("architectures", LLAMA | {"architectures": [[1]]}),
    "no layers": ("num_hidden_layers", LLAMA | {"num_hidden_layers": 0}),
    "layers of text": ("num_hidden_layers", LLAMA | {"num_hidden_layers": "3"}),
    "more layers": ("model.layers.3", LLAMA | {"num_hidden_layers": 4}),
    "fewer layers": ("model.layers.2", LLAMA | {"num_hidden_layers": 2}),
    "very many layers": ("num_hidden_layers", LLAMA | {"num_hidden_layers": 10**9}),
    "a vast width": ("hidden_size", LLAMA | {"hidden_size": 10**400}),
    "a true width": ("hidden_size", LLAMA | {"hidden_size": True}),
    "another width": ("embed_tokens", LLAMA | {"hidden_size": 32}),
    "no vocabulary": ("embed_tokens", without(LLAMA, "vocab_size")),
    "a vocabulary of null": ("vocab_size", LLAMA | {"vocab_size": None}),
    "no positions but null": ("max_position_embeddings", LLAMA | {"max_position_embeddings": None}),
    "an epsilon of null": ("norm_eps", LLAMA | {"rms_norm_eps": None}),
    "no width": ("hidden_size", without(LLAMA, "hidden_size")),
    "no number of heads": ("num_attention_heads", without(LLAMA, "num_attention_heads")),
    "an epsilon that is no number": ("norm_eps", LLAMA | {"rms_norm_eps": float("nan")}),
    "heads that do not divide": ("num_attention_heads", LLAMA | {"num_attention_heads": 5}),
    "key heads that do not divide": ("n_kv_heads", LLAMA | {"num_key_value_heads": 3}),
    "no key heads": ("n_kv_heads", without(QWEN2, "num_key_value_heads")),
    "an odd head": ("head_dim", LLAMA | {"head_dim": 15}),
    "another activation": ("hidden_act", LLAMA | {"hidden_act": "gelu"}),
    "a bias in the feed-forward by text": ("mlp_bias", LLAMA | {"mlp_bias": "yes"}),
    "a flag of text": ("attention_bias", LLAMA | {"attention_bias": "yes"}),
    "experts": ("num_local_experts", MISTRAL | {"num_local_experts": 8}),
    "other experts": ("num_experts", QWEN3 | {"num_experts": 64}),
    "partial rotation": ("partial_rotary_factor", LLAMA | {"partial_rotary_factor": 0.5}),
    "partial rotation inside": ("partial_rotary_factor", LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    "dynamic RoPE": ("rope_type", LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "longrope": ("rope_type", LLAMA | {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}),
    "mrope": ("rope_type", QWEN2 | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}),
    "sections of mrope": ("mrope_section", QWEN2 | {"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}),
    "RoPE by layer": ("full_attention", LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
    "RoPE that is a text": ("rope_scaling", LLAMA | {"rope_scaling": "linear"}),
    "a kind that is a list": ("rope_type", LLAMA | {"rope_scaling": {"rope_type": ["linear"]}}),
    "no factor": ("factor", LLAMA | {"rope_scaling": {"type": "linear"}}),
    "a factor of 0": ("factor", LLAMA | {"rope_scaling": {"type": "linear", "factor": 0}}),
    "a factor that is no number": ("factor", LLAMA | {"rope_scaling": {"type": "linear", "factor": float("nan")}}),
    "a vast factor": ("factor", LLAMA | {"rope_scaling": YARN | {"factor": 10**400}}),
    "a factor of text": ("factor", LLAMA | {"rope_scaling": YARN | {"factor": "4"}}),
    "no low_freq_factor": ("low_freq_factor", LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
    "equal frequencies": ("high_freq_factor", LLAMA | {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}),
    "a vast context": ("max_seq_len", LLAMA | {"rope_scaling": YARN | {ORIGINAL: 1 << 24}}),
    "an original length of text": ("original_max", LLAMA | {"rope_scaling": YARN | {ORIGINAL: "16"}}),
    "an original length of 0": ("original_max", LLAMA | {"rope_scaling": LLAMA3 | {ORIGINAL: -1}}),
    "a negative beta": ("beta_fast", LLAMA | {"rope_scaling": YARN | {"beta_fast": -1}}),
    "an mscale of text": ("mscale", LLAMA | {"rope_scaling": YARN | {"mscale": "a", "mscale_all_dim": 1}}),
    "a truncate of text": ("truncate", LLAMA | {"rope_scaling": YARN | {"truncate": "no"}}),
    "an attention factor of 0": ("attention_factor", LLAMA | {"rope_scaling": YARN | {"attention_factor": 0}}),
    "an unknown setting": ("attn_factor", LLAMA | {"rope_scaling": YARN | {"attn_factor": 2.0}}),
    "theta of 1": ("rope_theta", LLAMA | {"rope_scaling": YARN, "rope_theta": 1}),
    "theta of text": ("rope_theta", LLAMA | {"rope_theta": "10000"}),
    "a window of 0": ("sliding_window", MISTRAL | {"sliding_window": 0}),
    "a window of text": ("sliding_window", MISTRAL | {"sliding_window": "all"}),
    "types of other layers": ("layer_types", LLAMA | {"layer_types": ["sliding_attention"] * 3}),
    "types of too few layers": ("layer_types", QWEN3 | {"layer_types": ["full_attention"]}),
    "types that alternate": ("layer_types", QWEN3 | {"use_sliding_window": True, "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention"]}),
    "types of unknown names": ("layer_types", QWEN3 | {"layer_types": ["linear_attention"] * 3}),
    "sliding layers without a window": ("layer_types", QWEN2 | {"layer_types": ["sliding_attention"] * 3}),
    "a quantisation that is a text": ("quantization_config", LLAMA | {"quantization_config": "gptq"}),
    "end tokens of text": ("eos_token_id", LLAMA | {"eos_token_id": ["</s>"]}),
}  # fmt: skip


@pytest.mark.parametrize(("field", "config"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_refused_by_name(field: str, config: dict[str, Any], tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, seed=0)
    in_a_tensor = field.startswith("model.") or field == "embed_tokens"
    write_folder(tmp_path, config, tensors)
    if not in_a_tensor:
        refuse(tmp_path, "config.json", field)
    elif field == "model.layers.3":
        refuse(tmp_path, "", field)
    else:
        refuse(tmp_path, "model.safetensors", field)


TEXTS = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[1]",
    "nested deep": b"[" * 100_000,
    "an object nested deep": b'{"a":' * 500 + b"1" + b"}" * 500,
    "a name twice": b'{"hidden_size": 64, "hidden_size": 32}',
    "a vast number": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"a": "\xff"}',
    "very many values": b"[" + b"1," * 200_000 + b"1]",
    "too long": b'{"a": "' + b"x" * (5 << 20) + b'"}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("file", ["config.json", INDEX, "generation_config.json", "tokenizer_config.json",
                                  "added_tokens.json"])  # fmt: skip
def test_json_that_is_none(file: str, text: bytes, tmp_path: Path) -> None:
    folder = build("llama gqa tied", tmp_path)
    (folder / file).write_bytes(text)
    refuse(folder, file, "")


def test_files_that_are_no_files(tmp_path: Path) -> None:
    folder = build("llama gqa tied", tmp_path)
    os.mkfifo(folder / "generation_config.json")
    refuse(folder, "generation_config.json", "path")
    (folder / "generation_config.json").unlink()
    (folder / SHARD).unlink()
    assert SHARD in str(refuse(folder, SHARD, "path"))
    (folder / SHARD).mkdir()
    refuse(folder, SHARD, "path")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..\\a.safetensors", "config.json",
             "C:model.safetensors", "a\nb.safetensors", "a\0.safetensors", "", 5, None, ["a.safetensors"],
             "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_an_index_that_points_elsewhere(name: object, tmp_path: Path) -> None:
    folder = build("llama gqa tied", tmp_path)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    refuse(folder, INDEX, "model.norm.weight")


def test_an_index_and_shards_that_disagree(tmp_path: Path) -> None:
    folder = build("llama gqa tied", tmp_path)
    index = json.loads((folder / INDEX).read_text())
    original = json.dumps(index)
    wrongs: list[Any] = [None, {}, [1], "a"]
    for wrong in wrongs:
        (folder / INDEX).write_text(json.dumps(index | {"weight_map": wrong}))
        refuse(folder, INDEX, "weight_map")
    name = "model.norm.weight"
    index["weight_map"][name] = SHARD
    (folder / INDEX).write_text(json.dumps(index))
    refuse(folder, "model-00003-of-00003.safetensors", name)
    index["weight_map"]["model.extra.weight"] = SHARD
    index["weight_map"][name] = "model-00003-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    refuse(folder, SHARD, "model.extra.weight")
    (folder / INDEX).write_text(original)
    (folder / SHARD).write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
    refuse(folder, SHARD, "model.embed_tokens.weight")


def test_weights_that_are_missing(tmp_path: Path) -> None:
    folder = build("llama mha", tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    refuse(folder, "", "model.safetensors")
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"PK")
    assert "safetensors" in refuse(folder, "", "model.safetensors").remedy
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(data)
    refuse(folder, "", INDEX)
    (folder / "config.json").unlink()
    with pytest.raises(ModelFormatError, match="folder without a model"):
        open_checkpoint(folder)


DAMAGE: dict[str, tuple[str, Callable[[Arrays], object]]] = {
    "a bias that the output has": ("o_proj.bias", lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": np.ones(
        64, np.float32)})),
    "a bias that Llama has not": ("q_proj.bias", lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(
        64, np.float32)})),
    "a bias of another size": ("q_proj.bias", lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(
        60, np.float32)})),
    "a norm that Llama has not": ("q_norm", lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": np.ones(
        16, np.float32)})),
    "an unknown tensor": ("vision.weight", lambda t: t.update({"vision.weight": np.ones(3, np.float32)})),
    "a tensor with a tail": ("weight_scale", lambda t: t.update({"model.norm.weight_scale": np.ones(1, np.float32)})),
    "experts": ("experts", lambda t: t.update({"model.layers.0.mlp.experts.0.up_proj.weight": np.ones(
        (4, 4), np.float32)})),
    "a layer 007": ("layers.007", lambda t: t.update({"model.layers.007.input_layernorm.weight": np.ones(
        64, np.float32)})),
    "a missing head": ("lm_head.weight", lambda t: t.pop("lm_head.weight")),
    "a missing norm": ("layers.2.input_layernorm", lambda t: t.pop("model.layers.2.input_layernorm.weight")),
    "whole numbers": ("model.norm.weight", lambda t: t.update({"model.norm.weight": np.ones(64, np.int32)})),
    "another shape": ("model.norm.weight", lambda t: t.update({"model.norm.weight": np.ones((8, 8), np.float32)})),
    "another size": ("lm_head.weight", lambda t: t.update({"lm_head.weight": np.ones((79, 64), np.float32)})),
}  # fmt: skip


@pytest.mark.parametrize(("field", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_tensors_that_do_not_fit(field: str, damage: Callable[[Arrays], object], tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, seed=0)
    damage(tensors)
    missing = field not in " ".join(tensors)
    refuse(write_folder(tmp_path, LLAMA, tensors), "" if missing else "model.safetensors", field)


def edited(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "negative offsets": lambda h: h["lm_head.weight"].update(data_offsets=[-4, 60]),
    "offsets past the end": lambda h: h["lm_head.weight"].update(data_offsets=[1 << 40, (1 << 40) + 20480]),
    "overlapping tensors": lambda h: h["model.norm.weight"].update(
        data_offsets=h["model.layers.0.input_layernorm.weight"]["data_offsets"]
    ),
    "a shape that overflows": lambda h: h["lm_head.weight"].update(shape=[1 << 62, 4]),
    "an unknown type": lambda h: h["lm_head.weight"].update(dtype="F8_E4M3"),
    "a type that is none": lambda h: h["lm_head.weight"].update(dtype="Q4"),
    "a hole": lambda h: h.pop("model.norm.weight"),
    "no axes": lambda h: h.update(x={"dtype": "F32", "shape": [], "data_offsets": [0, 4]}),
}


@pytest.mark.parametrize("edit", HEADERS.values(), ids=HEADERS)
def test_a_safetensors_header_that_lies(edit: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    folder = build("llama mha", tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(edited(path.read_bytes(), edit))
    refuse(folder, "model.safetensors", "")


def test_cut_anywhere_is_refused(tmp_path: Path) -> None:
    folder = build("llama mha", tmp_path)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = 8 + struct.unpack_from("<Q", data)[0]
    for cut in (0, 1, 7, 8, 9, 100, length - 1, length, length + 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        refuse(folder, "model.safetensors", "")
    path.write_bytes(data + b"x")
    refuse(folder, "model.safetensors", "")
    for absurd in (2**63, 2**64 - 1, 99_999_999):
        path.write_bytes(struct.pack("<Q", absurd) + data[8:])
        refuse(folder, "model.safetensors", "header length")


def test_hostile_names_are_printed_safely(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, seed=0)
    data = safetensors_bytes(tensors | {"evil\x1b[2J\nname.weight": np.ones(1, np.float32)})
    folder = write_folder(tmp_path, LLAMA, tensors)
    (folder / "model.safetensors").write_bytes(data)
    refuse(folder, "model.safetensors", "evil")


TEXT_FILES: dict[str, tuple[str, str, Any]] = {
    "end tokens of text": ("generation_config.json", "eos_token_id", {"eos_token_id": "2"}),
    "end tokens in lists": ("generation_config.json", "eos_token_id", {"eos_token_id": [[2]]}),
    "tokens without texts": ("tokenizer_config.json", "added_tokens_decoder", {"added_tokens_decoder": {"1": {}}}),
    "tokens without ids": ("tokenizer_config.json", "added_tokens_decoder", {"added_tokens_decoder": {"one": "<s>"}}),
    "a vast id": ("tokenizer_config.json", "added_tokens_decoder", {"added_tokens_decoder": {"9" * 4000: "<s>"}}),
    "a template that is a number": ("tokenizer_config.json", "chat_template", {"chat_template": 7}),
    "templates that are numbers": ("tokenizer_config.json", "chat_template",
                                   {"chat_template": [{"name": "default", "template": 7}]}),
    "added tokens without ids": ("added_tokens.json", "<s>", {"<s>": "1"}),
}  # fmt: skip


@pytest.mark.parametrize(("file", "field", "content"), TEXT_FILES.values(), ids=TEXT_FILES)
def test_text_settings_that_make_no_sense(file: str, field: str, content: Any, tmp_path: Path) -> None:
    folder = build("llama mha", tmp_path)
    (folder / file).write_text(json.dumps(content))
    refuse(folder, file, field)


def test_a_tokenizer_that_is_too_large(tmp_path: Path) -> None:
    folder = build("llama mha", tmp_path)
    for name in ("tokenizer.model", "tokenizer.json"):
        (folder / name).write_bytes(b"{")
        os.truncate(folder / name, 1 << 34)
        refuse(folder, name, "length")
    (folder / "tokenizer.json").unlink()
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    (folder / "tokenizer.model").unlink()
    refuse(folder, "chat_template.jinja", "text")
