"""Files that the seed systems' own programs read, of random models: for scripts/measure/seed_programs.

Written from the layouts in docs/formats.md alone; nothing of the readers is used. The rows of the head that belong to
control tokens and bytes are zero, so that greedy text is made of printable pieces and does not end by chance.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Weights = dict[str, Floats]
LLAMA2C_MAGIC, SIMPLE_MAGIC, GPTQ_POSITIONS = 0x616B3432, 0x7FDD7F7F, 2048
N_SPECIAL = 259  # control tokens and bytes
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
MEMORY_MATRICES = ("aw1", "aw2", "aw3")


@dataclass(frozen=True)
class Shape:
    """A Llama with as many key heads as heads and a head of its own. mem_len: of a memory model, else 0."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    vocab_size: int = 32000
    max_seq_len: int = 256
    mem_len: int = 0

    def header(self, vocab_size: int) -> bytes:
        sizes = (self.dim, self.hidden_dim, self.n_layers, self.n_heads, self.n_heads, vocab_size, self.max_seq_len)
        return struct.pack("<7i", *sizes)


def random_weights(shape: Shape, seed: int) -> Weights:
    """Blocks by llama2.c's names, layers as the first axis."""
    rng = np.random.default_rng(seed)
    n, d, h, v = shape.n_layers, shape.dim, shape.hidden_dim, shape.vocab_size

    def matrix(*size: int) -> Floats:
        return rng.standard_normal(size, np.float32) * np.float32(size[-1] ** -0.5)

    def norm(*size: int) -> Floats:
        return 1 + np.float32(0.1) * rng.standard_normal(size, np.float32)

    out = {"tok_emb": matrix(v, d), "att_norm": norm(n, d), "ffn_norm": norm(n, d), "final_norm": norm(d),
           "wq": matrix(n, d, d), "wk": matrix(n, d, d), "wv": matrix(n, d, d), "wo": matrix(n, d, d),
           "w1": matrix(n, h, d), "w2": matrix(n, d, h), "w3": matrix(n, h, d), "wcls": matrix(v, d)}  # fmt: skip
    out["wcls"][:N_SPECIAL] = 0
    if shape.mem_len:
        out |= {"mem_norm": norm(n, d), "mem_ffn_norm": norm(n, d), "aw1": matrix(n, h, d), "aw2": matrix(n, d, h),
                "aw3": matrix(n, h, d), "origin_mem": rng.standard_normal((n, shape.mem_len, d), np.float32)}  # fmt: skip  # noqa: E501
    return out


