"""RWKVs in Hugging Face's folders: 4 of transformers, 5 and 6 of RWKV's own code for it, 7 of flash-linear-attention.

Their tensors are those of RWKV's own files under other names; RWKV-7 has its thin matrices the other way round. What
config.json says against the tensors, or that no RWKV does, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.config import LARGEST, ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats.huggingface_config import flag, whole
from llamagpu.formats.rwkv_names import RwkvFile, rwkv_checkpoint
from llamagpu.formats.safetensors_file import SafetensorsFile

VERSIONS = {"rwkv": "rwkv4", "rwkv5": "rwkv5", "rwkv6": "rwkv6", "rwkv7": "rwkv7"}  # by model_type
FLOATS = (np.dtype("<f4"), np.dtype("<f2"), np.dtype(ml_dtypes.bfloat16))
# Modules of 4 to 6 and of 7, and what RWKV calls them: those of no layer, then those of each.
OUTER = {
    "rwkv.embeddings": "emb", "rwkv.ln_out": "ln_out", "head": "head",
    "model.embeddings": "emb", "model.norm": "ln_out", "lm_head": "head",
}  # fmt: skip
MODULES = {
    "attention": "att", "feed_forward": "ffn", "pre_ln": "ln0", "ln1": "ln1", "ln2": "ln2",
    "attn": "att", "ffn": "ffn", "pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2",
}  # fmt: skip
LAYER = re.compile(
    r"(?:rwkv\.blocks\.([0-9]+)\.(?=attention|feed|pre_ln|ln)|model\.layers\.([0-9]+)\.(?=attn|ffn|pre_norm))"
    r"([a-z0-9_]+)\.(.+)"
)
TIME_MIX = re.compile(r"time_mix_(key|value|receptance|gate)")
OF_7 = {
    **{f"{x}_proj.weight": f"{name}.weight" for x, name in zip("rkvo", ("receptance", "key", "value", "output"),
                                                                strict=True)},
    **{f"{x}_lora.lora.{part}": f"{x}{n}" for x in "wavg"
       for part, n in (("0.weight", 1), ("2.weight", 2), ("2.bias", 0))},
    "g_norm.weight": "ln_x.weight", "g_norm.bias": "ln_x.bias", "x_x": "x_rwkvag",
}  # fmt: skip
UNKNOWN = "this version cannot run the model as it is meant"
LAYERNORM_EPS = 1e-5  # of ln_out in 4 to 6, whatever config.json says: the others must have the same


def knows(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an RWKV."""
    return isinstance(values.get("model_type"), str) and values["model_type"] in VERSIONS


def read(folder: Path, path: Path, values: dict[str, Any], files: Mapping[str, SafetensorsFile]) -> Checkpoint:
    """The model without what is about text. path: of config.json, whose ``values`` are. Raises ModelFormatError."""
    version = VERSIONS[values["model_type"]]
    refuse_what_is_not_here(path, values, version)
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for name, file in files.items():
        own = own_name(name)
        array = file.array(name)
        if own is None or own in tensors:
            problem = "is a tensor that no RWKV has" if own is None else f"is {names[own]} under another name"
            raise ModelFormatError(file.path, name[:80], problem, UNKNOWN)
        if array.dtype not in FLOATS:
            raise ModelFormatError(file.path, name[:80], f"has type {array.dtype}, as no weight has", UNKNOWN)
        tensors[own], names[own] = array, name
    notes: tuple[str, ...] = ()
    if flag(path, values, "tie_word_embeddings") and "emb.weight" in tensors and "head.weight" not in tensors:
        tensors["head.weight"] = tensors["emb.weight"]
        notes = ("the head is the embedding, which is held twice",)
    checkpoint = rwkv_checkpoint(RwkvFile(folder, tensors, version == "rwkv7", names), "Hugging Face")
    config = checkpoint.config
    if config.architecture != version:
        problem = f"is {values['model_type']!r}, but the tensors are those of an {config.architecture}"
        raise ModelFormatError(path, "model_type", problem, UNKNOWN)
    check_sizes(path, values, config)
    numbers = {"norm_eps": norm_eps(path, values, version)}
    if version == "rwkv7":
        numbers["group_norm_eps"] = config.head_dim * numbers["norm_eps"]
    elif version != "rwkv4":
        divisor = whole(path, {"head_size_divisor": 8} | values, "head_size_divisor", LARGEST["head_dim"])
        numbers["group_norm_eps"] = 1e-5 * divisor**2
    return replace(checkpoint, config=ModelConfig.checked(path, {**config.to_dict(), **numbers}), notes=notes)


