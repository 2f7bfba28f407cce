"""An RWKV from the tensors of RWKV's own files (.pth); every other kind of file is given their names first.

The version is told by the names, the shape by the tensors: no file says either. What is small is put into our form
here; matrices stay where they are, or are transposed when they are asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec
from llamagpu.config import ModelConfig
from llamagpu.errors import ModelFormatError, printable
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.rwkv_shapes import MIXES, rwkv_shapes

WHOLE = "give a whole RWKV-4, 5, 6 or 7"
CONTEXT = 4096  # what they are trained with; their texts have no end all the same
END_OF_TEXT = 0  # of all vocabularies but bytes
BYTES = 256  # tokens of a model without a vocabulary
LAYER = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.(att|ffn|ln0|ln1|ln2)\.(.+)")
OUTER = {
    "emb.weight": "tok_embeddings.weight", "head.weight": "output.weight", "ln_out.weight": "norm.weight",
    "ln_out.bias": "norm.bias",
}  # fmt: skip
NORMS = {"ln0": "embedding_norm", "ln1": "attention_norm", "ln2": "ffn_norm"}
MAA = "wkvrg"  # the order of RWKV-6's time_maa_w1 and w2
MATRIX = re.compile(r"(receptance|key|value|gate|output)\.weight")
# Vectors of a time mix that bear our names already, and others; of RWKV-4 and 5 what stands for x is 1 - x.
SAME = {"w0", "a0", "v0", "k_k", "k_a", "r_k", "ln_x.weight", "ln_x.bias"} | {f"x_{x}" for x in MIXES["rwkv7"]}
RENAMED = {"time_first": "bonus", "time_faaaa": "bonus"} | {f"time_maa_{x}": f"x_{x}" for x in f"x{MAA}"}
TIME_MIX = {f"time_mix_{x}": f"x_{x}" for x in MIXES["rwkv5"]}
THIN = {f"{x}{n}": f"{x}{n}" for x in "wavg" for n in "12"} | {"time_decay_w1": "w1", "time_decay_w2": "w2"}
FFN = {"key.weight", "value.weight", "receptance.weight", "x_k"}


def version_of(names: Mapping[str, Any]) -> str | None:
    """The architecture that tensors of these names are of."""
    if "blocks.0.att.r_k" in names:
        return "rwkv7"
    if "blocks.0.att.time_maa_x" in names:
        return "rwkv6"
    if "blocks.0.att.ln_x.weight" in names and "blocks.0.att.time_decay" in names:
        return "rwkv5" if "blocks.0.att.gate.weight" in names else "rwkv5.0"
    if "blocks.0.att.time_first" in names:
        return "rwkv4"
    return None


@dataclass(frozen=True)
class RwkvFile:
    """tensors: by their names in RWKV's own files. processed: as rwkv.cpp has them, the thin matrices transposed and
    the decays of RWKV-4 and 5 worked out. names: what the file calls them, where that differs."""

    path: Path
    tensors: Mapping[str, Tensor]
    processed: bool
    names: Mapping[str, str] = field(default_factory=dict)

    def refuse(self, name: str, problem: str, remedy: str = WHOLE) -> ModelFormatError:
        return ModelFormatError(self.path, printable(self.names.get(name, name)[:80]), problem, remedy)

    def take(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise self.refuse(name, "is missing")
        return self.tensors[name]

    def floats(self, name: str) -> NDArray[np.float32]:
        """A small tensor, as float32 [elements]."""
        tensor, dim = self.take(name), self.shape("emb.weight", 2)[1]
        if math.prod(tensor.shape) > len(MIXES["rwkv7"]) * dim:
            raise self.refuse(name, f"is of shape {list(tensor.shape)}, too large for a vector")
        if not isinstance(tensor, np.ndarray) and not name.endswith(".r_k"):  # which rwkv.cpp takes for a matrix
            raise self.refuse(name, "is quantised, as no vector is")
        return as_floats(tensor).astype(np.float32).reshape(-1)

    def shape(self, name: str, n_axes: int) -> tuple[int, ...]:
        """Of a tensor with so many axes beside those of length 1 in front."""
        shape = tuple(self.take(name).shape)
        while len(shape) > n_axes and shape[0] == 1:
            shape = shape[1:]
        if len(shape) != n_axes:
            raise self.refuse(name, f"is of shape {list(self.take(name).shape)}, not of {n_axes} axes")
        return shape

    def thin(self, name: str, part: slice = slice(None)) -> Tensor:
        """A thin matrix [out_features, in_features], or some of its rows; in floats, whatever the file has."""
        tensor, (rows, columns) = self.take(name), self.shape(name, 2)
        if self.processed and isinstance(tensor, np.ndarray):
            return tensor.reshape(rows, columns)[part]
        n_rows, width = (rows, columns) if self.processed else (columns, rows)
        shape = (len(range(*part.indices(n_rows))), width)
        dtype = tensor.dtype if isinstance(tensor, np.ndarray) else np.dtype(np.float32)

        def make() -> NDArray[Any]:
            whole = as_floats(tensor).reshape(rows, columns)
            return np.ascontiguousarray((whole if self.processed else whole.T)[part])

        n_bytes = tensor.nbytes * shape[0] // n_rows
        return Deferred(shape, n_bytes, dtype.name, make, shape[0] * width * dtype.itemsize)


def as_floats(tensor: Tensor) -> NDArray[Any]:
    """What is quantised as the floats that it stands for."""
    made = tensor.materialize() if isinstance(tensor, Deferred) else tensor
    return made.dequantize() if isinstance(made, AffineQuant) else np.asarray(made)


def rwkv_checkpoint(file: RwkvFile, format_name: str, tokenizer: TokenizerSpec | None = None) -> Checkpoint:
    """The checkpoint that these tensors are. Raises ModelFormatError."""
    version = version_of(file.tensors)
    if version is None:
        raise file.refuse("blocks.0.att.time_first", "is missing: this is no RWKV that is known")
    config = read_config(file, version)
    shapes = rwkv_shapes(config)
    made: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name in file.tensors:
        for own, tensor in tensors_of(file, version, name).items():
            if own not in shapes:
                raise file.refuse(name, f"is a tensor that no {version} of {config.n_layers} layers has")
            if own in made:
                raise file.refuse(name, f"is {file.names.get(origins[own], origins[own])} under another name")
            if tuple(tensor.shape) != shapes[own]:
                problem = f"of shape {list(file.take(name).shape)} makes {list(tensor.shape)}, not {list(shapes[own])}"
                raise file.refuse(name, problem)
            made[own], origins[own] = tensor, name
    for own in shapes:
        if own not in made:
            raise ModelFormatError(file.path, own, "is missing, under any name that RWKVs have for it", WHOLE)
    ordered = {own: made[own] for own in shapes}
    stop_tokens = () if config.vocab_size == BYTES else (END_OF_TEXT,)
    return Checkpoint(file.path, format_name, config, ordered, tokenizer, stop_tokens)


def read_config(file: RwkvFile, version: str) -> ModelConfig:
    vocab_size, dim = file.shape("emb.weight", 2)
    hidden_dim = file.shape("blocks.0.ffn.key.weight", 2)[0]
    n_layers = 0
    while f"blocks.{n_layers}.ln1.weight" in file.tensors:
        n_layers += 1
    n_heads, ranks = 1, list[int]()

    def rank(name: str) -> int:
        return file.shape(name, 2)[0 if file.processed else 1]

    if version in ("rwkv5.0", "rwkv5", "rwkv6"):
        n_heads = heads_of(file, "blocks.0.att.time_faaaa")
    if version == "rwkv6":
        ranks = [rank("blocks.0.att.time_maa_w1") // len(MAA), rank("blocks.0.att.time_decay_w1")]
    if version == "rwkv7":
        n_heads = file.shape("blocks.0.att.r_k", 2)[0]
        firsts = [f"blocks.{0 if x != 'v' else 1}.att.{x}1" for x in "wavg"]  # the first layer has no v that is used
        ranks = [rank(name) if name in file.tensors else 1 for name in firsts]
    values = {
        "architecture": version, "dim": dim, "hidden_dim": hidden_dim, "n_layers": n_layers, "n_heads": n_heads,
        "n_kv_heads": n_heads, "head_dim": dim // max(n_heads, 1), "vocab_size": vocab_size, "max_seq_len": CONTEXT,
        "norm_eps": 1e-5, "group_norm_eps": 64e-5, "ranks": ranks,
    }  # fmt: skip
    return ModelConfig.checked(file.path, values)


def heads_of(file: RwkvFile, name: str) -> int:
    """How many heads a tensor [heads, head_dim] has; rwkv.cpp adds an axis of 1 behind, and drops that of one head.

    RWKV-5.0 and 5.1 have no such tensor, but one decay for each head.
    """
    if name not in file.tensors and "blocks.0.att.time_first" in file.tensors:
        of_heads = file.floats("blocks.0.att.time_decay").size
        if of_heads != max(file.take("blocks.0.att.time_decay").shape, default=1):
            raise file.refuse("blocks.0.att.time_decay", "is not one number for each head, as in RWKV-5.0 and 5.1")
        return of_heads
    shape = tuple(file.take(name).shape)
    if file.processed and shape[-1:] == (1,):
        shape = shape[:-1]
    return shape[0] if len(shape) == 2 else 1


def tensors_of(file: RwkvFile, version: str, name: str) -> dict[str, Tensor]:
    """What a tensor of the file is under our names: usually one, none where no version uses it."""
    match = LAYER.fullmatch(name)
    if match is None:
        if name not in OUTER:
            raise file.refuse(name, "is a tensor that no RWKV has")
        return {OUTER[name]: matrix(file, name) if name in ("emb.weight", "head.weight") else file.floats(name)}
    layer, place, leaf = match.groups()
    if place == "att":
        parts = att_tensors(file, version, name, leaf, layer == "0")
    elif place == "ffn":
        parts = ffn_tensors(file, version, name, leaf)
    elif leaf in ("weight", "bias") and (place != "ln0" or layer == "0"):
        own = f"{NORMS[place]}.{leaf}"
        return {own if place == "ln0" else f"layers.{layer}.{own}": file.floats(name)}
    else:
        parts = {}
    if parts is None:
        return {}
    if not parts:
        raise file.refuse(name, "is a tensor that no RWKV has")
    return {f"layers.{layer}.{place}.{own}": tensor for own, tensor in parts.items()}


def matrix(file: RwkvFile, name: str) -> Tensor:
    """As it lies in the file."""
    tensor, shape = file.take(name), file.shape(name, 2)
    return tensor.reshape(shape) if isinstance(tensor, np.ndarray) else tensor


def att_tensors(file: RwkvFile, version: str, name: str, leaf: str, is_first: bool) -> dict[str, Tensor] | None:
    """None for what is there and never used, nothing for what is not known."""
    if MATRIX.fullmatch(leaf):
        return {leaf: matrix(file, name)}
    if version == "rwkv7":
        if is_first and leaf in ("v0", "v1", "v2"):
            return None  # files of training have them; the first layer's values are what others mix with
        if leaf == "x_rwkvag":
            return {f"x_{x}": row for x, row in zip(MIXES[version], rows_of(file, name, 6), strict=True)}
    if leaf in THIN:
        return {THIN[leaf]: file.thin(name)}
    if leaf == "time_first" and version in ("rwkv5.0", "rwkv5"):
        first = file.floats(name)
        return {"bonus": of_channels(file, first if file.processed else np.exp(first))}
    if leaf in SAME or leaf in RENAMED:
        return {RENAMED.get(leaf, leaf): file.floats(name)}
    if leaf in TIME_MIX:
        return {TIME_MIX[leaf]: 1 - file.floats(name)}
    if leaf == "time_decay":
        return {"w0" if version == "rwkv6" else "decay": decay(file, version, name)}
    if leaf == "time_maa_w1":
        return {f"maa_w1_{x}": part for x, part in zip(MAA, fifths_of_rows(file, name), strict=True)}
    if leaf == "time_maa_w2":
        return {f"maa_w2_{x}": part for x, part in zip(MAA, fifths(file, name), strict=True)}
    if leaf == "time_maa_wkvrg":
        return {f"x_{x}": row for x, row in zip(MAA, rows_of(file, name, 5), strict=True)}
    return {}


def ffn_tensors(file: RwkvFile, version: str, name: str, leaf: str) -> dict[str, Tensor]:
    if leaf == "x_k":
        return {leaf: file.floats(name)}
    if leaf in FFN:
        return {leaf: matrix(file, name)}
    if leaf in ("time_mix_k", "time_mix_r"):
        return {TIME_MIX[leaf]: 1 - file.floats(name)}
    return {RENAMED[leaf]: file.floats(name)} if leaf in ("time_maa_k", "time_maa_r") else {}


def decay(file: RwkvFile, version: str, name: str) -> NDArray[np.float32]:
    """Of RWKV-4 and 5 what the state decays by (see ``rwkv_shapes``); of RWKV-6 as it is."""
    raw = file.floats(name)
    if version == "rwkv6" or (file.processed and version == "rwkv4"):
        return raw
    if file.processed:
        return of_channels(file, raw)
    with np.errstate(over="ignore"):
        return -np.exp(raw) if version == "rwkv4" else of_channels(file, np.exp(-np.exp(raw)))


def of_channels(file: RwkvFile, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers of channels; those of heads (RWKV-5.0 and 5.1) are repeated for each channel of the head."""
    dim = file.shape("emb.weight", 2)[1]
    is_of_heads = "blocks.0.att.time_faaaa" not in file.tensors and dim % values.size == 0
    return np.repeat(values, dim // values.size) if is_of_heads else values


def rows_of(file: RwkvFile, name: str, n: int) -> list[NDArray[np.float32]]:
    """Vectors that are one tensor in the file."""
    values = file.floats(name)
    if values.size % n:
        raise file.refuse(name, f"is of shape {list(file.take(name).shape)}, not {n} vectors")
    return list(values.reshape(n, -1))


def fifths_of_rows(file: RwkvFile, name: str) -> list[Tensor]:
    """Five thin matrices, one above the other where it is processed, else side by side."""
    n_rows = file.shape(name, 2)[0 if file.processed else 1]
    rank = n_rows // len(MAA)
    if rank * len(MAA) != n_rows:
        raise file.refuse(name, f"is of shape {list(file.take(name).shape)}, not five thin matrices")
    return [file.thin(name, slice(i * rank, (i + 1) * rank)) for i in range(len(MAA))]


def fifths(file: RwkvFile, name: str) -> list[Tensor]:
    """Five thin matrices in one tensor [5, rank, dim], or [5, dim, rank] where it is processed."""
    tensor = file.take(name)
    n, a, b = file.shape(name, 3)
    if n != len(MAA) or not isinstance(tensor, np.ndarray):
        raise file.refuse(name, f"is of shape {list(tensor.shape)}, not five thin matrices")
    parts = tensor.reshape(n, a, b)
    return [np.ascontiguousarray(part if file.processed else part.T) for part in parts]
