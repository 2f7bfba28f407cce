"""RWKV-6 and 7 as llama.cpp's converter writes them, from weights under RWKV's own names."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from tests.formats.gguf_files import File, Keys, Tensor
from tests.references.rwkv_reference import Weights
from tests.rwkv_files import version_of

OUTER = {
    "emb.weight": "token_embd.weight", "head.weight": "output.weight", "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias", "ln0.weight": "token_embd_norm.weight", "ln0.bias": "token_embd_norm.bias",
}  # fmt: skip
SIXTH = {
    "att.time_faaaa": "time_mix_first", "att.time_decay": "time_mix_decay", "att.time_decay_w1": "time_mix_decay_w1",
    "att.time_decay_w2": "time_mix_decay_w2", "att.time_maa_w1": "time_mix_w1", "att.time_maa_w2": "time_mix_w2",
    "att.time_maa_x": "time_mix_lerp_x", "ffn.time_maa_k": "channel_mix_lerp_k", "ffn.time_maa_r": "channel_mix_lerp_r",
}  # fmt: skip


def rwkv_gguf(
    weights: Weights, kind: str = "F32", thin_kind: str = "F32", every: int = 0, fused: bool = True, **keys: Any
) -> tuple[File, Weights]:
    """A file, and what the weights are in it. kind: of matrices, thin_kind of thin ones. every: layers after which
    RWKV-6 is halved. keys: beside those of the converter, with _ for . in their names."""
    version = version_of(weights)
    arch = f"rwkv{version}"
    tensors: dict[str, Tensor] = {}
    rounded = dict(weights)
    head_dim = weights["blocks.0.att.r_k" if version == 7 else "blocks.0.att.time_faaaa"].shape[1]
    dim = weights["emb.weight"].shape[1]

    def put(name: str, value: NDArray[Any], own: str = "F32") -> NDArray[np.float32]:
        quant = gguf.GGMLQuantizationType[own if value.ndim == 2 else "F32"]
        if value.shape[-1] % gguf.GGML_QUANT_SIZES[quant][0]:
            quant = gguf.GGMLQuantizationType.F32
        data = quantize(np.ascontiguousarray(value, np.float32), quant)
        tensors[name] = Tensor(value.shape, quant.name, data.tobytes())
        return np.asarray(dequantize(data, quant).reshape(value.shape))

    for name, value in weights.items():
        if not name.startswith("blocks."):
            rounded[name] = put(OUTER[name], value, kind if value.ndim == 2 else "F32")
            continue
        _, layer, rest = name.split(".", 2)
        halved = 2.0 ** (int(layer) // every) if every and rest in ("att.output.weight", "ffn.value.weight") else 1.0
        if rest in OUTER:
            put(OUTER[rest], value)
        elif rest.startswith(("ln1.", "ln2.", "att.ln_x.")):
            module = {"ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln"}[rest.rpartition(".")[0]]
            put(f"blk.{layer}.{module}.{rest.rpartition('.')[2]}", value)
        elif rest.endswith(".weight"):
            module = rest.removesuffix(".weight").replace("att.", "time_mix_").replace("ffn.", "channel_mix_")
            rounded[name] = put(f"blk.{layer}.{module}.weight", value / halved, kind) * np.float32(halved)
        elif version == 6:
            put_6(put, weights, rounded, layer, rest, thin_kind, fused)
        else:
            put_7(put, weights, rounded, layer, rest, thin_kind)
    n_layers = sum(name.endswith(".ln1.weight") for name in weights)
    about: Keys = {
        "general.architecture": ("str", arch), f"{arch}.context_length": ("u32", 1048576),
        f"{arch}.embedding_length": ("u32", dim), f"{arch}.block_count": ("u32", n_layers),
        f"{arch}.attention.layer_norm_epsilon": ("f32", 1e-5), f"{arch}.wkv.head_size": ("u32", head_dim),
        f"{arch}.feed_forward_length": ("u32", weights["blocks.0.ffn.key.weight"].shape[0]),
        f"{arch}.attention.head_count": ("u32", 0),
    }  # fmt: skip
    if version == 6:
        about[f"{arch}.rescale_every_n_layers"] = ("u32", every)
        about[f"{arch}.time_mix_extra_dim"] = ("u32", 32)
    else:
        about[f"{arch}.attention.decay_lora_rank"] = ("u32", weights["blocks.0.att.w1"].shape[1])
    return File(
        {**about, **{f"{arch}.{key.replace('__', '.')}": value for key, value in keys.items()}}, tensors
    ), rounded


def put_6(put: Any, weights: Weights, rounded: Weights, layer: str, rest: str, thin_kind: str, fused: bool) -> None:
    name = f"blocks.{layer}.{rest}"
    value = weights[name]
    lerps = {f"att.time_maa_{x}": x for x in "wkvrg"}
    if rest in lerps:
        if not fused:
            put(f"blk.{layer}.time_mix_lerp_{lerps[rest]}.weight", value.reshape(-1))
        elif rest == "att.time_maa_g":
            stacked = np.stack([weights[f"blocks.{layer}.{lerp}"].reshape(1, -1) for lerp in lerps])
            put(f"blk.{layer}.time_mix_lerp_fused.weight", stacked[:, None])
        return
    if rest == "att.time_maa_w2":
        put(f"blk.{layer}.time_mix_w2.weight", value.transpose(0, 2, 1))
    elif rest in ("att.time_maa_w1", "att.time_decay_w1", "att.time_decay_w2"):
        rounded[name] = put(f"blk.{layer}.{SIXTH[rest]}.weight", value.T, thin_kind).T
    else:
        put(f"blk.{layer}.{SIXTH[rest]}.weight", value if rest == "att.time_faaaa" else value.reshape(-1))


def put_7(put: Any, weights: Weights, rounded: Weights, layer: str, rest: str, thin_kind: str) -> None:
    """The first layer has the matrices of a in place of those of v."""
    name, leaf = f"blocks.{layer}.{rest}", rest.removeprefix("att.")
    value = weights[name]
    if leaf[:2] == "x_":
        if leaf == "x_g":
            put(f"blk.{layer}.time_mix_lerp_fused.weight",
                np.stack([weights[f"blocks.{layer}.att.x_{x}"][0] for x in "rwkvag"])[:, None])  # fmt: skip
    elif rest == "ffn.x_k":
        put(f"blk.{layer}.channel_mix_lerp_k.weight", value.reshape(-1))
    elif leaf[0] in "wavg" and leaf[1:] in ("1", "2"):
        if layer == "0" and leaf[0] == "v":
            value = weights[f"blocks.0.att.a{leaf[1]}"]
        rounded[name] = put(f"blk.{layer}.time_mix_{leaf}.weight", value.T, thin_kind).T
    else:
        put(f"blk.{layer}.time_mix_{leaf}.weight", value.reshape(-1))
