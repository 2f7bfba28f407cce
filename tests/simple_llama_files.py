"""Small simple-llama files made from a seed, and what their numbers mean. Shares no code with the reader."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.small_files import Floats, Shape, random_weights

MAGIC = 0x7FDD7F7F
GROUP = 128
FLOAT_ORDER = ["final_norm", "tok_emb", "wcls", "att_norm", "ffn_norm", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]
MATRICES = ["tok_emb", "wcls", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]
SHAPE = Shape(dim=128, hidden_dim=256, n_layers=2, n_heads=4, n_kv_heads=4, vocab_size=300, max_seq_len=32, tied=False)


@dataclass(frozen=True)
class Rounded:
    """Whole numbers [..., out, in] and the scale of every 128 of them, one after the other."""

    q: NDArray[np.int64]
    scales: Floats

    def values(self) -> Floats:
        numbers = self.q.reshape(-1, GROUP).astype(np.float32) * self.scales[:, None]
        return numbers.reshape(self.q.shape)


def rounded(array: Floats, bits: int) -> Rounded:
    """Group by group: scale = largest / 127 (or 7), halves rounded away from zero."""
    largest = 127 if bits == 8 else 7
    q, scales = np.empty(array.size, np.int64), np.empty(array.size // GROUP, np.float32)
    flat = array.reshape(-1)
    for g in range(scales.size):
        group = flat[g * GROUP : (g + 1) * GROUP]
        scales[g] = np.abs(group).max() / np.float32(largest)
        for i, value in enumerate(group / scales[g]):
            q[g * GROUP + i] = math.copysign(math.floor(abs(float(value)) + 0.5), value)
    return Rounded(q.reshape(array.shape), scales)


def header(version: int, shape: Shape, *rest: int) -> bytes:
    sizes = (shape.dim, shape.hidden_dim, shape.n_heads, shape.n_layers, shape.vocab_size, shape.max_seq_len)
    return struct.pack(f"<I{7 + len(rest)}i", MAGIC, version, *sizes, *rest).ljust(256, b"\0")


def float_bytes(shape: Shape, weights: dict[str, Floats]) -> bytes:
    return header(3, shape) + b"".join(weights[name].tobytes() for name in FLOAT_ORDER)


def quantized_bytes(shape: Shape, weights: dict[str, Floats], bits: int) -> bytes:
    out = io.BytesIO()
    out.write(header(4, shape, GROUP, bits))
    for name in ("final_norm", "att_norm", "ffn_norm"):
        out.write(weights[name].tobytes())
    for name in MATRICES:
        matrix = rounded(weights[name], bits)
        flat = matrix.q.reshape(-1)
        if bits == 8:
            out.write(flat.astype(np.int8).tobytes())
        else:
            out.write(bytes(int(a + 8) << 4 | int(b + 8) for a, b in zip(flat[::2], flat[1::2], strict=True)))
        out.write(matrix.scales.astype("<f4").tobytes())
    return out.getvalue()


def simple_llama_file(bits: int, shape: Shape = SHAPE) -> tuple[bytes, dict[str, Floats]]:
    """bits: 32, 8 or 4. The file, and the float32 weights that it means, by llama2.c's names."""
    weights = random_weights(shape)
    if bits == 32:
        return float_bytes(shape, weights), weights
    data = quantized_bytes(shape, weights, bits)
    return data, weights | {name: rounded(weights[name], bits).values() for name in MATRICES}
