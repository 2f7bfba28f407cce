"""Meta's own files: a folder of params.json and consolidated.00.pth, .01, ..., one for each of its GPUs; and llama2.c's
and llama2Rnn's training checkpoints (.pt), which hold the same tensors with the model's arguments beside them. Layout:
docs/formats.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import ORIGIN_MEMORY, Checkpoint, Quirks, Tensor, check_tensors
from llamagpu.config import MEMORY_LLAMA, ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats import llama2rnn_training
from llamagpu.formats.mapped_file import check_readable
from llamagpu.formats.torch_zip import TensorRef, TorchFile
from llamagpu.quantization import Deferred
from llamagpu.rope_scaling import llama3_factors

SHARD = re.compile(r"consolidated\.(\d\d)(\.pth)?", re.ASCII)  # without .pth: the same unzipped, as rllama wants it
MAX_PARAMS_BYTES = 1 << 20
SPLIT_BY_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
SPLIT_BY_COLUMNS = ("wo", "w2")
FLOATS = (np.dtype("<f4"), np.dtype("<f2"), np.dtype(ml_dtypes.bfloat16))
# Tables that a model computes anew, which older files hold too.
TABLES = re.compile(r"rope\.freqs|freqs_(cos|sin)|layers\.\d+\.attention\.(mask|inner_attention\.rope\.freqs)")
# What params.json may hold: anything else might change what the model says. hidden_dim follows from w1.
PARAMS = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "hidden_dim",
    "norm_eps", "rope_theta", "use_scaled_rope", "rope_scale_factor", "rope_scaling_factor", "max_seq_len",
    "max_batch_size", "dropout",
}  # fmt: skip
LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, POSITIONS_BEFORE_SCALING = 1.0, 4.0, 8192  # of use_scaled_rope, fixed by Meta
EMBEDDING, OUTPUT, W1 = "tok_embeddings.weight", "output.weight", "layers.0.feed_forward.w1.weight"
FETCH = "fetch the model's folder again"
RLLAMA = Quirks(
    "rllama",
    greedy_tokenizer=True,
    ends=("eos",),
    sampler_order="temperature,top_p,top_k,min_p",  # its top-p is of all tokens, also where top-k leaves few
    no_penalty=True,
)


META = "Meta checkpoint"


def sniff_folder(names: set[str]) -> bool:
    """Whether it holds shards, or is an unzipped one itself; a Hugging Face folder that holds some too is not ours."""
    return "data.pkl" in names or ("config.json" not in names and any(map(SHARD.fullmatch, names)))


def is_shard(path: Path) -> bool:
    """Whether a file is one of those of a folder, by its name."""
    return SHARD.fullmatch(path.name) is not None


def knows(root: Any) -> bool:
    """Any object that was saved: ``read`` refuses what is no Llama."""
    return True


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a folder, or the one that a shard is in. Raises ModelFormatError."""
    return read_shards(path, [TorchFile(shard) for shard in shard_paths(path)])


def read(file: TorchFile) -> Checkpoint:
    """A training checkpoint, or shards that are one file of any name. Raises ModelFormatError."""
    return read_shards(file.path, [file])


def read_shards(path: Path, shards: Sequence[TorchFile]) -> Checkpoint:
    """The model that ``path``, a folder or one of its files, is or is a part of. Raises ModelFormatError."""
    paths, mem_len, root = [shard.path for shard in shards], 0, shards[0].root
    is_training = isinstance(root, dict) and isinstance(root.get("model_args"), dict) and "model" in root
    if is_training and len(shards) == 1:
        states, params = [state_dict(shards[0], root["model"])], root["model_args"]
        params_path, made_by = path, "llama2.c training checkpoint"
        if llama2rnn_training.is_memory_model(states[0]):
            states[0], params, mem_len = llama2rnn_training.without_memory(path, states[0], params)
            made_by = "llama2Rnn training checkpoint"
    else:
        states = [state_dict(shard, shard.root) for shard in shards]
        params_path = (path if paths[0].parent == path else path.parent) / "params.json"
        params, made_by = read_params(params_path), META
    for shard, state in zip(shards, states, strict=True):
        if state.keys() != states[0].keys():
            odd = min(state.keys() ^ states[0].keys())
            raise ModelFormatError(shard.path, odd[:80], f"is not in each of the {len(shards)} shards", FETCH)
    unzipped = paths[0].is_dir()
    tensors: dict[str, Tensor] = {
        name: joined(shards, [state[name] for state in states], name, params, unzipped)
        for name in states[0]
        if not TABLES.fullmatch(name)
    }
    if all(state.get(OUTPUT) == state[EMBEDDING] for state in states):
        tensors.pop(OUTPUT)  # the same storage: a tied head
    config, notes = read_config(params_path, params, tensors)
    if mem_len:
        config = ModelConfig.checked(path, {**config.to_dict(), "architecture": MEMORY_LLAMA, "mem_len": mem_len})
        tensors |= {name: rows.reshape(rows.shape[-2:]) for name, rows in origin_memories(tensors)}
    check_tensors(path, config, tensors)
    parts = ", unzipped" if unzipped else ""
    parts = f" in {len(shards)} shards{parts}" if len(shards) > 1 else parts
    quirks = RLLAMA if made_by == META else Quirks()
    return Checkpoint(path, made_by + parts, config, tensors, notes=notes, quirks=quirks)


