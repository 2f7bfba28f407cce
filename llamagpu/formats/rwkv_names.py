"""An RWKV from the tensors of RWKV's own files (.pth), or of rwkv.cpp's, which have the same names.

The version is told by the names, the shape by the tensors: no file says either. What is small is put into our form
here; matrices stay where they are, or are transposed when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec, check_tensors
from llamagpu.config import LARGEST, ModelConfig
from llamagpu.errors import ModelFormatError, printable
from llamagpu.quantization import Deferred
from llamagpu.rwkv_shapes import MIXES, rwkv_shapes

WHOLE = "give a whole RWKV-4, 5.2, 6 or 7"
CONTEXT = 4096  # what they are trained with; their texts have no end all the same
LAYER = re.compile(r"blocks\.(0|[1-9]\d{0,3})\.(.+)")
OUTER = {"emb.weight": "tok_embeddings.weight", "head.weight": "output.weight"}
NORMS = {"ln_out": "norm", "ln0": "embedding_norm", "ln1": "attention_norm", "ln2": "ffn_norm"}
MAA = "wkvrg"  # the order of RWKV-6's time_maa_w1 and w2


def version_of(names: Mapping[str, Any]) -> str | None:
    """The architecture that tensors of these names are of."""
    if "blocks.0.att.r_k" in names:
        return "rwkv7"
    if "blocks.0.att.time_maa_x" in names:
        return "rwkv6"
    if "blocks.0.att.gate.weight" in names:
        return "rwkv5"
    if "blocks.0.att.time_first" in names and "blocks.0.att.ln_x.weight" not in names:
        return "rwkv4"
    return None


@dataclass(frozen=True)
class RwkvFile:
    """tensors: by their names in the file. processed: as rwkv.cpp has them, the thin matrices transposed and the decays
    of RWKV-4 and 5 worked out."""

    path: Path
    tensors: Mapping[str, Tensor]
    processed: bool

    def refuse(self, name: str, problem: str, remedy: str = WHOLE) -> ModelFormatError:
        return ModelFormatError(self.path, printable(name[:80]), problem, remedy)

    def take(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise self.refuse(name, "is missing")
        return self.tensors[name]

    def floats(self, name: str) -> NDArray[np.float32]:
        """A small tensor, as float32."""
        tensor = self.take(name)
        if not isinstance(tensor, np.ndarray) or tensor.size > 8 * LARGEST["dim"]:
            raise self.refuse(name, f"is of shape {list(tensor.shape)}, too large for a vector")
        return tensor.astype(np.float32)

    def shape(self, name: str, n_axes: int) -> tuple[int, ...]:
        """Of a tensor with so many axes beside those of length 1 in front."""
        shape = tuple(self.take(name).shape)
        while len(shape) > n_axes and shape[0] == 1:
            shape = shape[1:]
        if len(shape) != n_axes:
            raise self.refuse(name, f"is of shape {list(self.take(name).shape)}, not of {n_axes} axes")
        return shape


def rwkv_checkpoint(
    path: Path, format_name: str, tensors: Mapping[str, Tensor], tokenizer: TokenizerSpec | None, processed: bool
) -> Checkpoint:
    """The checkpoint of such tensors: see ``RwkvFile``. Raises ModelFormatError."""
    file = RwkvFile(path, tensors, processed)
    version = version_of(tensors)
    if version is None:
        old = "blocks.0.att.ln_x.weight" in tensors
        problem = "is missing: this is an RWKV-5.0 or 5.1" if old else "is missing: this is no RWKV that is known"
        raise file.refuse("blocks.0.att.gate.weight" if old else "blocks.0.att.time_first", problem)
    config = read_config(file, version)
    made: dict[str, Tensor] = {}
    for name in tensors:
        match = LAYER.fullmatch(name)
        if match is None:
            base, _, kind = name.rpartition(".")
            own = OUTER.get(name) or (f"{NORMS[base]}.{kind}" if base == "ln_out" else None)
            if own is None:
                raise file.refuse(name, "is a tensor that no RWKV has")
            made[own] = in_shape(file, name)
            continue
        layer, rest = match.groups()
        if int(layer) >= config.n_layers:
            raise file.refuse(name, f"is of a layer past the {config.n_layers} that are whole")
        if rest.startswith("att."):
            parts = att_tensors(file, version, name, rest.removeprefix("att."), layer == "0")
            made |= {f"layers.{layer}.att.{own}": tensor for own, tensor in parts.items()}
        elif rest.startswith("ffn."):
            made[f"layers.{layer}.ffn.{ffn_name(rest.removeprefix('ffn.'))}"] = of_ffn(file, name)
        else:
            base, _, kind = rest.rpartition(".")
            if base not in NORMS or (base == "ln0" and layer != "0"):
                raise file.refuse(name, "is a tensor that no RWKV has")
            own = f"{NORMS[base]}.{kind}"
            made[own if base == "ln0" else f"layers.{layer}.{own}"] = file.floats(name).reshape(-1)
    check_tensors(path, config, made)
    ordered = {name: made[name] for name in rwkv_shapes(config)}
    return Checkpoint(path, format_name, config, ordered, tokenizer)


def read_config(file: RwkvFile, version: str) -> ModelConfig:
    vocab_size, dim = file.shape("emb.weight", 2)
    hidden_dim = file.shape("blocks.0.ffn.key.weight", 2)[0]
    n_layers = 0
    while f"blocks.{n_layers}.ln1.weight" in file.tensors:
        n_layers += 1
    n_heads, ranks = 1, list[int]()

    def rank(name: str) -> int:
        return file.shape(name, 2)[0 if file.processed else 1]

    if version in ("rwkv5", "rwkv6"):
        n_heads = squeezed(tuple(file.take("blocks.0.att.time_faaaa").shape))[0]
    if version == "rwkv6":
        ranks = [rank("blocks.0.att.time_maa_w1") // len(MAA), rank("blocks.0.att.time_decay_w1")]
    if version == "rwkv7":
        n_heads = file.shape("blocks.0.att.r_k", 2)[0]
        second = "blocks.1.att.v1"  # the first layer has none that is used
        ranks = [
            rank(name) if name in file.tensors else 1
            for name in ("blocks.0.att.w1", "blocks.0.att.a1", second, "blocks.0.att.g1")
        ]
    values = {
        "architecture": version, "dim": dim, "hidden_dim": hidden_dim, "n_layers": n_layers, "n_heads": n_heads,
        "n_kv_heads": n_heads, "head_dim": dim // max(n_heads, 1), "vocab_size": vocab_size, "max_seq_len": CONTEXT,
        "norm_eps": 1e-5, "group_norm_eps": 64e-5, "ranks": ranks,
    }  # fmt: skip
    return ModelConfig.checked(file.path, values)


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1) or (1,)


def in_shape(file: RwkvFile, name: str) -> Tensor:
    """A matrix as it is; a vector as float32 [dim]."""
    tensor = file.take(name)
    return tensor if len(squeezed(tuple(tensor.shape))) == 2 else file.floats(name).reshape(-1)


def transposed(file: RwkvFile, name: str, columns: slice | None = None) -> Tensor:
    """A thin matrix [out_features, in_features], of a file that has x @ matrix; columns: of the file's."""
    tensor = file.take(name)
    rows, width = file.shape(name, 2)
    if not isinstance(tensor, np.ndarray):
        raise file.refuse(name, "is quantised, as no thin matrix is")
    part = tensor.reshape(rows, width)
    if file.processed:
        return part if columns is None else part[columns]
    part = part.T if columns is None else part.T[columns]
    shape = (part.shape[0], part.shape[1])
    return Deferred(shape, part.nbytes, part.dtype.name, lambda: np.ascontiguousarray(part))


