"""llama2Rnn's files of small models, and its recurrence, by code that shares nothing with the readers and the model.

Files are built from the layout alone, the recurrence from its definition: float64, one token, one head, one memory row
at a time.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.small_files import MAGIC, Floats, Shape, q8_groups, q8_values, random_weights

Doubles = NDArray[np.float64]
FLOATS = ["att_norm", "ffn_norm", "mem_norm", "mem_ffn_norm", "origin_mem", "final_norm"]
MATRICES = ["tok_emb", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "aw1", "aw2", "aw3"]


@dataclass(frozen=True)
class MemoryShape(Shape):
    """mem_len: M. Positions are fewer than 2M, which must not matter."""

    mem_len: int = 5
    max_seq_len: int = 8


def memory_weights(shape: MemoryShape, seed: int = 0) -> dict[str, Floats]:
    """llama2.c's blocks and those of the memory, by the names of the layout, layers as first axis."""
    rng = np.random.default_rng([seed, shape.mem_len])
    n, d, h = shape.n_layers, shape.dim, shape.hidden_dim
    weights = random_weights(shape, seed)
    weights["mem_norm"] = np.asarray(1 + 0.1 * rng.standard_normal((n, d)), np.float32)
    weights["mem_ffn_norm"] = np.asarray(1 + 0.1 * rng.standard_normal((n, d)), np.float32)
    weights["origin_mem"] = rng.standard_normal((n, shape.mem_len, d), np.float32)
    for name, rows, columns in (("aw1", h, d), ("aw2", d, h), ("aw3", h, d)):
        weights[name] = np.asarray(rng.standard_normal((n, rows, columns)) / np.sqrt(columns), np.float32)
    return weights


def rounded(weights: dict[str, Floats], group_size: int) -> dict[str, Floats]:
    """The weights as they are after the file has rounded them."""
    matrices = {*MATRICES, "wcls"}
    return {name: q8_values(w, group_size) if name in matrices else w for name, w in weights.items()}


def memory_model_bytes(shape: MemoryShape, weights: dict[str, Floats], group_size: int) -> bytes:
    """The model file: 256 bytes of header with mem_seq_len at 36, then floats, then matrices of int8."""
    header = struct.pack("<Ii", MAGIC, 2) + shape.header(shape.vocab_size)
    header += struct.pack("<i", shape.mem_len) + bytes([shape.tied]) + struct.pack("<i", group_size)
    out = io.BytesIO()
    out.write(header + bytes(256 - len(header)))
    for name in FLOATS:
        out.write(weights[name].tobytes())
    for name in MATRICES + ([] if shape.tied else ["wcls"]):
        w = weights[name]
        for layer in w if w.ndim == 3 else w[None]:
            numbers, scales = q8_groups(layer.ravel(), group_size)
            out.write(numbers.tobytes())
            out.write(scales.tobytes())
    return out.getvalue()


