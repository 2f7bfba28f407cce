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
from llamagpu.micro_rwkv_shapes import has_idle_experts, micro_rwkv_shapes
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix, RandomMatrix
from llamagpu.rwkv_shapes import rwkv_shapes
from llamagpu.watched_file import WatchedFile

ORIGIN_MEMORY = "origin_mem"  # the last part of a name, without .weight

# Arrays are float32, float16 or bfloat16 (ml_dtypes).
Tensor = NDArray[Any] | Int8Matrix | AffineQuant | RandomMatrix | Deferred


@dataclass(frozen=True)
class AddedToken:
    """A token beside a trained vocabulary. special: it is a control token; others are text that is cut out of a text
    before all else; None: its file does not say. lstrip, rstrip: it takes the spaces before it, or after it, along."""

    text: str
    special: bool | None = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenFacts:
    """What the files around a tokenizer say of its special tokens; tokenizers/special_tokens.py decides what follows.

    names: texts by the names that chat templates have for them, such as bos_token; None where a file says that there
    is none. more: control tokens without a name. ids: tokens by the same names, of files that give ids. added: tokens
    beside the trained vocabulary, by id. add_bos, add_eos: whether a plain text begins, or ends, with them; None where
    no file says so. legacy: whether a SentencePiece text begins anew, with a space, after each control token.
    """

    names: Mapping[str, str | None] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    tokenizer_class: str = ""
    legacy: bool | None = None


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer as a file holds it. kind: a name of llamagpu/tokenizers/__init__.py, such as "sentencepiece".

    facts: of the files around it; None where there are none.
    """

    kind: str
    data: bytes
    facts: TokenFacts | None = None


@dataclass(frozen=True)
class Quirks:
    """What the program that a format comes from does beside or against the mathematics of its models.

    An ordinary run ignores it; a faithful one reproduces it, on the CPU, for comparison with that program.

    system: the program. activation_bits: 8 or 4, where what a matrix is multiplied with is first rounded to as many
    bits, in groups of activation_group. rope_layout: how it turns heads, where the model was not trained so.
    greedy_tokenizer: it takes the longest piece that fits, and not those that merging leaves. ends: the tokens that end
    a text that it continues (of a chat, EOS ends an answer anyway); None: as here. sampler_order: that of
    SamplingParams; empty: as here. no_penalty: its repetition penalty does nothing, by mistakes that also make token
    0's logit a 0.
    """

    system: str = ""
    activation_bits: Literal[0, 4, 8] = 0
    activation_group: int = 0
    repeats_last_prompt_token: bool = False
    adds_bos: bool = True
    rope_layout: RopeLayout | None = None
    greedy_tokenizer: bool = False
    ends: tuple[Literal["bos", "eos"], ...] | None = None
    sampler_order: str = ""
    no_penalty: bool = False

    @property
    def description(self) -> str:
        """For people, in one line; empty where there are none."""
        return self.described()

    def described(self, *names: str) -> str:
        """The same of some fields alone, where names are given."""
        named = " and ".join(name.upper() for name in self.ends or ())
        texts = {
            "activation_bits": self.activation_bits and f"activations in {self.activation_bits} bits",
            "repeats_last_prompt_token": self.repeats_last_prompt_token and "last prompt token twice",
            "adds_bos": not self.adds_bos and "no start token",
            "rope_layout": self.rope_layout and f"RoPE {self.rope_layout}",
            "greedy_tokenizer": self.greedy_tokenizer and "greedy tokenizer",
            "ends": self.ends is not None and (f"{named} alone ends a text" if named else "no token ends a text"),
            "sampler_order": self.sampler_order and f"sampler order {self.sampler_order}",
            "no_penalty": self.no_penalty and "no repetition penalty, and 0 for the logit of token 0",
        }
        return ", ".join(text for name, text in texts.items() if text and (not names or name in names))


@dataclass(frozen=True)
class Checkpoint:
    """Config, tokenizer and named tensors of one model.

    Tensors are views into the memory-mapped file, or ``Deferred``: opening copies nothing. Their names are Meta's:
    tok_embeddings.weight, norm.weight, output.weight (absent where the head is tied), and for each layer
    layers.{i}.{attention_norm, attention.wq, .wk, .wv, .wo, ffn_norm, feed_forward.w1, .w2, .w3}.weight, and where the
    config says so attention.{wq, wk, wv, wo}.bias, feed_forward.{w1, w2, w3}.bias, attention.{q_norm, k_norm}.weight;
    matrices are [out_features, in_features]. Of a memory_llama also those of ``memory_shapes``; RWKVs have their own.

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
        if config.out_bias:
            shapes[f"{layer}.attention.wo.bias"] = (dim,)
        shapes[f"{layer}.ffn_norm.weight"] = (dim,)
        shapes[f"{layer}.feed_forward.w1.weight"] = (hidden, dim)
        shapes[f"{layer}.feed_forward.w2.weight"] = (dim, hidden)
        shapes[f"{layer}.feed_forward.w3.weight"] = (hidden, dim)
        if config.ffn_bias:
            shapes |= {f"{layer}.feed_forward.w{part}.bias": (dim if part == 2 else hidden,) for part in (1, 2, 3)}
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
    if config.architecture == MICRO_RWKV and not has_idle_experts(config, tensors):
        shapes = micro_rwkv_shapes(config, idle_experts=False)
    for name, shape in shapes.items():
        if name not in tensors:
            raise ModelFormatError(path, name, "is missing", remedy)
        if tuple(tensors[name].shape) != shape:
            raise ModelFormatError(path, name, f"has shape {list(tensors[name].shape)}, not {list(shape)}", remedy)
    for name in tensors:
        if name not in shapes:
            raise ModelFormatError(path, name[:80], "is a tensor that this architecture does not have", remedy)
