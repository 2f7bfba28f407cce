"""RWKV-6 and 7 in GGUF: llama.cpp's names and shapes put back into those of RWKV's own files.

llama.cpp halves the residual stream of RWKV-6 after every few layers, and its converter the weights that add to it:
they are doubled again here, which is exact.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.config import ModelConfig
from llamagpu.formats.gguf_header import Header
from llamagpu.formats.rwkv_names import END_OF_TEXT, RwkvFile, rwkv_checkpoint
from llamagpu.quantization import AffineQuant, Deferred

ARCHITECTURES = ("rwkv6", "rwkv7")
# Keys of the architecture (without its name) that are used below, or say what the tensors say themselves.
USED = {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.layer_norm_epsilon",
    "wkv.head_size", "rescale_every_n_layers", "token_shift_count", "vocab_size", "attention.head_count",
    "time_mix_extra_dim", "time_decay_extra_dim", "attention.decay_lora_rank", "attention.iclr_lora_rank",
    "attention.value_residual_mix_lora_rank", "attention.gate_lora_rank",
}  # fmt: skip
OUTER = {
    "token_embd.weight": "emb.weight", "token_embd_norm.weight": "blocks.0.ln0.weight",
    "token_embd_norm.bias": "blocks.0.ln0.bias", "output_norm.weight": "ln_out.weight",
    "output_norm.bias": "ln_out.bias", "output.weight": "head.weight",
}  # fmt: skip
LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.([a-z0-9_]+)\.(weight|bias)")
# With .weight or .bias behind them in both; then those without in RWKV's files.
MODULES = {
    "attn_norm": "ln1", "attn_norm_2": "ln2", "time_mix_ln": "att.ln_x",
    **{f"time_mix_{name}": f"att.{name}" for name in ("receptance", "key", "value", "gate", "output")},
    **{f"channel_mix_{name}": f"ffn.{name}" for name in ("receptance", "key", "value")},
}  # fmt: skip
PARAMETERS = {
    "rwkv6": {
        "time_mix_first": "att.time_faaaa", "time_mix_decay": "att.time_decay",
        "time_mix_lerp_fused": "att.time_maa_wkvrg",
        **{f"time_mix_w{n}": f"att.time_maa_w{n}" for n in "12"},
        **{f"time_mix_decay_w{n}": f"att.time_decay_w{n}" for n in "12"},
        **{f"time_mix_lerp_{x}": f"att.time_maa_{x}" for x in "xwkvrg"},
        **{f"channel_mix_lerp_{x}": f"ffn.time_maa_{x}" for x in "kr"},
    },
    "rwkv7": {
        "time_mix_lerp_fused": "att.x_rwkvag", "channel_mix_lerp_k": "ffn.x_k",
        **{f"time_mix_{name}": f"att.{name}" for name in ("k_k", "k_a", "r_k", "g1", "g2")},
        **{f"time_mix_{x}{n}": f"att.{x}{n}" for x in "wav" for n in "012"},
    },
}  # fmt: skip
ADDS = re.compile(r"blocks\.([0-9]+)\.(att\.output|ffn\.value)\.weight")  # to the residual stream
MOST_HALVINGS = 16
NOT_JINJA = "rwkv-world"  # what converters wrote for a chat template that llama.cpp has built in


def read(header: Header, arch: str, found: dict[str, Tensor]) -> Checkpoint:
    """The model that tensors under llama.cpp's names are. Raises ModelFormatError."""
    names = {own_name(arch, name): name for name in found}
    if len(names) != len(found):
        raise header.refuse("tensors", "hold the same one under two names")
    tensors = {name: found[original] for name, original in names.items()}
    dim, head_dim = header.whole(f"{arch}.embedding_length"), header.whole(f"{arch}.wkv.head_size")
    if not 1 <= head_dim <= dim or dim % head_dim:
        raise header.refuse(f"{arch}.wkv.head_size", f"is {head_dim}, must divide {arch}.embedding_length = {dim}")
    if header.whole(f"{arch}.token_shift_count", 2) != 2:
        raise header.refuse(f"{arch}.token_shift_count", "is not 2: the channel mix has none, as in no RWKV")
    for name, tensor in tensors.items():
        if name.endswith(".att.r_k"):  # in one row
            tensors[name] = in_heads(header, names[name], tensor, dim // head_dim, head_dim)
    undo_halving(header, arch, tensors)
    checkpoint = rwkv_checkpoint(
        RwkvFile(header.path, tensors, processed=True, names=names), f"GGUF version {header.version}"
    )
    config = checkpoint.config
    if config.architecture != arch:
        raise header.refuse("general.architecture", f"is {arch}, but the tensors are those of an {config.architecture}")
    for key, value in (
        ("embedding_length", config.dim), ("block_count", config.n_layers), ("wkv.head_size", config.head_dim),
        ("feed_forward_length", config.hidden_dim),
    ):  # fmt: skip
        if header.whole(f"{arch}.{key}") != value:
            problem = f"is {header.whole(f'{arch}.{key}')}, but the tensors say {value}"
            raise header.refuse(f"{arch}.{key}", problem)
    values = {
        **config.to_dict(), "max_seq_len": header.whole(f"{arch}.context_length", config.max_seq_len),
        "norm_eps": header.number(f"{arch}.attention.layer_norm_epsilon", config.norm_eps),
    }  # fmt: skip
    return replace(checkpoint, config=ModelConfig.checked(header.path, values))


def own_name(arch: str, name: str) -> str:
    """The name in RWKV's files; what has none stays as it is, and is refused by that."""
    in_layer = LAYER.fullmatch(name)
    if in_layer is None:
        return OUTER.get(name, name)
    layer, module, kind = in_layer.groups()
    if module in MODULES:
        return f"blocks.{layer}.{MODULES[module]}.{kind}"
    parameter = PARAMETERS[arch].get(module) if kind == "weight" else None
    return f"blocks.{layer}.{parameter}" if parameter else name


def in_heads(header: Header, name: str, tensor: Tensor, n_heads: int, head_dim: int) -> NDArray[Any]:
    if not isinstance(tensor, np.ndarray) or tensor.size != n_heads * head_dim:
        raise header.refuse(name, f"is of shape {list(tensor.shape)}, not {n_heads} heads of {head_dim} in floats")
    return tensor.reshape(n_heads, head_dim)


def undo_halving(header: Header, arch: str, tensors: dict[str, Tensor]) -> None:
    key = f"{arch}.rescale_every_n_layers"
    every = header.whole(key, 0)
    for name, tensor in tensors.items() if every > 0 else ():
        match = ADDS.fullmatch(name)
        n = int(match[1]) // every if match else 0
        if n > MOST_HALVINGS:
            raise header.refuse(key, f"is {every}: layer {match[1] if match else 0} would be halved {n} times")
        if n and len(tensor.shape) == 2:  # others are refused by their shape
            tensors[name] = doubled(tensor, 2.0**n)


def doubled(tensor: Tensor, factor: float) -> Deferred:
    """A matrix times a power of two. Raises ModelFormatError when it is made, as the tensor does."""

    def make() -> NDArray[Any] | AffineQuant:
        made = tensor.materialize() if isinstance(tensor, Deferred) else tensor
        with np.errstate(over="ignore"):
            if not isinstance(made, AffineQuant):
                assert isinstance(made, np.ndarray)
                return np.asarray(made.astype(np.float32) * np.float32(factor)).astype(made.dtype)
            params = made.params.astype(np.float32)
            params[..., : 2 if made.has_offsets else 1] *= np.float32(factor)  # zeros are whole numbers, and stay
            halves = params.astype(np.float16)
        is_exact = made.params.dtype == np.float16 and np.array_equal(halves.astype(np.float32), params)
        return replace(made, params=halves if is_exact else params)

    kind = tensor.kind if isinstance(tensor, Deferred) else str(getattr(tensor, "dtype", ""))
    held = tensor.held_nbytes if isinstance(tensor, Deferred) else 0
    return Deferred((tensor.shape[0], tensor.shape[1]), tensor.nbytes, kind, make, held)


def chat_template(header: Header) -> str | None:
    found = header.text("tokenizer.chat_template")
    return None if found == NOT_JINJA else found


def end_of_turn(header: Header, stop_tokens: tuple[int, ...]) -> tuple[str, ...]:
    """A note where the file names one: converters make it the token of a blank line."""
    token = header.whole("tokenizer.ggml.eot_token_id", -1)
    if token not in stop_tokens or token == END_OF_TEXT:
        return ()
    return (f"a text ends at token {token} too: the file names it as the end of a turn of chat",)
