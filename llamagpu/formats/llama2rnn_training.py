"""llama2Rnn's training checkpoints (.pt): llama2.c's, with the parts and the settings of a memory. Read by meta.py.

Of the kinds of memory that llama2Rnn can train, the one that it can export is read: keys and values of the memory by
the matrices of the tokens (reuse_kv), with a norm and a feed-forward, without a matrix of the memory's own (wm).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamagpu.checkpoint import ORIGIN_MEMORY
from llamagpu.errors import ModelFormatError
from llamagpu.formats.torch_zip import TensorRef

# What model_args may say of a memory, and the only value with which the model is one that this version runs.
SETTINGS = {
    "attention_type": "memory_attention", "memory_attention": True, "do_wm": False, "do_memory_ffn": True,
    "memory_norm": True, "reuse_kv": True, "lora": False, "key_norm": False, "extend_method": "extrapolation",
}  # fmt: skip
WITHOUT_EFFECT = ("memseqlen", "train_orimem", "update_memory", "use_saved_mem", "extend_seq_len")
ALIAS = re.compile(r"(layers\.\d+\.attention\.w[qkv])m\.weight", re.ASCII)
SAVED_MEMORY = re.compile(r"layers\.\d+\.attention\.memory", re.ASCII)  # of the last batch of training
FIRST_ORIGIN = f"layers.0.attention.{ORIGIN_MEMORY}"
REMEDY = "this version runs what llama2Rnn's export.py --mem would export: reuse_kv, memory_norm, do_memory_ffn, no wm"


def is_memory_model(state: Mapping[str, TensorRef]) -> bool:
    """Whether a state_dict is of a model with a memory."""
    return any(name.endswith(f".attention.{ORIGIN_MEMORY}") for name in state)


def without_memory(
    path: Path, state: Mapping[str, TensorRef], params: Mapping[Any, Any]
) -> tuple[dict[str, TensorRef], dict[Any, Any], int]:
    """The tensors of a Checkpoint, the settings of a plain Llama, and mem_len. Raises ModelFormatError."""

    def refuse(field: str, problem: str) -> ModelFormatError:
        return ModelFormatError(path, field[:80], problem, REMEDY)

    params = dict(params)
    given = {name: params.pop(name) for name in (*SETTINGS, *WITHOUT_EFFECT) if name in params}
    if given.get("attention_type") == SETTINGS["attention_type"]:
        given.pop("memory_attention", None)  # the older name of the same, left at its default
    elif given.get("memory_attention") is True:
        given.pop("attention_type", None)
    for name, value in given.items():
        if name in SETTINGS and (type(value) is not type(SETTINGS[name]) or value != SETTINGS[name]):
            raise refuse(name, f"is {str(value)[:40]!r} where it must be {SETTINGS[name]!r}")
    if "theta" in params:
        params["rope_theta"] = params.pop("theta")
    kept: dict[str, TensorRef] = {}
    for name, tensor in state.items():
        if match := ALIAS.fullmatch(name):
            if tensor != state.get(f"{match[1]}.weight"):
                raise refuse(name, "is no other name of the same matrix: the memory has one of its own")
        elif name.endswith(".attention.wm.weight"):
            raise refuse(name, "is a matrix of the memory's own (do_wm)")
        elif not SAVED_MEMORY.fullmatch(name):
            kept[name] = tensor
    for part in ("memory_norm", "ffn_norm"):
        if f"layers.0.attention.{part}.weight" not in kept:
            raise refuse(f"layers.0.attention.{part}.weight", "is missing: the memory has no such norm")
    shape = kept[FIRST_ORIGIN].shape if FIRST_ORIGIN in kept else ()
    if len(shape) != 3 or shape[0] != 1:
        raise refuse(FIRST_ORIGIN, f"has shape {list(shape)}, not [1, rows, dim]")
    if given.get("memseqlen", shape[1]) != shape[1]:
        raise refuse("memseqlen", f"is {str(given['memseqlen'])[:40]}, but the memory has {shape[1]} rows")
    return kept, params, shape[1]