def tokenizer_bin(vocab_size: int) -> bytes:
    """llama2.c's tokenizer: control tokens, bytes, every printable character, then pieces of letters."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    pieces = [chr(i) for i in range(32, 127)]
    longer = (start + "".join(rest) for n in (2, 3, 4) for rest in product(letters, repeat=n) for start in (" ", ""))
    pieces += [piece for piece, _ in zip(longer, range(vocab_size - N_SPECIAL - len(pieces)), strict=False)]
    entries = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")] + [(0.0, b"<0x%02X>" % i) for i in range(256)]
    entries += [(-float(i), piece.encode()) for i, piece in enumerate(pieces)]
    data = struct.pack("<I", max(len(piece) for _, piece in entries))
    return data + b"".join(struct.pack("<fI", score, len(piece)) + piece for score, piece in entries)


def write_blocks(path: Path, blocks: Iterable[bytes | Floats]) -> Path:
    with path.open("wb") as file:
        for block in blocks:
            file.write(block if isinstance(block, bytes) else np.ascontiguousarray(block, "<f4").tobytes())
    return path


def write_llama2c(path: Path, shape: Shape, weights: Weights) -> Path:
    """Version 0: float32."""
    before = ("tok_emb", "att_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "final_norm")
    tables = bytes(4 * shape.max_seq_len * (shape.dim // shape.n_heads))
    return write_blocks(
        path, [shape.header(-shape.vocab_size), *(weights[name] for name in before), tables, weights["wcls"]]
    )


def int8_blocks(weights: Weights, names: Iterable[str], group_size: int) -> Iterable[bytes]:
    for name in names:
        w = weights[name]
        for layer in w if w.ndim == 3 else w[None]:
            groups = layer.reshape(-1, group_size)
            scales = np.maximum(np.abs(groups).max(1), 1e-8) / np.float32(127)
            yield np.rint(groups / scales[:, None]).astype(np.int8).tobytes()
            yield scales.astype("<f4").tobytes()


def write_int8(path: Path, shape: Shape, weights: Weights, group_size: int) -> Path:
    """llama2.c's version 2, and llama2Rnn's memory models, whose header has one more number."""
    memory = bool(shape.mem_len)
    header = struct.pack("<Ii", LLAMA2C_MAGIC, 2) + shape.header(shape.vocab_size)
    header += (struct.pack("<i", shape.mem_len) if memory else b"") + struct.pack("<Bi", 0, group_size)
    of_memory = ("mem_norm", "mem_ffn_norm", "origin_mem") if memory else ()
    floats = [weights[name] for name in ("att_norm", "ffn_norm", *of_memory, "final_norm")]
    names = ("tok_emb", *MATRICES, *(MEMORY_MATRICES if memory else ()), "wcls")
    return write_blocks(path, [header.ljust(256, b"\0"), *floats, *int8_blocks(weights, names, group_size)])


def write_simple_llama(path: Path, shape: Shape, weights: Weights, bits: int) -> Path:
    """bits: 32 (version 3), 8 or 4 (version 4)."""
    sizes = (shape.dim, shape.hidden_dim, shape.n_heads, shape.n_layers, shape.vocab_size, shape.max_seq_len)
    matrices = ("tok_emb", "wcls", *MATRICES)
    if bits == 32:
        header = struct.pack("<I7i", SIMPLE_MAGIC, 3, *sizes)
        names = ("final_norm", "tok_emb", "wcls", "att_norm", "ffn_norm", *MATRICES)
        return write_blocks(path, [header.ljust(256, b"\0"), *(weights[name] for name in names)])
    blocks: list[bytes | Floats] = [struct.pack("<I9i", SIMPLE_MAGIC, 4, *sizes, 128, bits).ljust(256, b"\0")]
    blocks += [weights[name] for name in ("final_norm", "att_norm", "ffn_norm")]
    largest = np.float32(127 if bits == 8 else 7)
    for name in matrices:
        groups = weights[name].reshape(-1, 128)
        scales = np.abs(groups).max(1) / largest
        parts = groups / np.where(scales == 0, np.float32(1), scales)[:, None]
        q = (np.sign(parts) * np.floor(np.abs(parts) + np.float32(0.5))).astype(np.int8).reshape(-1)
        nibbles = (q + 8).astype(np.uint8)
        blocks.append(q.tobytes() if bits == 8 else (nibbles[::2] << 4 | nibbles[1::2]).tobytes())
        blocks.append(scales)
    return write_blocks(path, blocks)


def gptq_bytes(rng: np.random.Generator, n_out: int, n_in: int, group_size: int, with_order: bool) -> bytes:
    """A random linear of llama2.rs: words of eight 4-bit numbers, zeros, scales, and the order of its columns."""
    n_groups = -(-n_in // group_size)

    def words(numbers: NDArray[Any]) -> bytes:
        eights = numbers.reshape(*numbers.shape[:-1], -1, 8).astype(np.uint32)
        packed: NDArray[np.uint32] = np.bitwise_or.reduce(eights << (4 * np.arange(8, dtype=np.uint32)), axis=-1)
        return packed.astype("<u4").tobytes()

    q = words(rng.integers(0, 16, (n_out, n_in)))
    zeros = words(np.ascontiguousarray(rng.integers(5, 10, (n_out // 8, 8, n_groups)).transpose(0, 2, 1)))
    scales: bytes = (rng.uniform(0.1, 0.3, (n_out, n_groups)) * n_in**-0.5).astype("<f4").tobytes()
    order: bytes = np.argsort(rng.permutation(np.arange(n_in) // group_size), kind="stable").astype("<i4").tobytes()
    return q + zeros + scales + (order if with_order else b"")


def write_llama2rs(path: Path, shape: Shape, weights: Weights, variant: str, group_size: int = 64,
                   without_queries: bool = False) -> Path:  # fmt: skip
    """variant: A or C (GPTQ), or float32. without_queries: wq is zero, so that RoPE has nothing to turn."""
    rng = np.random.default_rng(5)

    def block(name: str) -> bytes | Floats:
        if name not in MATRICES or variant == "float32":
            return np.zeros_like(weights[name]) if name == "wq" and without_queries else weights[name]
        n_layers, n_out, n_in = weights[name].shape
        layers = [gptq_bytes(rng, n_out, n_in, group_size, variant != "A") for _ in range(n_layers)]
        if name == "wq" and without_queries:
            layers = [zero_scales(layer, n_out, n_in, group_size) for layer in layers]
        return b"".join(layers)

    header = shape.header(-shape.vocab_size) + (struct.pack("<f", 1e-5) if variant != "A" else b"")
    order = ("tok_emb", "att_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "final_norm")
    angles = np.outer(np.arange(GPTQ_POSITIONS), 10000.0 ** -(np.arange(0, 1, 2 * shape.n_heads / shape.dim)))
    tables = [np.cos(angles).astype("<f4").tobytes(), np.sin(angles).astype("<f4").tobytes()]
    return write_blocks(path, [header, *map(block, order), *tables, weights["wcls"]])


def zero_scales(linear: bytes, n_out: int, n_in: int, group_size: int) -> bytes:
    n_groups = -(-n_in // group_size)
    start, size = n_out * n_in // 2 + n_out * n_groups // 2, 4 * n_out * n_groups
    return linear[:start] + bytes(size) + linear[start + size :]


class Name(str):
    """module.attribute, pickled as a global without importing it."""


class Storage(int):
    """The number of a tensor's file."""


