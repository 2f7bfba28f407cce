"""Hugging Face folders that are written, read back in plain loops and with the safetensors library."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from llamagpu.checkpoint import Checkpoint, TokenizerSpec
from llamagpu.errors import UsageError
from llamagpu.formats.huggingface_writer import write_folder
from llamagpu.llm import LLM
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.quantize import Recipe, quantised
from tests.float_models import MODELS, float_model, float_weights
from tests.models.reference_by_names import forward_by_names

IDS = [1, 7, 30, 7, 2, 0, 29, 11, 11, 5, 1, 3]
MODULES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm",
}  # fmt: skip
OUTSIDE = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def read_arrays(folder: Path) -> dict[str, Any]:
    arrays = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dict
                assert name not in arrays
                arrays[name] = file.get_tensor(name)
    return arrays


def plain_gptq(arrays: dict[str, Any], module: str, bits: int, cut: bool) -> NDArray[np.float64]:
    """w [out, in], number by number. cut: zero + 1 is cut to ``bits`` again, as some engines do."""
    qweight, qzeros = arrays[f"{module}.qweight"].view(np.uint32), arrays[f"{module}.qzeros"].view(np.uint32)
    scales, g_idx = arrays[f"{module}.scales"], arrays[f"{module}.g_idx"]
    assert (scales.dtype, g_idx.dtype, arrays[f"{module}.qweight"].dtype) == (np.float16, np.int32, np.int32)
    n, mask = 32 // bits, 2**bits - 1
    w = np.zeros((qweight.shape[1], qweight.shape[0] * n))
    for o in range(w.shape[0]):
        for i in range(w.shape[1]):
            g = int(g_idx[i])
            zero = (int(qzeros[g, o // n]) >> bits * (o % n) & mask) + 1
            q = int(qweight[i // n, o]) >> bits * (i % n) & mask
            w[o, i] = float(scales[g, o]) * (q - (zero & mask if cut else zero))
    return w


def read_weights(folder: Path, n_layers: int, cut: bool = False) -> dict[str, Any]:
    """By Meta's names, rows as the folder has them."""
    arrays, config = read_arrays(folder), json.loads((folder / "config.json").read_text())
    names = {theirs: ours for ours, theirs in OUTSIDE.items()}
    for i in range(n_layers):
        names |= {f"model.layers.{i}.{theirs}": f"layers.{i}.{ours}" for ours, theirs in MODULES.items()}
    out, used = {}, set()
    for theirs, ours in names.items():
        for part in ("weight", "bias"):
            if f"{theirs}.{part}" in arrays:
                out[f"{ours}.{part}"] = arrays[f"{theirs}.{part}"].astype(np.float32)
                used.add(f"{theirs}.{part}")
        if f"{theirs}.qweight" in arrays:
            out[f"{ours}.weight"] = plain_gptq(arrays, theirs, config["quantization_config"]["bits"], cut)
            used |= {f"{theirs}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    assert used == set(arrays)
    return out


def logits(weights: dict[str, Any], checkpoint: Checkpoint, half_split: bool) -> NDArray[np.float64]:
    config = checkpoint.config
    return forward_by_names(
        weights, IDS, config.head_dim, config.norm_eps, config.rope_theta, half_split, config.rope_factors,
        config.rope_attention_factor, config.sliding_window,
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_floats_in_another_order_give_the_same_logits(name: str, tmp_path: Path) -> None:
    source = float_model(name)
    progress: list[int] = []
    write_folder(tmp_path, source, (1, 2), progress.append)
    assert sum(progress) == source.nbytes
    weights = read_weights(tmp_path, 2)
    before = logits(float_weights(source), source, source.config.rope_layout == "half_split")
    np.testing.assert_allclose(logits(weights, source, half_split=True), before, atol=1e-9)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "float32"
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


EXPECTED: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "rope_scaling": None, "head_dim": 16},
    "llama, head tied": {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "vocab_size": 320},
    "llama, stretched": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "llama 3": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0}, "rms_norm_eps": 1e-6,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 7, "num_key_value_heads": 2},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen2, windows": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "attention_bias": False},
    "llama, biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen3, biases": {"model_type": "qwen3", "attention_bias": True},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_config(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path, float_model(name))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config | EXPECTED[name] == config


def test_yarn_and_rules_that_nobody_knows(tmp_path: Path) -> None:
    source = float_model()
    # YaRN with factor 4 from 1024 positions, theta 10000, head_dim 16: pairs 2 to 5 lie between 32 turns and 1.
    first, last = (16 * np.log(1024 / (2 * np.pi * turns)) / (2 * np.log(10000)) for turns in (32, 1))
    ramp = [min(1, max(0, (j - np.floor(first)) / (np.ceil(last) - np.floor(first)))) for j in range(8)]
    factors = tuple(1 / ((1 - part) + part / 4) for part in ramp)
    yarn = replace(source, config=replace(source.config, rope_factors=factors, rope_attention_factor=1.139))
    write_folder(tmp_path, yarn)
    assert json.loads((tmp_path / "config.json").read_text())["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "attention_factor": 1.139,
    }  # fmt: skip
    odd = replace(source, config=replace(source.config, rope_factors=(1.0, 3.0) * 4))
    with pytest.raises(UsageError, match="follows no rule"):
        write_folder(tmp_path, odd)
    both = replace(source, config=replace(source.config, qkv_bias=True, qk_norm=True))
    with pytest.raises(UsageError, match="no Hugging Face architecture"):
        write_folder(tmp_path, both)


