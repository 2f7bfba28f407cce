"""Small GGUF files of any version, written by code that shares nothing with the reader."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CODES = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "arr": 9,
         "u64": 10, "i64": 11, "f64": 12}  # fmt: skip
PACK = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?", "u64": "Q",
        "i64": "q", "f64": "d"}  # fmt: skip
# A value is (type, number or text), or ("arr", type of the elements, list of elements).
Keys = dict[str, tuple[Any, ...]]
# Where the float16 of a block are.
PLACES_OF_D = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


@dataclass
class Tensor:
    """shape: rows first. kind: the name of a ggml type, or its number. offset: None for its place in turn."""

    shape: tuple[int, ...]
    kind: str | int
    data: bytes
    offset: int | None = None


@dataclass
class File:
    """A GGUF file, ready to be damaged: counts that are not None stand in place of the true ones."""

    keys: Keys
    tensors: dict[str, Tensor]
    version: int = 3
    alignment: int = 32
    n_keys: int | None = None
    n_tensors: int | None = None
    marks: dict[str, int] = field(default_factory=dict)

    def count(self, n: int) -> bytes:
        return struct.pack("<I" if self.version == 1 else "<Q", n)

    def string(self, text: str | bytes) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        return self.count(len(data)) + data

    def value(self, kind: str, *rest: Any) -> bytes:
        if kind == "str":
            return self.string(rest[0])
        if kind == "arr":
            element, values = rest
            head = struct.pack("<I", CODES[element]) + self.count(len(values))
            return head + b"".join(self.value(element, *(v if element == "arr" else (v,))) for v in values)
        return struct.pack("<" + PACK[kind], rest[0])

    def to_bytes(self) -> bytes:
        out = b"GGUF" + struct.pack("<I", self.version)
        out += self.count(len(self.tensors) if self.n_tensors is None else self.n_tensors)
        out += self.count(len(self.keys) if self.n_keys is None else self.n_keys)
        self.marks["counts"] = len(out)
        for key, value in self.keys.items():
            out += self.string(key) + struct.pack("<I", CODES[value[0]]) + self.value(*value)
        self.marks["keys"] = len(out)
        at = 0
        data = b""
        for name, tensor in self.tensors.items():
            code = tensor.kind if isinstance(tensor.kind, int) else gguf.GGMLQuantizationType[tensor.kind].value
            out += self.string(name) + struct.pack("<I", len(tensor.shape))
            out += b"".join(self.count(n) for n in reversed(tensor.shape))
            out += struct.pack("<IQ", code, at if tensor.offset is None else tensor.offset)
            data += tensor.data + bytes(-len(tensor.data) % self.alignment)
            at = len(data)
        self.marks["tensors"] = len(out)
        out += bytes(-len(out) % self.alignment)
        self.marks["data"] = len(out)
        return out + data


@dataclass(frozen=True)
class Shape:
    """Sizes for the block types of 256 weights; head_dim is not dim / n_heads."""

    dim: int = 256
    hidden_dim: int = 512
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    vocab_size: int = 300
    max_seq_len: int = 64


def random_blocks(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Any bytes, but for scales that make weights of about 1 / sqrt(row)."""
    quant = gguf.GGMLQuantizationType[kind]
    n_weights, n_bytes = gguf.GGML_QUANT_SIZES[quant]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // n_weights, n_bytes), np.uint8)
    largest = {"Q2_K": 45, "Q3_K": 128, "Q4_K": 945, "Q5_K": 1953, "Q6_K": 4096}[kind]
    for at in PLACES_OF_D[kind]:
        d = (rng.standard_normal(blocks.shape[:2]) * 3 / largest / np.sqrt(shape[1])).astype("<f2")
        blocks[:, :, at : at + 2] = d[:, :, None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def stored(weights: Floats, kind: str, rng: np.random.Generator) -> tuple[Tensor, Floats]:
    """A tensor as a file holds it, and what the gguf package says that it then is."""
    if kind in PLACES_OF_D:
        raw = random_blocks(weights.shape, kind, rng)
    else:
        raw = quantize(weights, gguf.GGMLQuantizationType[kind])
    values = dequantize(raw, gguf.GGMLQuantizationType[kind]).reshape(weights.shape)
    return Tensor(weights.shape, kind, raw.tobytes()), values


def small_model(
    arch: str = "llama", kind: str | list[str] = "F32", shape: Shape = Shape(), tied: bool = False, seed: int = 0
) -> tuple[File, dict[str, Floats]]:
    """A file and its weights by Meta's names, each layer's own. kind: of matrices; of several, each in turn."""
    rng = np.random.default_rng(seed)
    kinds = [kind] if isinstance(kind, str) else kind
    q_dim, kv_dim = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": ("tok_embeddings.weight", (shape.vocab_size, shape.dim))
    }
    for i in range(shape.n_layers):
        for name, meta, size in [
            ("attn_norm.weight", "attention_norm.weight", (shape.dim,)),
            ("attn_q.weight", "attention.wq.weight", (q_dim, shape.dim)),
            ("attn_k.weight", "attention.wk.weight", (kv_dim, shape.dim)),
            ("attn_v.weight", "attention.wv.weight", (kv_dim, shape.dim)),
            ("attn_output.weight", "attention.wo.weight", (shape.dim, q_dim)),
            ("ffn_norm.weight", "ffn_norm.weight", (shape.dim,)),
            ("ffn_gate.weight", "feed_forward.w1.weight", (shape.hidden_dim, shape.dim)),
            ("ffn_down.weight", "feed_forward.w2.weight", (shape.dim, shape.hidden_dim)),
            ("ffn_up.weight", "feed_forward.w3.weight", (shape.hidden_dim, shape.dim)),
        ]:
            sizes[f"blk.{i}.{name}"] = (f"layers.{i}.{meta}", size)
        if arch == "qwen2":
            for letter, width in (("q", q_dim), ("k", kv_dim), ("v", kv_dim)):
                sizes[f"blk.{i}.attn_{letter}.bias"] = (f"layers.{i}.attention.w{letter}.bias", (width,))
        if arch == "qwen3":
            for letter in "qk":
                meta = f"layers.{i}.attention.{letter}_norm.weight"
                sizes[f"blk.{i}.attn_{letter}_norm.weight"] = (meta, (shape.head_dim,))
    sizes["output_norm.weight"] = ("norm.weight", (shape.dim,))
    if not tied:
        sizes["output.weight"] = ("output.weight", (shape.vocab_size, shape.dim))
    tensors: dict[str, Tensor] = {}
    weights: dict[str, Floats] = {}
    n_matrices = 0
    for name, (meta, size) in sizes.items():
        if len(size) == 1:
            values = (0.2 * rng.standard_normal(size) + (0 if name.endswith("bias") else 1)).astype(np.float32)
            tensors[name], weights[meta] = Tensor(size, "F32", values.tobytes()), values
            continue
        values = (rng.standard_normal(size) / np.sqrt(size[-1])).astype(np.float32)
        if meta.endswith(("wq.weight", "wk.weight")):
            values *= 3  # so that attention is not flat, and a wrong RoPE shows
        own = kinds[n_matrices % len(kinds)]
        fits = size[1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[own]][0] == 0
        tensors[name], weights[meta] = stored(values, own if fits else "Q8_0", rng)
        n_matrices += 1
    keys: Keys = {
        "general.architecture": ("str", arch),
        "general.name": ("str", "a small one"),
        f"{arch}.context_length": ("u32", shape.max_seq_len),
        f"{arch}.embedding_length": ("u32", shape.dim),
        f"{arch}.block_count": ("u32", shape.n_layers),
        f"{arch}.feed_forward_length": ("u32", shape.hidden_dim),
        f"{arch}.attention.head_count": ("u32", shape.n_heads),
        f"{arch}.attention.head_count_kv": ("u32", shape.n_kv_heads),
        f"{arch}.attention.key_length": ("u32", shape.head_dim),
        f"{arch}.attention.value_length": ("u32", shape.head_dim),
        f"{arch}.attention.layer_norm_rms_epsilon": ("f32", 1e-6),
        f"{arch}.rope.freq_base": ("f32", 5000.0),
        f"{arch}.rope.dimension_count": ("u32", shape.head_dim),
    }
    return File(keys, tensors), weights


def spm_keys(pieces: list[bytes], scores: list[float], types: list[int]) -> Keys:
    """A vocabulary of SentencePiece's."""
    return {
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.tokens": ("arr", "str", pieces),
        "tokenizer.ggml.scores": ("arr", "f32", scores),
        "tokenizer.ggml.token_type": ("arr", "i32", types),
        "tokenizer.ggml.bos_token_id": ("u32", 1),
        "tokenizer.ggml.eos_token_id": ("u32", 2),
    }


def small_vocabulary(size: int = 300) -> Keys:
    """Control tokens, bytes, some pieces, and fillers."""
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [text.encode() for text in ["\u2581", "a", "b", "t", "h", "e", "th", "\u2581the", "\u2581th", "猫"]]
    pieces += [b"filler%d" % i for i in range(size - len(pieces))]
    types = [2, 3, 3, *[6] * 256, *[1] * (size - 259)]
    return spm_keys(pieces, [-float(i) for i in range(size)], types)