class Recurrence:
    """The model token by token. mem, keys, values: its state, by slot; pos: the next token's place in its chunk."""

    def __init__(self, shape: MemoryShape, weights: dict[str, Floats], each_token: bool = False) -> None:
        self.shape, self.each_token, self.pos = shape, each_token, 0
        self.w = {name: array.astype(np.float64) for name, array in weights.items()}
        m, n = shape.mem_len, shape.n_layers
        self.mem: Doubles = self.w["origin_mem"].copy()
        self.keys: Doubles = np.zeros((n, 2 * m, shape.kv_dim))
        self.values: Doubles = np.zeros((n, 2 * m, shape.kv_dim))
        for layer in range(n):
            for slot in range(m):
                self.refresh(layer, slot)

    def norm(self, x: Doubles, weight: Doubles) -> Doubles:
        return np.asarray(weight * x / math.sqrt(sum(v * v for v in x) / len(x) + 1e-5))

    def turn(self, x: Doubles, position: int) -> Doubles:
        size, out = self.shape.dim // self.shape.n_heads, x.copy()
        for start in range(0, len(x), 2):
            angle = position * 10000.0 ** (-(start % size) / size)
            out[start] = x[start] * math.cos(angle) - x[start + 1] * math.sin(angle)
            out[start + 1] = x[start] * math.sin(angle) + x[start + 1] * math.cos(angle)
        return out

    def feed(self, x: Doubles, norm: Doubles, w1: Doubles, w2: Doubles, w3: Doubles) -> Doubles:
        n = self.norm(x, norm)
        gate = w1 @ n
        return np.asarray(x + w2 @ (gate / (1 + np.exp(-gate)) * (w3 @ n)))

    def refresh(self, layer: int, slot: int) -> None:
        w = self.w
        m = self.feed(self.mem[layer, slot], w["mem_ffn_norm"][layer], *(w[f"aw{i}"][layer] for i in (1, 2, 3)))
        n = self.norm(m, w["mem_norm"][layer])
        self.keys[layer, slot] = self.turn(w["wk"][layer] @ n, slot)
        self.values[layer, slot] = w["wv"][layer] @ n

    def step(self, token: int) -> Doubles:
        """Logits after one more token."""
        shape, w = self.shape, self.w
        size, group, slot = shape.dim // shape.n_heads, shape.n_heads // shape.n_kv_heads, shape.mem_len + self.pos
        x = w["tok_emb"][token]
        for layer in range(shape.n_layers):
            n = self.norm(x, w["att_norm"][layer])
            q = self.turn(w["wq"][layer] @ n, slot)
            self.keys[layer, slot] = self.turn(w["wk"][layer] @ n, slot)
            self.values[layer, slot] = w["wv"][layer] @ n
            o = np.zeros(shape.dim)
            for head in range(shape.n_heads):
                own = slice(head * size, head * size + size)
                of_keys = slice(head // group * size, head // group * size + size)
                scores = [q[own] @ self.keys[layer, p, of_keys] / math.sqrt(size) for p in range(slot + 1)]
                weights = np.exp(np.array(scores) - max(scores))
                for p in range(slot + 1):
                    o[own] += weights[p] / weights.sum() * self.values[layer, p, of_keys]
            self.mem[layer, self.pos] = o
            x = x + w["wo"][layer] @ o
            x = self.feed(x, w["ffn_norm"][layer], *(w[f"w{i}"][layer] for i in (1, 2, 3)))
        logits = w["tok_emb" if shape.tied else "wcls"] @ self.norm(x, w["final_norm"])
        for layer in range(shape.n_layers):
            if self.each_token:
                self.refresh(layer, self.pos)
            elif self.pos == shape.mem_len - 1:
                for p in range(shape.mem_len):
                    self.refresh(layer, p)
        self.pos = (self.pos + 1) % shape.mem_len
        return np.asarray(logits)

    def by_head(self, slots: Doubles) -> Doubles:
        """Of keys or values [n_layers, slots, kv_dim]: [n_layers, n_kv_heads, slots, head_dim]."""
        n, n_slots, _ = slots.shape
        return slots.reshape(n, n_slots, self.shape.n_kv_heads, -1).transpose(0, 2, 1, 3)


STATE_NAMES = {
    "att_norm": "attention_norm.weight", "ffn_norm": "ffn_norm.weight", "mem_norm": "attention.memory_norm.weight",
    "mem_ffn_norm": "attention.ffn_norm.weight", "origin_mem": "attention.origin_mem", "wq": "attention.wq.weight",
    "wk": "attention.wk.weight", "wv": "attention.wv.weight", "wo": "attention.wo.weight",
    "w1": "feed_forward.w1.weight", "w2": "feed_forward.w2.weight", "w3": "feed_forward.w3.weight",
    "aw1": "attention.feed_forward.w1.weight", "aw2": "attention.feed_forward.w2.weight",
    "aw3": "attention.feed_forward.w3.weight",
}  # fmt: skip


def named(weights: dict[str, Floats]) -> dict[str, Floats]:
    """The blocks as one array per layer, under the names of a Checkpoint."""
    out = {"tok_embeddings.weight": weights["tok_emb"], "norm.weight": weights["final_norm"]}
    if "wcls" in weights:
        out["output.weight"] = weights["wcls"]
    for block, name in STATE_NAMES.items():
        out.update({f"layers.{i}.{name}": layer for i, layer in enumerate(weights[block])})
    return out


def memory_file(recurrence: Recurrence, n_positions: int, pos: int | None = None) -> bytes:
    """llama2Rnn's memory file: memory, then n_positions of keys and of values (NaN where nothing is), then pos."""
    n, slots = recurrence.shape.n_layers, 2 * recurrence.shape.mem_len
    out = recurrence.mem.astype("<f4").tobytes()
    for part in (recurrence.keys, recurrence.values):
        whole = np.full((n, n_positions, recurrence.shape.kv_dim), np.nan, "<f4")
        whole[:, :slots] = part
        out += whole.tobytes()
    return out + struct.pack("<i", recurrence.pos if pos is None else pos)


def training_state(shape: MemoryShape, weights: dict[str, Floats]) -> dict[str, Floats]:
    """A state_dict as llama2Rnn trains it: origin_mem of three axes, and other names of the same matrices."""
    state = named(weights)
    for i in range(shape.n_layers):
        attention = f"layers.{i}.attention"
        state[f"{attention}.origin_mem"] = state[f"{attention}.origin_mem"][None]
        for name in ("wq", "wk", "wv"):
            state[f"{attention}.{name}m.weight"] = state[f"{attention}.{name}.weight"]
    state["layers.0.attention.memory"] = np.zeros((32, shape.mem_len, shape.dim), np.float32)
    if shape.tied:
        state["output.weight"] = state["tok_embeddings.weight"]
    return state


def training_args(shape: MemoryShape, **more: Any) -> dict[str, Any]:
    return {
        "dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "n_kv_heads": shape.n_kv_heads,
        "vocab_size": shape.vocab_size, "multiple_of": 32, "max_seq_len": 256, "dropout": 0.0,
        "extend_method": "extrapolation", "attention_type": "memory_attention", "memory_attention": False,
        "memseqlen": shape.mem_len, "do_wm": False, "do_memory_ffn": True, "memory_norm": True, "train_orimem": True,
        "reuse_kv": True, "lora": False, "update_memory": False, "use_saved_mem": False, "key_norm": False, **more,
    }  # fmt: skip