def own_name(name: str) -> str | None:
    """The name in RWKV's own files; None for what those do not have."""
    module, _, kind = name.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    match = LAYER.fullmatch(name)
    if match is None or match[3] not in MODULES:
        return None
    layer, module, leaf = match[1] or match[2], match[3], match[4]
    if module == "attn":
        leaf = OF_7.get(leaf, leaf)
    leaf = TIME_MIX.sub(lambda found: f"time_mix_{found[1][0]}", leaf)
    return f"blocks.{layer}.{MODULES[module]}.{leaf}"


def refuse_what_is_not_here(path: Path, values: dict[str, Any], version: str) -> None:
    def refuse(field: str, meant: str) -> ModelFormatError:
        return ModelFormatError(path, field, f"is {str(values[field])[:40]}; this version has {meant} alone", UNKNOWN)

    if values.get("quantization_config") is not None:
        raise refuse("quantization_config", "an RWKV in floats")
    if version != "rwkv7":
        return
    if values.get("attn") is not None:
        raise refuse("attn", "layers of RWKV")
    if values.get("hidden_act", "sqrelu") not in ("sqrelu", "relu2"):  # two names of one function
        raise refuse("hidden_act", "sqrelu")
    for name in ("norm_first", "norm_bias"):
        if values.get(name, True) is not True:
            raise refuse(name, "true")


def check_sizes(path: Path, values: dict[str, Any], config: ModelConfig) -> None:
    """That config.json and the tensors are of one model. num_attention_heads is left out: in RWKV's own folders it has
    been the size of a head."""
    expected = {
        "vocab_size": config.vocab_size, "hidden_size": config.dim, "num_hidden_layers": config.n_layers,
        "attention_hidden_size": config.dim, "intermediate_size": config.hidden_dim, "head_size": config.head_dim,
        "head_dim": config.head_dim, "num_heads": config.n_heads,
    }  # fmt: skip
    if config.architecture == "rwkv4":
        expected = {name: size for name, size in expected.items() if not name.startswith(("head_", "num_heads"))}
    for name, size in expected.items():
        if values.get(name) is not None and values[name] != size:
            problem = f"is {str(values[name])[:40]}, but the tensors say {size}"
            raise ModelFormatError(path, name, problem, UNKNOWN)
    widths = values.get("value_dim")
    if widths is not None and widths not in (config.dim, [config.dim] * config.n_layers):
        raise ModelFormatError(path, "value_dim", f"is {str(widths)[:40]}, not {config.dim} in all layers", UNKNOWN)


def norm_eps(path: Path, values: dict[str, Any], version: str) -> float:
    key = "norm_eps" if version == "rwkv7" else "layer_norm_epsilon"
    eps = values.get(key, LAYERNORM_EPS)
    if type(eps) not in (int, float) or not 0 < eps < 1 or (version != "rwkv7" and eps != LAYERNORM_EPS):
        meant = "a number from 0 to 1" if version == "rwkv7" else f"{LAYERNORM_EPS:g}, as that of its last norm is"
        raise ModelFormatError(path, key, f"is {str(eps)[:40]}, must be {meant}", UNKNOWN)
    return float(eps)
