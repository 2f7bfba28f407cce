"""What a Hugging Face folder says of a model beside its weights: config.json, generation_config.json, tokenizer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from llamagpu.checkpoint import Checkpoint, TokenFacts
from llamagpu.config import ModelConfig
from llamagpu.errors import UsageError
from llamagpu.formats.token_facts import values_of
from llamagpu.rope_scaling import yarn_factors
from llamagpu.tokenizers.base import Tokenizer

SpecialIds = tuple[int | None, int | None]  # BOS and EOS

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Kind of tokenizer: the file that its makers keep it in, and the class that transformers opens it with.
TOKENIZER_FILES = {
    "huggingface": ("tokenizer.json", "PreTrainedTokenizerFast"),
    "sentencepiece": ("tokenizer.model", "LlamaTokenizer"),
}
NEWEST_CLASS = "TokenizersBackend"  # which transformers 4 does not know; it is PreTrainedTokenizerFast by a new name


def config_json(checkpoint: Checkpoint, special_ids: SpecialIds) -> dict[str, Any]:
    """All but the types of the weights. Raises UsageError for a model that none of the four architectures is."""
    config = checkpoint.config
    kind = model_type(config)
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling(config),
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.out_bias,  # of o_proj too; Qwen2's, of the others, goes without saying
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "use_cache": True,
    }
    if kind == "llama":
        values["mlp_bias"] = config.ffn_bias
    elif kind == "mistral":
        values["sliding_window"] = config.sliding_window or None
    elif config.sliding_window:
        values.update(
            use_sliding_window=True, sliding_window=config.sliding_window, max_window_layers=config.first_window_layer
        )
    else:
        values["use_sliding_window"] = False
    return values | ids(checkpoint, special_ids)


def model_type(config: ModelConfig) -> str:
    """The architecture that is of this model's shape, whatever it is called. Raises UsageError where none is."""
    if not config.keeps_keys:
        raise UsageError(f"no {config.architecture} is written as a Hugging Face folder: leave --format out")
    has_all_or_none = config.qkv_bias == config.out_bias  # of the biases of attention
    if config.qk_norm and has_all_or_none and not config.ffn_bias:
        return "qwen3"
    if config.qkv_bias and not (config.qk_norm or config.out_bias or config.ffn_bias):
        return "qwen2"
    if has_all_or_none and not config.qk_norm:
        has_bias = config.qkv_bias or config.ffn_bias
        if not config.sliding_window:
            return "mistral" if config.architecture == "mistral" and not has_bias else "llama"
        if not config.first_window_layer and not has_bias:
            return "mistral"
    raise UsageError(
        "no Hugging Face architecture has what this model has (biases, norms, windows): leave --format out"
    )


def rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    """The published rule that gives the model's rope_factors. Raises UsageError where none does."""
    if config.rope_factors is None and config.rope_attention_factor == 1:
        return None
    factors = np.array(config.rope_factors or [1.0] * (config.head_dim // 2))
    for rule, made in rope_rules(config, float(factors.max())):
        if np.allclose(made, factors, rtol=1e-5, atol=0):  # some files hold them as float32
            return rule
    raise UsageError("the model's RoPE follows no rule that config.json has a word for: leave --format out")


def rope_rules(config: ModelConfig, factor: float) -> Iterator[tuple[dict[str, Any], Any]]:
    """Rules that stretch by ``factor`` at most, and their factors. Lengths are that which YaRN stretches to the model's
    positions, which decides how many these are when it is read, and powers of two, as all published are."""
    n, theta, attention = config.head_dim, config.rope_theta, config.rope_attention_factor
    if attention == 1:
        yield {"rope_type": "linear", "factor": factor}, [factor] * (n // 2)
    frequencies = theta ** (-np.arange(0, n, 2) / n)
    for original in (max(1, round(config.max_seq_len / factor)), *(1 << power for power in range(8, 21))):
        length = {"factor": factor, "original_max_position_embeddings": original}
        if attention == 1:
            turns = original * frequencies / (2 * math.pi)
            kept = np.clip((turns - 1) / 3, 0, 1)
            llama3 = {"rope_type": "llama3", **length, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            yield llama3, 1 / (kept + (1 - kept) / factor)
        yield {"rope_type": "yarn", **length, "attention_factor": attention}, yarn_factors(n, theta, factor, original)


def ids(checkpoint: Checkpoint, special_ids: SpecialIds) -> dict[str, Any]:
    """bos_token_id and eos_token_id: a number, or several."""
    bos, eos = special_ids
    ends = list(dict.fromkeys(token for token in (eos, *checkpoint.stop_tokens) if token is not None))
    return {"bos_token_id": bos, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def generation_json(checkpoint: Checkpoint, special_ids: SpecialIds) -> dict[str, Any]:
    sampling = dict(checkpoint.sampling)
    if sampling:
        sampling["do_sample"] = sampling.get("temperature", 1) > 0
    if sampling.get("temperature") == 0:
        del sampling["temperature"]
    return ids(checkpoint, special_ids) | sampling


def tokenizer_files(checkpoint: Checkpoint, tokenizer: Tokenizer | None = None) -> dict[str, bytes]:
    """Name to content. Empty for kinds that Hugging Face's tools do not read. tokenizer: the checkpoint's, opened."""
    files: dict[str, bytes] = {}
    about: dict[str, Any] = {}
    spec = checkpoint.tokenizer
    if spec is not None and spec.kind in TOKENIZER_FILES:
        name, kind = TOKENIZER_FILES[spec.kind]
        files[name] = spec.data
        about = values_of(told(spec.facts or TokenFacts(), tokenizer, kind))
    if checkpoint.chat_template is not None:
        about["chat_template"] = checkpoint.chat_template
        files["chat_template.jinja"] = checkpoint.chat_template.encode()
    if about:
        files["tokenizer_config.json"] = json.dumps(about, indent=2, ensure_ascii=False).encode()
    return files


def told(facts: TokenFacts, tokenizer: Tokenizer | None, kind: str) -> TokenFacts:
    """What the source says, with the texts of tokens that it gives by their ids, and all that goes without saying in
    llamagpu. kind: the class of transformers, where the source names none."""
    named = facts.tokenizer_class
    facts = replace(facts, ids={}, tokenizer_class=kind if named in ("", NEWEST_CLASS) else named)
    if tokenizer is None:
        return facts
    added = {
        token: about if about.special is not None else replace(about, special=about.text in tokenizer.controls)
        for token, about in facts.added.items()
    }
    names = {name: text for name, text in tokenizer.names.items() if isinstance(text, str)} if not facts.names else {}
    add_bos = facts.add_bos
    if not tokenizer.says_bos:
        add_bos = tokenizer.bos_id is not None  # a class would add it
    legacy = tokenizer.begins_anew if not tokenizer.says_bos and facts.legacy is None else facts.legacy
    return replace(facts, names={**facts.names, **names}, added=added, add_bos=add_bos, legacy=legacy)
