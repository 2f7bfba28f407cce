"""MicroRWKV's checkpoints (.pt, or .pth): what its training saves by torch.save, of which "model" and "model_args" are
read. Layout: docs/formats.md.

Every name and shape follows from model_args, and is checked against them. The rows of the embedding past GPT-2's
vocabulary are there to make its size round: no text has them, and they are left out, as if their logits were -inf.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor, check_tensors
from llamagpu.config import MICRO_RWKV, ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats.torch_zip import TensorRef, TorchFile
from llamagpu.micro_rwkv_shapes import has_idle_experts, micro_rwkv_shapes

FLOATS = (np.dtype("<f4"), np.dtype("<f2"), np.dtype(ml_dtypes.bfloat16))
PREFIX = "_orig_mod."  # of torch.compile
ARGUMENTS = (
    "block_size", "vocab_size", "n_layer", "n_head", "n_embd", "num_experts", "num_active_experts", "expert_dim", "dim",
    "dropout", "bias",
)  # fmt: skip
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
GPT2_TOKENS = 50257
LARGEST_WIDTH = 1 << 22  # of model_args, before anything is computed from them
EXPERT_WIDENING, CHANNEL_WIDENING = 1.2, 3
# What MicroRWKV calls the parts of a block, and what llamagpu does.
PARTS = {
    "time_mix.": "tmix.", "time_mix.mix_": "tmix.time_maa_", "time_mix.decay": "tmix.time_decay",
    "time_mix.bonus": "tmix.time_faaaa", "time_mix.norm.": "tmix.ln_x.", "channel_mix.": "cmix.",
    "channel_mix.mix_": "cmix.time_maa_", "sliding_attention.qkv.": "sliding_attn.qkv.",
    "sliding_attention.output.": "sliding_attn.proj.", "grouped_attention.qkvw.": "grouped_attn.qkvw.",
    "grouped_attention.output.": "grouped_attn.out.", "moe.": "moe.", "moe.output.": "moe.fc.",
}  # fmt: skip
# As the script of MicroRWKV draws tokens: from all of them, with the probabilities of the model.
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
FETCH = "fetch or save the checkpoint again, with its model and model_args as MicroRWKV's training saves them"


def knows(root: Any) -> bool:
    """Whether names are those of a MicroRWKV."""
    saved = root.get("model", root) if isinstance(root, dict) else None
    return isinstance(saved, dict) and any(
        isinstance(name, str) and name.removeprefix(PREFIX).startswith("transformer.h.") and ".tmix." in name
        for name in saved
    )


def read(file: TorchFile) -> Checkpoint:
    """The model, its tensors views of the file. Raises ModelFormatError."""
    path, root = file.path, file.root
    if not isinstance(root.get("model_args"), dict) or "model" not in root:
        raise ModelFormatError(path, "model_args", "is missing: the names alone do not say what the model is", FETCH)
    state = state_dict(path, root["model"])
    config = read_config(path, root["model_args"])
    whole_vocabulary = root["model_args"]["vocab_size"]
    check_head(file, state)
    tensors: dict[str, Tensor] = {}
    for name, shape in micro_rwkv_shapes(config, has_idle_experts(config, state)).items():
        original = name_in_file(name)
        if original not in state:
            raise ModelFormatError(path, original, "is missing", FETCH)
        array = array_of(file, state.pop(original), original)
        expected = shape_in_file(original, (whole_vocabulary, config.dim) if original == EMBEDDING else shape)
        if array.shape != expected:
            problem = f"has shape {list(array.shape)}, where model_args say {list(expected)}"
            raise ModelFormatError(path, original, problem, FETCH)
        tensors[name] = array[: config.vocab_size] if original == EMBEDDING else array.reshape(shape)
    if state:
        raise ModelFormatError(path, min(state)[:80], "is a tensor that no MicroRWKV has", FETCH)
    check_tensors(path, config, tensors)
    return Checkpoint(path, "MicroRWKV checkpoint", config, tensors, sampling=SAMPLING)


def state_dict(path: Path, saved: Any) -> dict[str, TensorRef]:
    tensors: dict[str, TensorRef] = {}
    if not isinstance(saved, dict):
        raise ModelFormatError(path, "model", "is no dict of named tensors", FETCH)
    for full_name, tensor in saved.items():
        name = str(full_name)[:200].removeprefix(PREFIX)
        if not isinstance(tensor, TensorRef) or name in tensors:
            raise ModelFormatError(path, name[:80], "is no tensor, or there twice", FETCH)
        tensors[name] = tensor
    return tensors


def read_config(path: Path, arguments: Mapping[Any, Any]) -> ModelConfig:
    def refuse(field: str, problem: str) -> ModelFormatError:
        return ModelFormatError(path, field[:80], problem, FETCH)

    for name in arguments:
        if name not in ARGUMENTS:
            raise refuse(str(name)[:80], "is an argument that no MicroRWKV has")
    for name in ARGUMENTS:
        if name not in arguments:
            raise refuse(name, "is missing in model_args")
        value = arguments[name]
        if name in ("dropout", "bias"):
            continue
        if type(value) is not int or not 1 <= value <= LARGEST_WIDTH:
            # even to print a list of lists may take forever
            shown = str(value)[:40] if isinstance(value, str | int | float | None) else type(value).__name__
            raise refuse(name, f"is {shown}, must be a whole number from 1 to {LARGEST_WIDTH}")
    if type(arguments["dropout"]) not in (int, float) or not 0 <= arguments["dropout"] <= 1:
        raise refuse("dropout", "must be a number from 0 to 1")  # of training alone
    if type(arguments["bias"]) is not bool:
        raise refuse("bias", "must be true or false")
    dim, n_heads = arguments["n_embd"], arguments["n_head"]
    if arguments["dim"] != dim:
        raise refuse("dim", f"is {arguments['dim']}: what experts read and write must be n_embd = {dim} wide")
    if dim % (4 * n_heads):
        raise refuse("n_head", f"is {n_heads}: 4 * n_head must divide n_embd = {dim}")
    return ModelConfig.checked(path, {
        "architecture": MICRO_RWKV, "dim": dim, "hidden_dim": CHANNEL_WIDENING * dim, "n_layers": arguments["n_layer"],
        "n_heads": n_heads, "n_kv_heads": n_heads, "head_dim": dim // n_heads,
        "vocab_size": min(arguments["vocab_size"], GPT2_TOKENS), "max_seq_len": arguments["block_size"],
        "norm_eps": 1e-5, "tied_head": True, "n_experts": arguments["num_experts"],
        "n_active_experts": arguments["num_active_experts"],
        "expert_hidden_dim": int(arguments["expert_dim"] * EXPERT_WIDENING), "linear_bias": arguments["bias"],
    })  # fmt: skip


def check_head(file: TorchFile, state: dict[str, TensorRef]) -> None:
    """That the head is the embedding, as one storage or number by number; and take it out. Raises ModelFormatError."""
    for name in (EMBEDDING, HEAD):
        if name not in state:
            raise ModelFormatError(file.path, name, "is missing", FETCH)
    head, embedding = state.pop(HEAD), state[EMBEDDING]
    if head != embedding and not np.array_equal(
        array_of(file, head, HEAD), array_of(file, embedding, EMBEDDING), equal_nan=False
    ):
        raise ModelFormatError(file.path, HEAD, f"is not {EMBEDDING}, and the head of a MicroRWKV is tied", FETCH)


def array_of(file: TorchFile, tensor: TensorRef, name: str) -> NDArray[Any]:
    if tensor.storage.dtype not in FLOATS:
        raise ModelFormatError(file.path, name[:80], f"is of {tensor.storage.dtype}", "save it as float32")
    if not all(tensor.shape):
        raise ModelFormatError(file.path, name[:80], "has no elements", FETCH)
    return file.array(tensor, name)


def name_in_file(name: str) -> str:
    """MicroRWKV's name of a tensor."""
    if not name.startswith("layers."):
        known = {"tok_embeddings": "wte", "position_embeddings": "wpe", "norm": "ln_f"}
        first, last = name.split(".")
        return f"transformer.{known[first]}.{last}"
    _, layer, part = name.split(".", 2)
    longest = max((start for start in PARTS if part.startswith(start)), key=len)
    return f"transformer.h.{layer}.{PARTS[longest]}{part.removeprefix(longest)}"


def shape_in_file(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Some vectors are saved with axes of 1."""
    if ".time_maa_" in name:
        return (1, 1, *shape)
    return (*shape, 1) if name.endswith((".time_decay", ".time_faaaa")) else shape
