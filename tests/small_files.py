"""Small valid model and tokenizer files, made from a seed, written by code that shares nothing with the readers."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MAGIC = 0x616B3432


@dataclass(frozen=True)
class Shape:
    dim: int = 16
    hidden_dim: int = 24
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    vocab_size: int = 300
    max_seq_len: int = 32
    tied: bool = True

    @property
    def kv_dim(self) -> int:
        return self.dim * self.n_kv_heads // self.n_heads

    def header(self, vocab_size: int) -> bytes:
        return struct.pack(
            "<7i", self.dim, self.hidden_dim, self.n_layers, self.n_heads, self.n_kv_heads, vocab_size, self.max_seq_len
        )


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Floats]:
    """llama2.c's blocks by their llama2.c names, each float32 with the layers as first axis where it has layers."""
    rng = np.random.default_rng(seed)
    d, h, n, kv, v = shape.dim, shape.hidden_dim, shape.n_layers, shape.kv_dim, shape.vocab_size

    def matrix(*size: int) -> Floats:
        return np.asarray(rng.standard_normal(size) / np.sqrt(size[-1]), np.float32)

    def norm(*size: int) -> Floats:
        return np.asarray(1 + 0.1 * rng.standard_normal(size), np.float32)

    weights = {
        "tok_emb": matrix(v, d), "att_norm": norm(n, d), "wq": matrix(n, d, d), "wk": matrix(n, kv, d),
        "wv": matrix(n, kv, d), "wo": matrix(n, d, d), "ffn_norm": norm(n, d), "w1": matrix(n, h, d),
        "w2": matrix(n, d, h), "w3": matrix(n, h, d), "final_norm": norm(d),
    }  # fmt: skip
    if not shape.tied:
        weights["wcls"] = matrix(v, d)
    return weights


def v0_bytes(shape: Shape, weights: dict[str, Floats]) -> bytes:
    head_dim = shape.dim // shape.n_heads
    tables = np.zeros(shape.max_seq_len * head_dim, np.float32)
    order = ["tok_emb", "att_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "final_norm"]
    blocks = [*(weights[name] for name in order), tables]
    if not shape.tied:
        blocks.append(weights["wcls"])
    return shape.header(shape.vocab_size if shape.tied else -shape.vocab_size) + b"".join(b.tobytes() for b in blocks)


V1_ORDER = ["att_norm", "ffn_norm", "final_norm", "tok_emb", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]


def v1_bytes(shape: Shape, weights: dict[str, Floats]) -> bytes:
    header = struct.pack("<Ii", MAGIC, 1) + shape.header(shape.vocab_size) + bytes([shape.tied])
    order = V1_ORDER + ([] if shape.tied else ["wcls"])
    return header.ljust(256, b"\0") + b"".join(weights[name].tobytes() for name in order)


def q8_groups(flat: Floats, group_size: int) -> tuple[NDArray[np.int8], Floats]:
    groups = flat.reshape(-1, group_size)
    scales = np.maximum(np.abs(groups).max(axis=1), 1e-8) / np.float32(127)
    return np.rint(groups / scales[:, None]).astype(np.int8).reshape(-1), scales.astype(np.float32)


def q8_values(array: Floats, group_size: int) -> Floats:
    """What an array is after it went through Q8_0, group by group of its flattened elements, one layer at a time."""
    layers = array.reshape(-1, array.shape[-2] * array.shape[-1])
    out = np.empty_like(layers)
    for layer, values in zip(layers, out, strict=True):
        q, scales = q8_groups(layer, group_size)
        for i in range(q.size):  # by flat index, as slow and as plain as the definition
            values[i] = np.float32(q[i]) * scales[i // group_size]
    return out.reshape(array.shape)


def v2_bytes(shape: Shape, weights: dict[str, Floats], group_size: int) -> bytes:
    header = struct.pack("<Ii", MAGIC, 2) + shape.header(shape.vocab_size) + bytes([shape.tied])
    out = io.BytesIO()
    out.write((header + struct.pack("<i", group_size)).ljust(256, b"\0"))
    for name in V1_ORDER[:3]:
        out.write(weights[name].tobytes())
    for name in V1_ORDER[3:] + ([] if shape.tied else ["wcls"]):
        array = weights[name]
        for layer in array if array.ndim == 3 else [array]:
            q, scales = q8_groups(layer.reshape(-1), group_size)
            out.write(q.tobytes() + scales.tobytes())
    return out.getvalue()


PIECES = [" ", "a", "b", "c", "e", "n", "o", "t", "h", "th", "the", " the", "on", " on", "ab", "é", "猫", "🙂"]


def tokenizer_bin(vocab_size: int = 300, raw_byte_dialect: bool = False) -> bytes:
    """A tokenizer.bin: control tokens, bytes (as <0xXX>, or as the text of U+00XX), then PIECES and fillers."""
    entries: list[tuple[float, bytes]] = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")]
    entries += [(0.0, chr(byte).encode() if raw_byte_dialect else b"<0x%02X>" % byte) for byte in range(256)]
    pieces = PIECES[: vocab_size - 259]
    entries += [(-float(i), piece.encode()) for i, piece in enumerate(pieces)]
    entries += [(-1000.0 - i, f"<filler {i}>".encode()) for i in range(vocab_size - len(entries))]
    data = struct.pack("<I", max(len(piece) for _, piece in entries[259:] or entries))
    return data + b"".join(struct.pack("<fI", score, len(piece)) + piece for score, piece in entries)
