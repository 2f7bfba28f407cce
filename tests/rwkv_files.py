"""Small RWKVs in every form that is read, made from the weights of tests/references/rwkv_reference.py."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references.rwkv_reference import Weights
from tests.torch_files import torch_bytes

Arrays = dict[str, NDArray[Any]]
GGMF = 0x67676D66
THIN = tuple(f".att.{x}{n}" for x in "wavg" for n in "12")
KEPT_IN_FP32 = (".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")


def version_of(weights: Mapping[str, Any]) -> int:
    names = set(weights)
    marks = {7: "blocks.0.att.r_k", 6: "blocks.0.att.time_maa_x", 5: "blocks.0.att.time_faaaa"}
    return next((version for version, mark in marks.items() if mark in names), 4)


def pth_bytes(weights: Mapping[str, NDArray[Any]], dtype: Any = np.float32) -> bytes:
    """As RWKV publishes it."""
    return torch_bytes({name: value.astype(dtype) for name, value in weights.items()})


def ggmf_arrays(weights: Weights) -> Arrays:
    """What rwkv.cpp's converter makes of each tensor, axis by axis."""
    version, out = version_of(weights), dict[str, NDArray[Any]]()
    for name, value in weights.items():
        if version == 7 and ".att.x_" in name:
            fused = name[:-1] + "rwkvag"
            out[fused] = np.concatenate([out[fused], value]) if fused in out else value
            continue
        if ".time_" in name:
            value = value.squeeze()
        if version == 7 and name.endswith(THIN):
            value = value.T
        if version == 6 and ("time_maa_w1" in name or "time_decay_w" in name):
            value = value.T
        if version == 6 and "time_maa_w2" in name:
            value = value.transpose(0, 2, 1)
        if version == 6 and name.endswith("time_decay"):
            value = value.reshape(weights["blocks.0.att.time_faaaa"].shape[0], -1, 1)
        if version == 5 and "time_decay" in name:
            value = np.exp(-np.exp(value))[..., None]
        if "time_faaaa" in name:
            value = value[..., None]
        if version == 4 and "time_decay" in name:
            value = -np.exp(value)
        out[name] = np.ascontiguousarray(value)
    return out


def ggmf_bytes(
    weights: Weights, half: bool = False, quantise: Callable[[NDArray[Any]], tuple[int, bytes]] | None = None,
    as_it_is: bool = False,
) -> bytes:  # fmt: skip
    """half: FP16. quantise: type and blocks of a matrix, for those that rwkv.cpp quantises. as_it_is: rwkv.cpp's
    arrays are given."""
    arrays = weights if as_it_is else ggmf_arrays(weights)
    n_layers = sum(name.endswith(".ln1.weight") for name in arrays)
    out = struct.pack("<6I", GGMF, 101, *weights["emb.weight"].shape, n_layers, int(half))
    for name, value in arrays.items():
        kind, data = 0, value.astype("<f4").tobytes()
        if half and value.ndim > 1 and not any(part in name for part in KEPT_IN_FP32):
            kind, data = 1, value.astype("<f2").tobytes()
        if quantise and value.ndim == 2 and name not in ("emb.weight", "head.weight") and value.shape[1] % 32 == 0:
            kind, data = quantise(value)
        out += ggmf_tensor(name, value.shape, kind, data)
    return out


def ggmf_tensor(name: str | bytes, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    encoded = name.encode() if isinstance(name, str) else name
    head = struct.pack(f"<{3 + len(shape)}I", len(shape), len(encoded), kind, *reversed(shape))
    return head + encoded + data


def huggingface_arrays(weights: Mapping[str, NDArray[Any]]) -> Arrays:
    """The tensors as transformers (RWKV-4), RWKV's own code for it (5, 6) or flash-linear-attention (7) names them."""
    version = version_of(weights)
    if version == 7:
        return {fla_name(name): np.ascontiguousarray(value.T if name.endswith(THIN) else value)
                for name, value in fla_shapes(weights).items()}  # fmt: skip
    out: Arrays = {}
    for name, value in weights.items():
        own = "head.weight" if name == "head.weight" else f"rwkv.{name}"
        for theirs, word in ((".att.", ".attention."), (".ffn.", ".feed_forward."), ("emb.", "embeddings."),
                             (".ln0.", ".pre_ln.")):  # fmt: skip
            own = own.replace(theirs, word)
        for word in ("key", "value", "receptance", "gate"):
            own = own + word[1:] if own.endswith(f"time_mix_{word[0]}") else own
        out[own] = value
    return out


def fla_shapes(weights: Mapping[str, NDArray[Any]]) -> Arrays:
    """Without what is never used; vectors but for the x_ of attention have one axis."""
    unused = [f"blocks.0.att.v{n}" for n in "012"]
    return {name: value if value.ndim == 2 or ".att.x_" in name else value.reshape(-1)
            for name, value in weights.items() if name not in unused}  # fmt: skip


def fla_name(name: str) -> str:
    outer = {"emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight",
             "ln_out.weight": "model.norm.weight", "ln_out.bias": "model.norm.bias"}  # fmt: skip
    if name in outer:
        return outer[name]
    _, layer, place, leaf = name.split(".", 3)
    place = {"att": "attn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}.get(place, place)
    if place == "attn" and leaf[:2] in [f"{x}{n}" for x in "wavg" for n in "012"]:
        leaf = f"{leaf[0]}_lora.lora.{dict(zip('012', ('2.bias', '0.weight', '2.weight'), strict=True))[leaf[1]]}"
    elif place == "attn":
        for theirs, own in (("receptance", "r_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj"),
                            ("ln_x", "g_norm")):  # fmt: skip
            leaf = leaf.replace(theirs, own)
    return f"model.layers.{layer}.{place}.{leaf}"


def huggingface_config(weights: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    version, (vocab, dim) = version_of(weights), weights["emb.weight"].shape
    config = {
        "vocab_size": vocab, "hidden_size": dim, "intermediate_size": weights["blocks.0.ffn.key.weight"].shape[0],
        "num_hidden_layers": sum(name.endswith(".ln1.weight") for name in weights), "tie_word_embeddings": False,
        "eos_token_id": 0, "bos_token_id": 0,
    }  # fmt: skip
    if version == 7:
        head_dim = weights["blocks.0.att.r_k"].shape[1]
        return {
            **config, "architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", "head_dim": head_dim, "attn": None,
            "norm_eps": 1e-5, "norm_first": True, "norm_bias": True, "hidden_act": "sqrelu",
            "value_dim": [dim] * config["num_hidden_layers"], "attn_mode": "chunk", "fuse_norm": False,
        }  # fmt: skip
    config |= {"attention_hidden_size": dim, "layer_norm_epsilon": 1e-5, "rescale_every": 2}
    if version == 4:
        return {**config, "architectures": ["RwkvForCausalLM"], "model_type": "rwkv", "context_length": 64}
    head_dim = weights["blocks.0.att.time_faaaa"].shape[1]
    return {
        **config, "architectures": [f"Rwkv{version}ForCausalLM"], "model_type": f"rwkv{version}",
        "head_size": head_dim, "num_attention_heads": head_dim, "head_size_divisor": 8,
        "auto_map": {"AutoConfig": "configuration.Config"},
    }  # fmt: skip


def write_folder(folder: Path, arrays: Arrays, config: Mapping[str, Any]) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