def origin_memories(tensors: Mapping[str, Tensor]) -> list[tuple[str, NDArray[Any]]]:
    """Those that are saved as [1, rows, dim]."""
    found = [(name, tensor) for name, tensor in tensors.items() if name.endswith(ORIGIN_MEMORY)]
    return [(name, rows) for name, rows in found if isinstance(rows, np.ndarray) and rows.shape[:-2] == (1,)]


def shard_paths(path: Path) -> list[Path]:
    """All shards of the model that ``path`` is, or is one shard of."""
    if os.path.isdir(path) and not os.path.exists(path / "data.pkl"):
        folder = path
    elif is_shard(path):
        folder = path.parent
    else:
        return [path]
    found: dict[int, Path] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelFormatError(folder, "path", f"cannot be read ({error.strerror})", "check it") from None
    for name in names:
        if match := SHARD.fullmatch(name):
            found[int(match[1])] = folder / name  # a zip comes after its unzipped folder, and is taken
    for i in range(len(found)):
        if i not in found:
            raise ModelFormatError(folder, f"consolidated.{i:02}.pth", f"is missing, of {len(found) + 1} shards", FETCH)
    return [found[i] for i in range(len(found))]


def state_dict(file: TorchFile, saved: Any) -> dict[str, TensorRef]:
    """Names and tensors of what was saved, without the prefix that torch.compile adds."""
    if not isinstance(saved, dict) or not all(isinstance(name, str) for name in saved):
        raise ModelFormatError(file.path, "data.pkl", "holds no dict of named tensors", "give a Llama's checkpoint")
    tensors: dict[str, TensorRef] = {}
    for full_name, tensor in saved.items():
        name = full_name.removeprefix("_orig_mod.")
        if not isinstance(tensor, TensorRef) or name in tensors:
            raise ModelFormatError(file.path, name[:80], "is no tensor, or there twice", "give a Llama's checkpoint")
        tensors[name] = tensor
    if EMBEDDING not in tensors:
        hugging_face = any(".self_attn." in name or name == "model.embed_tokens.weight" for name in tensors)
        raise ModelFormatError(
            file.path, EMBEDDING,
            "is missing: the names are Hugging Face's" if hugging_face else "is missing: this is no Llama of Meta's",
            "save it as safetensors (save_pretrained) and give that folder" if hugging_face else "give one that is",
        )  # fmt: skip
    return tensors


def read_params(path: Path) -> dict[str, Any]:
    if not os.path.exists(path):
        raise ModelFormatError(path, "path", "is missing: it says what the shards hold", FETCH)
    if check_readable(path) > MAX_PARAMS_BYTES:
        raise ModelFormatError(path, "length", "is more than any params.json has", FETCH)
    try:
        params = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise ModelFormatError(path, "params.json", "is no JSON object", FETCH)
    return params


