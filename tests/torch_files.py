"""Files as torch.save writes them, made opcode by opcode and byte by byte, and Meta's shards of small models."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.small_files import Shape, random_weights

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STORAGES = {
    "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage",
    "int32": "IntStorage", "uint8": "ByteStorage", "bool": "BoolStorage", "float64": "DoubleStorage",
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """A tensor that is a part of an array, which other tensors may share: offset and strides count elements."""

    base: NDArray[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Saved:
    """One object as the pickle (``data``) and the storages (``storages``) that torch.save makes of it.

    memo_index: the number under which the n-th object is remembered; torch counts from 0.
    """

    def __init__(self, value: Any, metadata: bool = False, memo_index: Callable[[int], int] = lambda n: n) -> None:
        self.memo_index = memo_index
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[Any, int] = {}
        self.storages: list[NDArray[Any]] = []
        self.keys: dict[int, int] = {}
        self.write(value, ordered=True)
        if metadata:  # as a state_dict carries it
            self.write_metadata()
        self.out += b"."
        self.data = bytes(self.out)

    def put(self, key: Any = None) -> None:
        index = self.memo_index(len(self.memo))
        self.memo[("object", index) if key is None else key] = index
        self.out += b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)

    def recall(self, key: Any) -> bool:
        if key not in self.memo:
            return False
        index = self.memo[key]
        self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)
        return True

    def name(self, module: str, attribute: str) -> None:
        if not self.recall((module, attribute)):
            self.out += f"c{module}\n{attribute}\n".encode()
            self.put((module, attribute))

    def ordered_dict(self) -> None:
        self.name("collections", "OrderedDict")
        self.out += b")R"
        self.put()

    def write(self, value: Any, ordered: bool = False) -> None:
        if value is None or value is True or value is False:
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self.write_int(value)
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            if not self.recall(value):
                self.out += b"X" + struct.pack("<I", len(value.encode())) + value.encode()
                self.put(value)
        elif isinstance(value, tuple):
            self.write_tuple(value)
        elif isinstance(value, list):
            self.out += b"]"
            self.put()
            self.out += b"("
            for item in value:
                self.write(item)
            self.out += b"e"
        elif isinstance(value, dict):
            self.write_dict(value, ordered)
        else:
            self.write_tensor(value if isinstance(value, View) else whole(value))

    def write_int(self, value: int) -> None:
        if 0 <= value < 256:
            self.out += b"K" + bytes([value])
        elif 0 <= value < 65536:
            self.out += b"M" + struct.pack("<H", value)
        elif -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            n = value.bit_length() // 8 + 1
            self.out += b"\x8a" + bytes([n]) + value.to_bytes(n, "little", signed=True)

    def write_tuple(self, value: tuple[Any, ...]) -> None:
        self.out += b"(" if len(value) > 3 else b""
        for item in value:
            self.write(item)
        self.out += {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
        if value:
            self.put()

    def write_dict(self, value: dict[Any, Any], ordered: bool) -> None:
        if ordered:
            self.ordered_dict()
        else:
            self.out += b"}"
            self.put()
        items = list(value.items())
        for start in range(0, len(items), 1000):
            self.out += b"("
            for key, item in items[start : start + 1000]:
                self.write(key)
                self.write(item)
            self.out += b"u"

    def write_tensor(self, tensor: View) -> None:
        if id(tensor.base) not in self.keys:
            self.keys[id(tensor.base)] = len(self.storages)
            self.storages.append(tensor.base)
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.out += b"(("
        self.write("storage")
        self.name("torch", STORAGES[tensor.base.dtype.name])
        self.write(str(self.keys[id(tensor.base)]))
        self.write("cpu")
        self.write(tensor.base.size)
        self.out += b"t"
        self.put()
        self.out += b"Q"
        self.write(tensor.offset)
        self.write(tensor.shape)
        self.write(tensor.strides)
        self.out += b"\x89"
        self.ordered_dict()
        self.out += b"t"
        self.put()
        self.out += b"R"
        self.put()

    def write_metadata(self) -> None:
        self.out += b"}"
        self.put()
        self.write("_metadata")
        self.ordered_dict()
        self.write("")
        self.write({"version": 1})
        self.out += b"ssb"


def whole(array: NDArray[Any]) -> View:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return View(array, 0, array.shape, strides)


@dataclass
class Entry:
    """A member of a zip: data, then ``hole`` zero bytes that take no room on disk.

    What is not None stands in its place in the central directory, whatever is true.
    """

    name: str
    data: bytes
    hole: int = 0
    method: int = 0
    flags: int = 0x0808
    stored_size: int | None = None
    size: int | None = None
    offset: int | None = None


def write_zip(out: BinaryIO, entries: Sequence[Entry], zip64: bool = False, align: int = 64) -> None:
    """A zip as torch's writer lays it out: data aligned by a local extra field, sizes in a descriptor behind it.

    zip64: sizes and offsets in the extra field of the central directory, as in files over 4 GB.
    """
    central = bytearray()
    for entry in entries:
        name, start = entry.name.encode(), out.tell()
        length = len(entry.data) + entry.hole
        padding = -(start + 30 + len(name) + 4) % align
        header = (b"PK\x03\x04", 0, entry.flags, entry.method, 0, 0, 0, 0, 0, len(name), padding + 4)
        out.write(struct.pack("<4s5H3I2H", *header) + name + b"FB" + struct.pack("<H", padding) + b"Z" * padding)
        out.write(entry.data)
        out.seek(entry.hole, 1)
        out.write(struct.pack("<4sI2Q", b"PK\x07\x08", 0, length, length))
        stored_size = length if entry.stored_size is None else entry.stored_size
        size = length if entry.size is None else entry.size
        offset = start if entry.offset is None else entry.offset
        extra = struct.pack("<2H3Q", 1, 24, size, stored_size, offset) if zip64 else b""
        shown = (0xFFFFFFFF,) * 3 if zip64 else (stored_size, size, offset)
        central += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 0, 0, entry.flags, entry.method, 0, 0, 0, shown[0], shown[1],
            len(name), len(extra), 0, 0, 0, 0, shown[2],
        )  # fmt: skip
        central += name + extra
    start, count = out.tell(), len(entries)
    out.write(central)
    end_64 = out.tell()
    out.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 30, 45, 0, 0, count, count, len(central), start))
    out.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, end_64, 1))
    last = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) if zip64 else (count, count, len(central), start)
    out.write(struct.pack("<4s2H2H2IH", b"PK\x05\x06", 0, 0, *last, 0))


def zip_bytes(entries: Sequence[Entry], zip64: bool = False) -> bytes:
    out = io.BytesIO()
    write_zip(out, entries, zip64)
    return out.getvalue()


def entries_of(saved: Saved, top: str = "archive") -> list[Entry]:
    """Members of the zip. Storages over 1 MiB are holes."""
    storages = [
        Entry(f"{top}/data/{i}", b"", array.nbytes)
        if array.nbytes > 1 << 20
        else Entry(f"{top}/data/{i}", array.tobytes())
        for i, array in enumerate(saved.storages)
    ]
    start = [Entry(f"{top}/data.pkl", saved.data), Entry(f"{top}/byteorder", b"little")]
    return [*start, *storages, Entry(f"{top}/version", b"3\n")]


def torch_bytes(value: Any, top: str = "archive", metadata: bool = False) -> bytes:
    """What torch.save(value) writes."""
    return zip_bytes(entries_of(Saved(value, metadata), top))


def write_unzipped(folder: Path, value: Any) -> None:
    """The same in a folder, as rllama wants it."""
    saved = Saved(value)
    (folder / "data").mkdir(parents=True)
    (folder / "data.pkl").write_bytes(saved.data)
    (folder / "version").write_bytes(b"3\n")
    for i, array in enumerate(saved.storages):
        (folder / "data" / str(i)).write_bytes(array.tobytes())


NAMES = {
    "att_norm": "attention_norm", "ffn_norm": "ffn_norm", "wq": "attention.wq", "wk": "attention.wk",
    "wv": "attention.wv", "wo": "attention.wo", "w1": "feed_forward.w1", "w2": "feed_forward.w2",
    "w3": "feed_forward.w3",
}  # fmt: skip
ROWS, COLUMNS = ("wq", "wk", "wv", "w1", "w3", "output"), ("wo", "w2")


def meta_state(shape: Shape, dtype: Any = np.float32, seed: int = 0) -> dict[str, NDArray[Any]]:
    """A model's tensors under Meta's names, with the table of RoPE that older files hold."""
    weights = random_weights(shape, seed)
    state = {"tok_embeddings.weight": weights["tok_emb"], "norm.weight": weights["final_norm"]}
    if not shape.tied:
        state["output.weight"] = weights["wcls"]
    for i in range(shape.n_layers):
        state.update({f"layers.{i}.{name}.weight": weights[block][i] for block, name in NAMES.items()})
    state["rope.freqs"] = np.ones(shape.dim // shape.n_heads // 2, np.float32)
    return {name: array.astype(dtype) for name, array in state.items()}


def split(state: dict[str, NDArray[Any]], n: int, embedding_axis: int = 1) -> list[dict[str, NDArray[Any]]]:
    """The tensors of each of n shards, as Meta's code splits them."""
    shards: list[dict[str, NDArray[Any]]] = [{} for _ in range(n)]
    for name, array in state.items():
        kind = name.removesuffix(".weight").split(".")[-1]
        axis = 0 if kind in ROWS else 1 if kind in COLUMNS else embedding_axis if kind == "tok_embeddings" else None
        parts = [array] * n if axis is None else np.split(array, n, axis)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = np.ascontiguousarray(part)
    return shards


def params_of(shape: Shape, **more: Any) -> dict[str, Any]:
    return {
        "dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "n_kv_heads": shape.n_kv_heads,
        "vocab_size": -1, "multiple_of": 256, "norm_eps": 1e-5, **more,
    }  # fmt: skip


def write_meta(
    folder: Path, shape: Shape, n_shards: int = 1, dtype: Any = np.float32, unzipped: bool = False,
    embedding_axis: int = 1, **params: Any,
) -> Path:  # fmt: skip
    """A folder as Meta ships it. ``params`` beside those of the shape."""
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params_of(shape, **params)))
    for i, shard in enumerate(split(meta_state(shape, dtype), n_shards, embedding_axis)):
        if unzipped:
            write_unzipped(folder / f"consolidated.{i:02}", shard)
        else:
            (folder / f"consolidated.{i:02}.pth").write_bytes(torch_bytes(shard, f"consolidated.{i:02}"))
    return folder
