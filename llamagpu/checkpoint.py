"""Checkpoint: what every reader returns and all that a model needs from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamagpu.config import MICRO_RWKV, ModelConfig, RopeLayout
from llamagpu.errors import ModelFormatError
from llamagpu.micro_rwkv_shapes import micro_rwkv_shapes
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix, RandomMatrix
from llamagpu.rwkv_shapes import rwkv_shapes
from llamagpu.watched_file import WatchedFile

ORIGIN_MEMORY = "origin_mem"  # the last part of a name, without .weight

# Arrays are float32, float16 or bfloat16 (ml_dtypes).
Tensor = NDArray[Any] | Int8Matrix | AffineQuant | RandomMatrix | Deferred


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer as a file holds it. kind: a name of llamagpu/tokenizers/__init__.py, such as "sentencepiece"."""

    kind: str
    data: bytes


@dataclass(frozen=True)
class Quirks:
    """What the program that a format comes from does beside or against the mathematics of its models.

    An ordinary run ignores it; a faithful one reproduces it, on the CPU, for comparison with that program.

    system: the program. activation_bits: 8 or 4, where what a matrix is multiplied with is first rounded to as many
    bits, in groups of activation_group. rope_layout: how it turns heads, where the model was not trained so.
    greedy_tokenizer: it takes the longest piece that fits, and not those that merging leaves.
    """

    system: str = ""
    activation_bits: Literal[0, 4, 8] = 0
    activation_group: int = 0
    repeats_last_prompt_token: bool = False
    adds_bos: bool = True
    rope_layout: RopeLayout | None = None
    greedy_tokenizer: bool = False

    @property
    def description(self) -> str:
        """For people, in one line; empty where there are none."""
        parts = [
            (self.activation_bits, f"activations in {self.activation_bits} bits"),
            (self.repeats_last_prompt_token, "last prompt token twice"),
            (not self.adds_bos, "no start token"),
            (self.rope_layout, f"RoPE {self.rope_layout}"),
            (self.greedy_tokenizer, "greedy tokenizer"),
        ]
        return ", ".join(text for there, text in parts if there)


@dataclass(frozen=True)
class Checkpoint:
    """Config, tokenizer and named tensors of one model.

    Tensors are views into the memory-mapped file, or ``Deferred``: opening copies nothing. Their names are Meta's:
    tok_embeddings.weight, norm.weight, output.weight (absent where the head is tied), and for each layer
    layers.{i}.{attention_norm, attention.wq, .wk, .wv, .wo, ffn_norm, feed_forward.w1, .w2, .w3}.weight, and where the
    config says so attention.{wq, wk, wv}.bias and attention.{q_norm, k_norm}.weight; matrices are
    [out_features, in_features]. Of a memory_llama also those of ``memory_shapes``; RWKVs have their own.

    stop_tokens: ids that end a text, beside the tokenizer's own. chat_template: Jinja text. sampling: what the model's
    makers suggest, by the names of SamplingParams. notes: one line each, what a user should be told of this file.
    quirks: of the program that it comes from. files: those that tensors are views of.
    """

    path: Path
    format: str
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    tokenizer: TokenizerSpec | None = None
    stop_tokens: tuple[int, ...] = ()
    chat_template: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    quirks: Quirks = Quirks()
    files: tuple[WatchedFile, ...] = ()

    def check_unchanged(self) -> None:
        """Raises ModelChangedError where one of the files is not as it was when it was opened. Takes microseconds."""
        for file in self.files:
            file.check()

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def n_parameters(self) -> int:
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())


def llama_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Llama of this shape, in the order in which a forward pass reads them."""
    dim, hidden = config.dim, config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (config.vocab_size, dim)}
    for i in range(config.n_layers):
        layer = f"layers.{i}"
        shapes[f"{layer}.attention_norm.weight"] = (dim,)
        shapes[f"{layer}.attention.wq.weight"] = (config.q_dim, dim)
        shapes[f"{layer}.attention.wk.weight"] = (config.kv_dim, dim)
        shapes[f"{layer}.attention.wv.weight"] = (config.kv_dim, dim)
        if config.qkv_bias:
            shapes[f"{layer}.attention.wq.bias"] = (config.q_dim,)
            shapes[f"{layer}.attention.wk.bias"] = (config.kv_dim,)
            shapes[f"{layer}.attention.wv.bias"] = (config.kv_dim,)
        if config.qk_norm:
            shapes[f"{layer}.attention.q_norm.weight"] = (config.head_dim,)
            shapes[f"{layer}.attention.k_norm.weight"] = (config.head_dim,)
        shapes[f"{layer}.attention.wo.weight"] = (dim, config.q_dim)
        shapes[f"{layer}.ffn_norm.weight"] = (dim,)
        shapes[f"{layer}.feed_forward.w1.weight"] = (hidden, dim)
        shapes[f"{layer}.feed_forward.w2.weight"] = (dim, hidden)
        shapes[f"{layer}.feed_forward.w3.weight"] = (hidden, dim)
    shapes["norm.weight"] = (dim,)
    if not config.tied_head:
        shapes["output.weight"] = (config.vocab_size, dim)
    return shapes


def memory_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What the attention of a memory_llama has beside that of a Llama: the norm and the feed-forward that the rows of
    its memory go through, the norm before they become keys and values, and the memory of an empty sequence."""
    dim, hidden = config.dim, config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.n_layers):
        attention = f"layers.{i}.attention"
        shapes[f"{attention}.{ORIGIN_MEMORY}"] = (config.mem_len, dim)
        shapes[f"{attention}.ffn_norm.weight"] = (dim,)
        shapes[f"{attention}.feed_forward.w1.weight"] = (hidden, dim)
        shapes[f"{attention}.feed_forward.w2.weight"] = (dim, hidden)
        shapes[f"{attention}.feed_forward.w3.weight"] = (hidden, dim)
        shapes[f"{attention}.memory_norm.weight"] = (dim,)
    return shapes


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model of this config."""
    if config.recurrent:
        return rwkv_shapes(config)
    if config.architecture == MICRO_RWKV:
        return micro_rwkv_shapes(config)
    return llama_shapes(config) | (memory_shapes(config) if config.mem_len else {})


def check_tensors(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor that the config asks for is there, in its shape, and no other. Raises ModelFormatError."""
    remedy = "the file does not fit its own config: convert or download it again"
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        if name not in tensors:
            raise ModelFormatError(path, name, "is missing", remedy)
        if tuple(tensors[name].shape) != shape:
            raise ModelFormatError(path, name, f"has shape {list(tensors[name].shape)}, not {list(shape)}", remedy)
    for name in tensors:
        if name not in shapes:
            raise ModelFormatError(path, name[:80], "is a tensor that this architecture does not have", remedy)