def read_config(
    path: Path, params: Mapping[Any, Any], tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config, and what had to be assumed for it, since params.json does not say."""

    def refuse(field: str, problem: str, remedy: str = FETCH) -> ModelFormatError:
        return ModelFormatError(path, field[:80], problem, remedy)

    for name, value in params.items():
        if name not in PARAMS and value is not None:
            raise refuse(str(name), "is a parameter that no plain Llama has", "this version cannot run such a model")
        if not isinstance(value, str | int | float | None):  # even to print a list of lists may take forever
            raise refuse(str(name), "is neither a number nor a text")
    for name in (W1, EMBEDDING):
        if name not in tensors or len(tensors[name].shape) != 2:
            raise refuse(name, "is missing or no matrix: this is no Llama, or one of experts", "give a plain Llama")
    hidden_dim, vocab_size = tensors[W1].shape[0], tensors[EMBEDDING].shape[0]
    if params.get("vocab_size", -1) not in (-1, vocab_size):
        raise refuse("vocab_size", f"is {str(params['vocab_size'])[:40]}, but the embedding has {vocab_size} rows")
    dim: Any = params.get("dim")
    n_heads: Any = params.get("n_heads")
    plausible = isinstance(dim, int) and isinstance(n_heads, int) and 0 < n_heads <= dim
    n_kv_heads = params.get("n_kv_heads")
    values = {
        "architecture": "llama", "hidden_dim": hidden_dim, "vocab_size": vocab_size,
        "head_dim": dim // n_heads if plausible else 1,  # checked() refuses what made this up
        "n_kv_heads": n_heads if n_kv_heads is None else n_kv_heads,
        "max_seq_len": 1, "norm_eps": params.get("norm_eps", 1e-5), "rope_theta": params.get("rope_theta", 10000.0),
        "tied_head": OUTPUT not in tensors,
        **{name: params[name] for name in ("dim", "n_layers", "n_heads") if name in params},
    }  # fmt: skip
    config = ModelConfig.checked(path, values)
    if config.dim % config.n_heads:
        raise refuse("n_heads", f"is {config.n_heads}, must divide dim = {config.dim}")
    values["max_seq_len"], notes = positions(params, config)
    scaled = params.get("use_scaled_rope") or False
    if type(scaled) is not bool:
        raise refuse("use_scaled_rope", "must be true or false")
    if scaled:
        factor = params.get("rope_scale_factor", params.get("rope_scaling_factor"))
        if factor is None:
            # Meta's code has 8 for all, but Llama 3.2 1B and 3B were made with 32, as their config.json says.
            factor = 32.0 if config.dim in (2048, 3072) else 8.0
            notes += (f"RoPE is scaled by {factor:g}: params.json does not say, Llama 3.2 1B and 3B have 32, others 8",)
        if type(factor) not in (int, float) or not 1 <= factor <= 1e6:
            raise refuse("rope_scale_factor", f"is {str(factor)[:40]}, must be a number from 1")
        try:
            values["rope_factors"] = llama3_factors(
                config.head_dim, config.rope_theta, factor, LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, POSITIONS_BEFORE_SCALING
            )
        except ValueError as error:
            raise refuse("use_scaled_rope", str(error)) from None
    return ModelConfig.checked(path, values), notes


def positions(params: Mapping[Any, Any], config: ModelConfig) -> tuple[Any, tuple[str, ...]]:
    """For how many it was trained. Meta's files do not say; their families differ in what they do say."""
    stated = params.get("max_seq_len")
    if stated is not None:
        return stated, ()
    if params.get("use_scaled_rope"):
        assumed, family = 131072, "Llama 3.1 and later"
    elif config.rope_theta == 1e6:
        assumed, family = 16384, "Code Llama"
    elif config.rope_theta == 5e5:
        assumed, family = 8192, "Llama 3"
    elif config.norm_eps == 1e-5 and (config.n_layers, config.n_kv_heads) != (80, 64):  # Llama 2 70B has 8
        assumed, family = 4096, "Llama 2"
    else:
        assumed, family = 2048, "Llama 1"
    return assumed, (f"{assumed} positions, as {family} has: params.json does not say (max_seq_len in it would)",)


def joined(
    shards: Sequence[TorchFile], parts: Sequence[TensorRef], name: str, params: Mapping[Any, Any], unzipped: bool
) -> Tensor:
    """One tensor of all shards: a view where there is one, else put together when it is asked for."""
    first, n = parts[0], len(parts)
    for shard, part in zip(shards, parts, strict=True):
        shard.check(part, name)
        if part.storage.dtype not in FLOATS:
            raise ModelFormatError(
                shard.path, name[:80], f"is of {part.storage.dtype}", "save it as float16 or bfloat16"
            )
        if (part.shape, part.storage.dtype) != (first.shape, first.storage.dtype) or not all(part.shape):
            raise ModelFormatError(shard.path, name[:80], "has another shape or type than in the first shard", FETCH)
    if len(first.shape) != 2:
        vector = shards[0].array(first, name)
        return vector.copy() if unzipped else vector  # a mapping keeps its file open: of folders none is kept
    if n == 1 and not unzipped:
        return shards[0].array(first, name)
    axis = split_axis(shards[0].path, name, first.shape, params.get("dim"), n)
    shape = (first.shape[0] * n, first.shape[1]) if axis == 0 else (first.shape[0], first.shape[1] * n)

    def make() -> NDArray[Any]:
        return np.concatenate([shard.array(part, name) for shard, part in zip(shards, parts, strict=True)], axis)

    dtype = first.storage.dtype
    return Deferred(shape, n * first.shape[0] * first.shape[1] * dtype.itemsize, dtype.name, make)


def split_axis(path: Path, name: str, shape: tuple[int, ...], dim: Any, n: int) -> int:
    """Along which axis Meta's code has split a matrix. Embeddings: columns for Llama 1 and 2, rows for Llama 3."""
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if kind in SPLIT_BY_ROWS:
        return 0
    if kind in SPLIT_BY_COLUMNS:
        return 1
    if kind == "tok_embeddings" and dim in (shape[1], shape[1] * n):
        return 0 if dim == shape[1] else 1
    raise ModelFormatError(path, name[:80], f"of shape {list(shape)} in {n} shards cannot be put together", FETCH)
