"""GGUF, llama.cpp's file: models of the architectures llama (Mistral too), qwen2 and qwen3; rwkv6 and rwkv7 are in
gguf_rwkv.py.

What a file holds beside the tensors (keys of its architecture) is either used, known to change nothing, or refused by
name: an unknown key may well change the model's output.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llamagpu.checkpoint import Checkpoint, Tensor, TokenFacts, TokenizerSpec, check_tensors
from llamagpu.config import LARGEST, ModelConfig
from llamagpu.errors import printable
from llamagpu.formats import gguf_rwkv
from llamagpu.formats.gguf_file import open_tensors
from llamagpu.formats.gguf_header import ARRAY, MAGIC, Header
from llamagpu.formats.gguf_splits import SPLITS
from llamagpu.quantization import Deferred
from llamagpu.rope_scaling import yarn_factors

# llama.cpp's converter puts wq and wk of Llama in the order of Meta's files; the others stay in Hugging Face's.
ROPE_LAYOUTS = {"llama": "interleaved", "qwen2": "half_split", "qwen3": "half_split"}
NAMES = {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"}
LAYER_NAMES = {
    "attn_norm": "attention_norm", "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
    "attn_output": "attention.wo", "attn_q_norm": "attention.q_norm", "attn_k_norm": "attention.k_norm",
    "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1", "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3",
}  # fmt: skip
LAYER_NAME = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(\w+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"
# Keys of an architecture (without its name) that are used below, and those that say nothing about the output.
USED = {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window", "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
SILENT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.layer_norm_epsilon"}
# Keys that change nothing where they have this value.
NEUTRAL: dict[str, float] = {
    "expert_count": 0, "expert_used_count": 0, "attention.causal": 1, "pooling_type": 0, "logit_scale": 1,
    "embedding_scale": 1, "residual_scale": 1, "rope.scaling.yarn_ext_factor": 1, "rope.scaling.yarn_attn_factor": 1,
    "rope.scaling.yarn_log_multiplier": 0, "use_parallel_residual": 0, "attention.max_alibi_bias": 0,
    "attention.clamp_kqv": 0,
}  # fmt: skip
OTHER_MODEL = "this version runs dense models of llama, qwen2 and qwen3, and rwkv6 and rwkv7: get another file"
STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
VOCABULARY = "tokenizer.ggml."
# By the names that chat templates have for them.
SPECIAL_KEYS = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding",
}  # fmt: skip  # a separator is spelt so in the files
MAX_VOCABULARY_BYTES = 1 << 28


def sniff(head: bytes, size: int) -> bool:
    """Whether the first bytes are those of a GGUF file."""
    return head.startswith(MAGIC)


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a GGUF file, version 1 to 3, or all parts of a split one. Raises ModelFormatError."""
    header, found = open_tensors(path)
    arch = check_kind(header)
    quantized = any(isinstance(tensor, Deferred) for tensor in found.values())
    if quantized and header.whole("general.quantization_version", 2) != 2:
        raise header.refuse("general.quantization_version", "is not 2: blocks of another layout", "convert it again")
    if arch in gguf_rwkv.ARCHITECTURES:
        model = gguf_rwkv.read(header, arch, found)
        stop_tokens = read_stop_tokens(header, model.config) or model.stop_tokens
        return replace(
            model, tokenizer=read_tokenizer(header), stop_tokens=stop_tokens,
            chat_template=gguf_rwkv.chat_template(header),
            notes=(*gguf_rwkv.end_of_turn(header, stop_tokens), *notes_of_vocabulary(header)),
        )  # fmt: skip
    config, tensors = read_llama(header, arch, found)
    asks_for_end = header.flag(VOCABULARY + "add_eos_token", False)
    notes = ("the file asks for an end token after each text; llamagpu adds none",) if asks_for_end else ()
    return Checkpoint(
        path, f"GGUF version {header.version}", config, tensors, read_tokenizer(header),
        stop_tokens=read_stop_tokens(header, config), chat_template=header.text("tokenizer.chat_template"),
        notes=(*notes, *notes_of_vocabulary(header)),
    )  # fmt: skip