class TorchPickler(pickle._Pickler):
    """What torch.save pickles of a dict of float16 arrays: each a tensor over a storage of its own."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)
    save: Callable[[Any], None]  # of the pickler in Python, whose methods its stubs leave out
    write: Callable[[bytes], None]

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=2)
        self.storages: list[NDArray[np.float16]] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage):
            return None
        return ("storage", Name("torch.HalfStorage"), str(int(obj)), "cpu", self.storages[obj].size)

    def save_name(self, obj: Name) -> None:
        module, _, attribute = obj.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())

    def save_tensor(self, array: NDArray[np.float16]) -> None:
        self.storages.append(array)
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self.save(Name("torch._utils._rebuild_tensor_v2"))
        self.write(pickle.MARK)
        for part in (Storage(len(self.storages) - 1), 0, array.shape, strides, False):
            self.save(part)
        self.save(Name("collections.OrderedDict"))
        self.write(pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)

    dispatch[Name] = save_name
    dispatch[np.ndarray] = save_tensor


def write_meta_unzipped(folder: Path, shape: Shape, weights: Weights, n_shards: int = 1) -> Path:
    """Meta's files in float16 as rllama wants them: params.json and consolidated.NN/data.pkl and its storages."""
    names = {"att_norm": "attention_norm", "ffn_norm": "ffn_norm", "wq": "attention.wq", "wk": "attention.wk",
             "wv": "attention.wv", "wo": "attention.wo", "w1": "feed_forward.w1", "w2": "feed_forward.w2",
             "w3": "feed_forward.w3"}  # fmt: skip
    axes = {"wo": 1, "w2": 1, "tok_embeddings": 1, "wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0}
    state = {"tok_embeddings": weights["tok_emb"], "norm": weights["final_norm"], "output": weights["wcls"]}
    state |= {f"layers.{i}.{name}": weights[block][i] for i in range(shape.n_layers) for block, name in names.items()}
    params = {"dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "multiple_of": 256,
              "norm_eps": 1e-5, "vocab_size": shape.vocab_size}  # fmt: skip
    for shard in range(n_shards):
        data = folder / f"consolidated.{shard:02}" / "data"
        data.mkdir(parents=True)
        parts = {}
        for name, array in state.items():
            axis = axes.get(name.rpartition(".")[2])
            part = array if axis is None else np.split(array, n_shards, axis)[shard]
            parts[f"{name}.weight"] = np.ascontiguousarray(part, np.float16)
        with (data.parent / "data.pkl").open("wb") as file:
            pickler = TorchPickler(file)
            pickler.dump(parts)
        (data.parent / "version").write_bytes(b"3\n")
        for i, storage in enumerate(pickler.storages):
            (data / str(i)).write_bytes(storage.tobytes())
    (folder / "params.json").write_text(json.dumps(params))
    return folder
