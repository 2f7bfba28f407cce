"""A Hugging Face model: a folder with config.json and safetensors files, in one piece or in shards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor, llama_shapes
from llamagpu.config import ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats import huggingface_rwkv
from llamagpu.formats.huggingface_config import read_config
from llamagpu.formats.huggingface_files import weight_files
from llamagpu.formats.huggingface_quantized import SUFFIXES, Scheme, is_widened, quantized_matrix, read_scheme
from llamagpu.formats.huggingface_text import read_text_settings
from llamagpu.formats.json_file import read_json_object
from llamagpu.formats.safetensors_file import SafetensorsFile
from llamagpu.quantization import Deferred

CONFIG = "config.json"
OUTSIDE = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
OF_A_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
IGNORED = re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")  # computed anew
FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
OWN_CODE = "config.json names Python code of its own (auto_map), which is never run"
DAMAGED = "the file does not fit its own config: convert or download it again"
UNKNOWN = "this version cannot run the model as it is meant"


@dataclass(frozen=True)
class Part:
    """A tensor, its name in the file, and the file."""

    array: NDArray[Any]
    name: str
    path: Path


def sniff_folder(names: set[str]) -> bool:
    """Whether a folder with these names in it is a Hugging Face model; which one, config.json says."""
    return CONFIG in names


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a folder, or a safetensors file in it. Raises ModelFormatError."""
    folder = path if path.is_dir() else path.parent
    values = read_json_object(folder / CONFIG)
    if huggingface_rwkv.knows(values):
        return open_rwkv(path, folder, values)
    config, of_config = read_config(folder / CONFIG, values)
    scheme = read_scheme(folder, values)
    modules = read_modules(weight_files(folder, None if path.is_dir() else path.name))
    config = replace(
        config,
        out_bias=config.out_bias and any(has_bias(modules, ("attention.wo",))),
        ffn_bias=config.ffn_bias and any(has_bias(modules, ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"))),
    )
    notes = list(of_config)
    if config.tied_head and "weight" in modules.get("output", {}) and "tok_embeddings" not in modules:
        modules["tok_embeddings"] = modules.pop("output")  # one matrix, under either name
    if config.tied_head and "output" in modules:
        # As transformers 5 does; where the two matrices are equal, nothing is different but the memory.
        config = replace(config, tied_head=False)
        notes.append("config.json says that the head is tied, but lm_head.weight is there: it is used")
    if values.get("auto_map"):
        notes.append(OWN_CODE)
    tensors = read_tensors(folder, config, modules, scheme)
    if scheme and any(isinstance(tensor, Deferred) and is_widened(tensor, scheme) for tensor in tensors.values()):
        notes.append(f"matrices in groups of {scheme.group_size} (no multiple of 16) are widened to float32")
    text = read_text_settings(folder, values, config.vocab_size)
    kind = f"Hugging Face, {scheme.method.upper()}" if scheme else "Hugging Face"
    return Checkpoint(
        path, kind, config, tensors, text.tokenizer, text.stop_tokens, text.chat_template, text.sampling,
        (*notes, *text.notes),
    )  # fmt: skip


def open_rwkv(path: Path, folder: Path, values: dict[str, Any]) -> Checkpoint:
    files = weight_files(folder, None if path.is_dir() else path.name)
    model = huggingface_rwkv.read(folder, folder / CONFIG, values, files)
    text = read_text_settings(folder, values, model.config.vocab_size)
    return replace(
        model, path=path, tokenizer=text.tokenizer, stop_tokens=text.stop_tokens or model.stop_tokens,
        chat_template=text.chat_template, sampling=text.sampling,
        notes=(*model.notes, *([OWN_CODE] if values.get("auto_map") else []), *text.notes),
    )  # fmt: skip


def read_modules(files: dict[str, SafetensorsFile]) -> dict[str, dict[str, Part]]:
    """Tensors by the Meta name of their module and the last word of their own. Raises ModelFormatError."""
    modules: dict[str, dict[str, Part]] = {}
    for name, file in files.items():
        if IGNORED.fullmatch(name):
            continue
        module, _, kind = name.rpartition(".")
        meta = meta_name(module)
        if meta is None or kind not in ("weight", "bias", *SUFFIXES):
            raise ModelFormatError(file.path, name[:80], "is a tensor that this architecture does not have", UNKNOWN)
        modules.setdefault(meta, {})[kind] = Part(file.array(name), name, file.path)
    return modules


def has_bias(modules: dict[str, dict[str, Part]], names: tuple[str, ...]) -> Iterator[bool]:
    """Of each module of these names, whether it has a bias that is not all zeros, as if there were none."""
    return (
        bool(np.any(parts["bias"].array))
        for module, parts in modules.items()
        if module.endswith(names) and "bias" in parts
    )


def meta_name(module: str) -> str | None:
    """Such as layers.3.attention.wq for model.layers.3.self_attn.q_proj; None for what no Llama has."""
    found = re.fullmatch(r"model\.layers\.(0|[1-9][0-9]{0,3})\.([a-z_.]+)", module)
    if found is None:
        return OUTSIDE.get(module)
    inner = OF_A_LAYER.get(found[2])
    return f"layers.{found[1]}.{inner}" if inner else None


def their_name(tensor: str) -> str:
    """The way back, for messages: the name under which a tensor would be in the file."""
    module, _, kind = tensor.rpartition(".")
    outside = {meta: name for name, meta in OUTSIDE.items()}
    if module in outside:
        return f"{outside[module]}.{kind}"
    _, layer, inner = module.split(".", 2)
    in_layer = {meta: name for name, meta in OF_A_LAYER.items()}
    return f"model.layers.{layer}.{in_layer[inner]}.{kind}"


def read_tensors(
    folder: Path, config: ModelConfig, modules: dict[str, dict[str, Part]], scheme: Scheme | None
) -> dict[str, Tensor]:
    """Every tensor that the config asks for, in its shape, and no other. Raises ModelFormatError."""
    shapes = llama_shapes(config)
    tensors: dict[str, Tensor] = {}
    for module, parts in modules.items():
        if "qweight" in parts:
            tensors[f"{module}.weight"] = read_quantized(module, parts, shapes, scheme)
        for kind, part in parts.items():
            tensor = f"{module}.{kind}"
            if kind in SUFFIXES and "qweight" in parts:
                continue
            if kind == "bias" and tensor not in shapes and f"{module}.weight" in shapes:
                check_no_bias(part, shapes[f"{module}.weight"])
                continue
            if tensor not in shapes or tensor in tensors:
                problem = "is a tensor that this model should not have"
                raise ModelFormatError(part.path, part.name[:80], problem, UNKNOWN)
            if part.array.dtype not in FLOATS:
                raise ModelFormatError(part.path, part.name[:80], f"has type {part.array.dtype}", DAMAGED)
            if part.array.shape != shapes[tensor]:
                problem = f"has shape {list(part.array.shape)}, not {list(shapes[tensor])}"
                raise ModelFormatError(part.path, part.name[:80], problem, DAMAGED)
            tensors[tensor] = part.array
    for name in shapes:
        if name not in tensors:
            raise ModelFormatError(folder, their_name(name), "is missing", DAMAGED)
    return tensors


def read_quantized(
    module: str, parts: dict[str, Part], shapes: dict[str, tuple[int, ...]], scheme: Scheme | None
) -> Deferred:
    part = parts["qweight"]
    shape = shapes.get(f"{module}.weight", ())
    if len(shape) != 2:
        raise ModelFormatError(part.path, part.name, "is no matrix that this model should have", UNKNOWN)
    if module == "tok_embeddings":
        raise ModelFormatError(part.path, part.name, "is a quantised embedding, which GPTQ and AWQ have not", UNKNOWN)
    if scheme is None:
        problem = "is quantised, but config.json has no quantization_config"
        raise ModelFormatError(part.path, part.name, problem, "download config.json or quantize_config.json, too")
    arrays = {kind: its_part.array for kind, its_part in parts.items() if kind in SUFFIXES}
    return quantized_matrix(part.path, part.name.removesuffix(".qweight"), (shape[0], shape[1]), scheme, arrays)


def check_no_bias(part: Part, shape: tuple[int, ...]) -> None:
    """Early GPTQ exporters gave every matrix a bias of zeros, which changes nothing. Raises ModelFormatError."""
    if part.array.dtype not in FLOATS or part.array.shape != shape[:1] or len(shape) != 2:
        raise ModelFormatError(part.path, part.name, "is a tensor that this model should not have", UNKNOWN)
    if np.any(part.array):
        raise ModelFormatError(part.path, part.name, "is a bias, which this version does not have there", UNKNOWN)