SEQUENCES = [np.random.default_rng(i).integers(0, 320, 60) for i in range(3)]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(4, 32, 16, smallest_zero=1),
        Recipe(8, 64, 16, smallest_zero=1),
        Recipe(4, 0, 16, SEQUENCES, smallest_zero=1),
        Recipe(4, 16, 16, SEQUENCES, act_order=True, smallest_zero=1),
    ],
    ids=["4 bits", "8 bits", "whole row", "act-order"],
)
def test_gptq_means_what_was_quantised(recipe: Recipe, cut: bool, tmp_path: Path) -> None:
    """Every number, for engines that cut zero + 1 to 4 bits and for those that do not."""
    source = float_model("qwen2", ml_dtypes.bfloat16, n_layers=1)
    wv = np.asarray(source.tensors["layers.0.attention.wv.weight"])
    wv[:8] = np.abs(wv[:8])  # zeros would be 0
    wv[8:16] = -np.abs(wv[8:16])  # and 15
    plan = quantised(source, recipe)
    tensors = {name: t.materialize() if isinstance(t, Deferred) else t for name, t in plan.tensors.items()}
    write_folder(tmp_path, replace(plan, tensors=tensors))
    weights = read_weights(tmp_path, 1, cut)
    for name, tensor in tensors.items():
        if isinstance(tensor, AffineQuant):
            meant = tensor.dequantize()
            meant = meant if tensor.perm is None else meant[:, np.argsort(tensor.perm)]
            np.testing.assert_array_equal(weights[name], meant, err_msg=name)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "gptq", "bits": recipe.bits, "group_size": recipe.group_size or -1, "sym": False,
        "desc_act": recipe.act_order, "checkpoint_format": "gptq", "lm_head": False,
    }  # fmt: skip
    assert config["torch_dtype"] == "bfloat16"


def test_rows_of_quantised_heads_are_turned_too(tmp_path: Path) -> None:
    source = float_model("qwen3")
    plan = quantised(source, Recipe(8, 32, 16, smallest_zero=1))
    write_folder(tmp_path, plan)
    before = {name: t.materialize() if isinstance(t, Deferred) else t for name, t in plan.tensors.items()}
    plain = {name: t.dequantize() if isinstance(t, AffineQuant) else np.asarray(t) for name, t in before.items()}
    expected = logits(plain, source, half_split=False)
    np.testing.assert_allclose(logits(read_weights(tmp_path, 2), source, half_split=True), expected, atol=1e-9)


def test_shards_and_their_index(tmp_path: Path) -> None:
    source = float_model()
    write_folder(tmp_path, source, shard_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 3
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == source.nbytes
    for name, file_name in index["weight_map"].items():
        with safe_open(tmp_path / file_name, "np") as file:
            assert file.get_tensor(name).size
            assert file.metadata() == {"format": "pt"}
    assert len(read_weights(tmp_path, 2)) == len(source.tensors)
    assert not list(tmp_path.glob("*.part"))


def test_what_belongs_to_the_text(tmp_path: Path) -> None:
    source = replace(
        float_model(), tokenizer=TokenizerSpec("huggingface", b"{}"), stop_tokens=(2, 7), chat_template="{{ 'é' }}",
        sampling={"temperature": 0.6, "top_k": 20},
    )  # fmt: skip
    write_folder(tmp_path, source, (None, 2))
    assert (tmp_path / "tokenizer.json").read_bytes() == b"{}"
    about = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert about["chat_template"] == "{{ 'é' }}"
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {
        "bos_token_id": None, "eos_token_id": [2, 7], "do_sample": True, "temperature": 0.6, "top_k": 20,
    }  # fmt: skip


def affine(name: str, checkpoint: Checkpoint, bits: int, group_size: int, zero: int, scale: float = 0.5) -> AffineQuant:
    shape = checkpoint.tensors[name].shape
    scales = np.full((shape[0], -(-shape[1] // group_size)), scale, np.float32)
    return AffineQuant.pack(np.full(shape, 3), scales, np.full_like(scales, zero), bits, group_size)


def test_what_a_folder_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = float_model()
    wo, w2 = "layers.0.attention.wo.weight", "layers.1.feed_forward.w2.weight"

    def refused(pattern: str, **changed: AffineQuant) -> None:
        names = {"wo": wo, "w2": w2, "head": "output.weight"}
        tensors = {**source.tensors, **{names[key]: tensor for key, tensor in changed.items()}}
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        with pytest.raises(UsageError, match=pattern):
            write_folder(folder, replace(source, tensors=tensors))

    refused("wo.weight has zeros", wo=affine(wo, source, 4, 32, 0))
    refused("scales that float16", wo=affine(wo, source, 4, 32, 8, 0.1))
    refused("different numbers of bits", wo=affine(wo, source, 4, 32, 8), w2=affine(w2, source, 8, 32, 8))
    refused("different sizes", wo=affine(wo, source, 4, 32, 8), w2=affine(w2, source, 4, 16, 8))
    refused("output.weight is quantised", head=affine("output.weight", source, 8, 32, 8))
    narrow = float_model(hidden_dim=100)
    with pytest.raises(UsageError, match=r"w1\.weight is 100 by 64: GPTQ packs 8"):
        write_folder(tmp_path, quantised(narrow, Recipe(4, 32, 16, smallest_zero=1)))


def test_zeros_of_16_that_files_have_come_through(tmp_path: Path) -> None:
    """Copied from another GPTQ file, as a stored 15."""
    source = float_model()
    name = "layers.0.attention.wo.weight"
    write_folder(tmp_path, replace(source, tensors={**source.tensors, name: affine(name, source, 4, 32, 16)}))
    np.testing.assert_array_equal(read_weights(tmp_path, 2)[name], 0.5 * (3 - 16))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_it(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    source = float_model(name)
    write_folder(tmp_path, source, (1, 2), shard_bytes=150_000)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        found = model(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(found, LLM(source, "cpu").logits(IDS), atol=3e-5)