def att_tensors(file: RwkvFile, version: str, name: str, leaf: str, is_first: bool) -> dict[str, Tensor]:
    """What a tensor of a time mix is under our names: usually one, none where it is not used."""
    if version == "rwkv7":
        return att_of_7(file, name, leaf, is_first)
    if leaf.startswith("time_mix_"):
        return {f"x_{leaf.removeprefix('time_mix_')}": 1 - file.floats(name).reshape(-1)}
    if leaf in ("time_first", "time_faaaa"):
        return {"bonus": file.floats(name).reshape(-1)}
    if leaf == "time_decay":
        return {"w0" if version == "rwkv6" else "decay": decay(file, version, name)}
    if version == "rwkv6":
        if leaf in ("time_decay_w1", "time_decay_w2"):
            return {leaf.removeprefix("time_decay_"): transposed(file, name)}
        if leaf == "time_maa_w1":
            return {f"maa_w1_{x}": part for x, part in zip(MAA, fifths_of_rows(file, name), strict=True)}
        if leaf == "time_maa_w2":
            return {f"maa_w2_{x}": part for x, part in zip(MAA, fifths(file, name), strict=True)}
        if leaf.startswith("time_maa_"):
            return {f"x_{leaf.removeprefix('time_maa_')}": file.floats(name).reshape(-1)}
    return {leaf: in_shape(file, name)}


def decay(file: RwkvFile, version: str, name: str) -> NDArray[np.float32]:
    """Of RWKV-4 and 5 what the state decays by (see ``rwkv_shapes``); of RWKV-6 as it is."""
    raw = file.floats(name).reshape(-1)
    if file.processed or version == "rwkv6":
        return raw
    with np.errstate(over="ignore"):
        return -np.exp(raw) if version == "rwkv4" else np.exp(-np.exp(raw))


def fifths_of_rows(file: RwkvFile, name: str) -> list[Tensor]:
    n_columns = file.shape(name, 2)[0 if file.processed else 1]
    rank = n_columns // len(MAA)
    return [transposed(file, name, slice(i * rank, (i + 1) * rank)) for i in range(len(MAA))]


def fifths(file: RwkvFile, name: str) -> list[Tensor]:
    """Five thin matrices in one tensor [5, rank, dim], or [5, dim, rank] where it is processed."""
    tensor = file.take(name)
    n, a, b = file.shape(name, 3)
    if n != len(MAA) or not isinstance(tensor, np.ndarray):
        raise file.refuse(name, f"is of shape {list(tensor.shape)}, not five thin matrices")
    parts = tensor.reshape(n, a, b)
    return [np.ascontiguousarray(part if file.processed else part.T) for part in parts]


def att_of_7(file: RwkvFile, name: str, leaf: str, is_first: bool) -> dict[str, Tensor]:
    if leaf == "x_rwkvag":
        mixes = file.floats(name)
        if mixes.size % len(MIXES["rwkv7"]):
            raise file.refuse(name, f"is of shape {list(mixes.shape)}, not six vectors")
        return {f"x_{x}": row for x, row in zip(MIXES["rwkv7"], mixes.reshape(6, -1), strict=True)}
    if is_first and leaf in ("v0", "v1", "v2"):
        return {}  # files of training have them; the first layer's values are what others mix with
    if leaf in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"):
        return {leaf: transposed(file, name)}
    if leaf == "r_k":
        return {leaf: file.floats(name).reshape(-1)}
    return {leaf: in_shape(file, name)}


def ffn_name(leaf: str) -> str:
    return re.sub("^time_(mix|maa)_", "x_", leaf)


def of_ffn(file: RwkvFile, name: str) -> Tensor:
    return 1 - file.floats(name).reshape(-1) if ".time_mix_" in name else in_shape(file, name)
