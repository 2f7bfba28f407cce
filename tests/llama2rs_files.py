"""Small llama2.rs files made from a seed, and what their matrices mean by AutoGPTQ's definition. Shares no code."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.small_files import Floats, Shape, random_weights

MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
BEFORE = ("wq", "wk", "wv", "wo")  # the norms of the feed-forward


@dataclass(frozen=True)
class Gptq:
    """The raw tensors of one linear, unpacked: q [in, out], zeros (as stored: one less) and scales [groups, out]."""

    q: NDArray[np.int64]
    zeros: NDArray[np.int64]
    scales: Floats
    g_idx: NDArray[np.int64]

    def weight(self) -> Floats:
        """[out, in]: W[i, o] = scales[g_idx[i], o] * (q[i, o] - (zeros[g_idx[i], o] + 1)), one input at a time."""
        rows = [self.scales[g] * (q - (self.zeros[g] + 1)).astype(np.float32)
                for q, g in zip(self.q, self.g_idx, strict=True)]  # fmt: skip
        return np.array(rows, np.float32).T.copy()


def random_gptq(rng: np.random.Generator, shape: tuple[int, int], group_size: int, act_order: bool) -> Gptq:
    out_features, in_features = shape
    n_groups = -(-in_features // group_size)
    g_idx = np.arange(in_features) // group_size
    scales = rng.uniform(0.1, 0.4, (n_groups, out_features)) / np.sqrt(in_features)
    return Gptq(
        rng.integers(0, 16, (in_features, out_features)),
        rng.choice([0, 5, 6, 7, 8, 9, 15], (n_groups, out_features)),  # a stored 15 means 16
        scales.astype(np.float16).astype(np.float32),
        rng.permutation(g_idx) if act_order else g_idx,
    )


def words(numbers: NDArray[np.int64]) -> bytes:
    """[..., 8 n] numbers of 4 bits as words, the first in the lowest bits."""
    eights = numbers.reshape(*numbers.shape[:-1], -1, 8).astype(np.uint32)
    total = np.zeros(eights.shape[:-1], np.uint32)
    for i in range(8):
        total |= eights[..., i] << np.uint32(4 * i)
    return total.astype("<u4").tobytes()


def linear_bytes(linear: Gptq, with_order: bool) -> bytes:
    """What the exporter writes: columns sorted by group."""
    order = np.argsort(linear.g_idx, kind="stable")
    qweight = words(linear.q[order].T)  # [out][in / 8]
    zeros = linear.zeros.T  # [out, groups]; words hold 8 outputs of one group
    n_out, n_groups = zeros.shape
    qzeros = b"".join(words(zeros[o : o + 8, g]) for o in range(0, n_out, 8) for g in range(n_groups))
    data = qweight + qzeros + np.ascontiguousarray(linear.scales.T, "<f4").tobytes()
    return data + (order.astype("<i4").tobytes() if with_order else b"")


@dataclass(frozen=True)
class Made:
    """A file and the float32 weights that it means, by llama2.c's names, rows of wq and wk as Hugging Face has them."""

    data: bytes
    weights: dict[str, Floats]


SHAPE = Shape(dim=64, hidden_dim=160, n_layers=2, n_heads=8, n_kv_heads=2, max_seq_len=2048, tied=False)


def llama2rs_file(
    variant: str, group_size: int = 64, act_order: bool = False, shape: Shape = SHAPE, eps: float = 1e-5
) -> Made:
    """variant: A, B, C, or "float32" (the header, the epsilon and float32 weights)."""
    weights: dict[str, Any] = dict(random_weights(shape))
    if variant != "float32":
        rng = np.random.default_rng(1)
        linears = {name: [random_gptq(rng, layer.shape, group_size, act_order) for layer in weights[name]]
                   for name in MATRICES}  # fmt: skip
        weights |= {name: np.array([linear.weight() for linear in layers]) for name, layers in linears.items()}

    def block(name: str) -> bytes:
        if variant == "float32" or name not in MATRICES:
            return bytes(weights[name].tobytes())
        return b"".join(linear_bytes(linear, with_order=variant != "A") for linear in linears[name])

    header = struct.pack("<7i", shape.dim, shape.hidden_dim, shape.n_layers, shape.n_heads, shape.n_heads,
                         -shape.vocab_size, shape.max_seq_len)  # fmt: skip
    if variant in ("C", "float32"):
        header += struct.pack("<f", eps)
    order = ["tok_emb", "att_norm", *BEFORE, "ffn_norm", "w1", "w2", "w3", "final_norm"]
    tables = bytes(4 * shape.max_seq_len * (shape.dim // shape.n_heads))
    return Made(header + b"".join(map(block, order)) + tables + block("wcls"), weights)