def read_llama(header: Header, arch: str, found: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    factors = found.pop(ROPE_FACTORS, None)
    tensors = {meta_name(name): tensor for name, tensor in found.items()}
    if len(tensors) != len(found):
        raise header.refuse("tensors", "hold the same one under two names")
    config = read_config(header, arch, tensors, factors)
    check_tensors(header.path, config, tensors)
    for name, tensor in tensors.items():
        if len(tensor.shape) == 1 and isinstance(tensor, Deferred):
            raise header.refuse(name, f"is a vector of type {tensor.kind}")
    return config, tensors


def check_kind(header: Header) -> str:
    """The architecture, after everything that is no model of a kind that can be run has been refused."""
    kind = header.text("general.type") or "model"
    if kind != "model":
        raise header.refuse("general.type", f"is {kind[:40]!r}, not a model", "give the file of the model itself")
    arch = header.text("general.architecture")
    if arch is None:
        raise header.refuse("general.architecture", "is missing")
    if arch not in ROPE_LAYOUTS and arch not in gguf_rwkv.ARCHITECTURES:
        raise header.refuse("general.architecture", f"is {arch[:40]!r}", OTHER_MODEL)
    known = gguf_rwkv.USED if arch in gguf_rwkv.ARCHITECTURES else USED | SILENT
    for key in header.entries:
        name = key.removeprefix(f"{arch}.")
        if name == key or name in known:
            continue
        if name == "expert_count" and header.whole(key):
            raise header.refuse(key, f"is {header.whole(key)}: a mixture of experts", OTHER_MODEL)
        if name not in NEUTRAL:
            raise header.refuse(key, "is a key that this version does not know, and may change the output", OTHER_MODEL)
        kinds = (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)
        value = header.value(key, kinds, "a number")
        if value != NEUTRAL[name]:
            raise header.refuse(key, f"is {value}, which this version does not do", OTHER_MODEL)
    return arch


def meta_name(name: str) -> str:
    """Meta's name of a tensor; what has none stays as it is, and is refused with the config at hand."""
    in_layer = LAYER_NAME.fullmatch(name)
    if in_layer and in_layer[2] in LAYER_NAMES:
        return f"layers.{in_layer[1]}.{LAYER_NAMES[in_layer[2]]}.{in_layer[3]}"
    base = name.removesuffix(".weight")
    return f"{NAMES[base]}.weight" if base != name and base in NAMES else name


def read_config(header: Header, arch: str, tensors: dict[str, Tensor], factors: Tensor | None) -> ModelConfig:
    embedding = tensors.get("tok_embeddings.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise header.refuse("token_embd.weight", "is missing or no matrix")
    dim, n_heads = header.whole(f"{arch}.embedding_length"), of_all_layers(header, f"{arch}.attention.head_count")
    if not 1 <= n_heads <= LARGEST["n_heads"]:
        raise header.refuse(f"{arch}.attention.head_count", f"is {n_heads}")
    head_dim = header.whole(f"{arch}.attention.key_length", dim // n_heads)
    if header.whole(f"{arch}.attention.value_length", head_dim) != head_dim:
        raise header.refuse(f"{arch}.attention.value_length", f"is not {head_dim} as the keys'", OTHER_MODEL)
    if header.whole(f"{arch}.rope.dimension_count", head_dim) != head_dim:
        problem = f"is not {head_dim}, the width of a head: RoPE of a part of it"
        raise header.refuse(f"{arch}.rope.dimension_count", problem, OTHER_MODEL)
    values: dict[str, Any] = {
        "architecture": arch,
        "dim": dim,
        "hidden_dim": header.whole(f"{arch}.feed_forward_length"),
        "n_layers": header.whole(f"{arch}.block_count"),
        "n_heads": n_heads,
        "n_kv_heads": of_all_layers(header, f"{arch}.attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_seq_len": header.whole(f"{arch}.context_length"),
        "norm_eps": header.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": header.number(f"{arch}.rope.freq_base", 10000.0),
        "rope_layout": ROPE_LAYOUTS[arch],
        "tied_head": "output.weight" not in tensors,
        "qkv_bias": "layers.0.attention.wq.bias" in tensors,
        "out_bias": "layers.0.attention.wo.bias" in tensors,
        "ffn_bias": "layers.0.feed_forward.w1.bias" in tensors,
        "qk_norm": arch == "qwen3",
        "sliding_window": header.whole(f"{arch}.attention.sliding_window", 0),
    }
    config = ModelConfig.checked(header.path, values)  # before anything is made of its size
    if config.sliding_window >= config.max_seq_len:
        values["sliding_window"] = 0  # a window that never closes
    values["rope_factors"], values["rope_attention_factor"] = read_rope_factors(header, config, factors)
    return ModelConfig.checked(header.path, values)


def of_all_layers(header: Header, key: str, default: int | None = None) -> int:
    """A number, or an array of the same number for each layer."""
    entry = header.entries.get(key)
    if entry is None or entry.kind != ARRAY:
        return header.whole(key, default)
    numbers = set(header.numbers(key, "iu").tolist())
    if len(numbers) != 1:
        raise header.refuse(key, "differs between layers", OTHER_MODEL)
    return int(numbers.pop())


def read_rope_factors(
    header: Header, config: ModelConfig, tensor: Tensor | None
) -> tuple[tuple[float, ...] | None, float]:
    """What divides the frequencies, and what multiplies cos and sin: of scaling, and of a tensor (Llama 3)."""
    half = config.head_dim // 2
    prefix = f"{config.architecture}.rope.scaling."
    factor = header.number(f"{prefix}factor", header.number(f"{config.architecture}.rope.scale_linear", 1.0)) or 1.0
    if not 1e-3 <= factor <= 1e6:
        raise header.refuse(f"{prefix}factor", f"is {factor}")
    kind = header.text(f"{prefix}type") or "linear"  # as llama.cpp has it, with a factor of 1 where none is given
    attention_factor = header.number(f"{prefix}attn_factor", 1.0) or 1.0
    factors = np.ones(half)
    if kind == "linear":
        factors *= factor
    elif kind == "yarn":
        original = header.whole(f"{prefix}original_context_length", config.max_seq_len)
        fast, slow = header.number(f"{prefix}yarn_beta_fast", 32.0), header.number(f"{prefix}yarn_beta_slow", 1.0)
        if not (1 <= original <= LARGEST["max_seq_len"] and 0 < slow < fast < 1e6 and factor >= 1):
            raise header.refuse(f"{prefix}type", "is yarn, with numbers that make no sense")
        if config.rope_theta <= 1:
            raise header.refuse(f"{config.architecture}.rope.freq_base", f"is {config.rope_theta}")
        try:
            factors *= yarn_factors(config.head_dim, config.rope_theta, factor, original, fast, slow)
        except ValueError as error:
            raise header.refuse(f"{prefix}type", f"is yarn, whose {error}") from None
        attention_factor *= 1 + 0.1 * math.log(factor)
    elif kind != "none":
        raise header.refuse(f"{prefix}type", f"is {kind[:40]!r}, which this version does not do", OTHER_MODEL)
    if tensor is not None:
        if not isinstance(tensor, np.ndarray) or tensor.shape != (half,) or tensor.dtype != np.float32:
            raise header.refuse(ROPE_FACTORS, f"must be {half} float32 numbers, half of a head")
        factors *= tensor
    with np.errstate(all="ignore"):
        plain = bool((factors == 1).all())
    return None if plain else tuple(factors.tolist()), attention_factor


def read_tokenizer(header: Header) -> TokenizerSpec | None:
    """The keys of the vocabulary as they are in the file: llamagpu/tokenizers/gguf.py opens them when text comes."""
    if header.text(f"{VOCABULARY}model") in (None, "none", "no_vocab"):
        return None
    n_bytes = sum(entry.end - entry.key_start for key, entry in header.entries.items() if key.startswith(VOCABULARY))
    if n_bytes > MAX_VOCABULARY_BYTES:
        raise header.refuse(f"{VOCABULARY}tokens", f"and its kin take {n_bytes} bytes, more than any vocabulary")
    return TokenizerSpec("gguf", header.only_keys(VOCABULARY), read_facts(header))


def read_facts(header: Header) -> TokenFacts:
    """Special tokens by their ids; llama.cpp writes 2^32 - 1 where there is none."""
    ids = {name: header.whole(f"{VOCABULARY}{key}_token_id", -1) for name, key in SPECIAL_KEYS.items()}
    n = header.n_elements(f"{VOCABULARY}tokens")
    flags = [
        header.flag(f"{VOCABULARY}{name}", False) if f"{VOCABULARY}{name}" in header.entries else None
        for name in ("add_bos_token", "add_eos_token")
    ]
    return TokenFacts(
        ids={name: token for name, token in ids.items() if 0 <= token < n}, add_bos=flags[0], add_eos=flags[1]
    )


def notes_of_vocabulary(header: Header) -> tuple[str, ...]:
    """What its keys leave out, and what is taken in their place."""
    kind, notes = header.text(f"{VOCABULARY}model"), list[str]()
    if kind == "gpt2":
        name = header.text(f"{VOCABULARY}pre")
        if name is None:
            notes.append("the file does not name its pre-tokenizer (tokenizer.ggml.pre): the default rule splits text")
        elif name not in SPLITS:
            notes.append(f"the file's pre-tokenizer {printable(name[:40])} is not known: the default rule splits text")
    if kind in ("llama", "gpt2", "rwkv") and f"{VOCABULARY}token_type" not in header.entries:
        notes.append("the file does not give the types of its tokens: they are told by its keys and by their texts")
    if kind == "llama" and f"{VOCABULARY}scores" not in header.entries:
        notes.append("the file does not give the scores of its tokens: those of lower ids are merged first")
    return tuple(notes)


def read_stop_tokens(header: Header, config: ModelConfig) -> tuple[int, ...]:
    """Ids that end a text. llama.cpp writes 2^32 - 1 where there is none."""
    ids = [header.whole(VOCABULARY + key, -1) for key in STOP_KEYS]
    return tuple(dict.fromkeys(token for token in ids if 0 <= token < config.vocab_size))


__all__ = ["open_checkpoint", "sniff"]
