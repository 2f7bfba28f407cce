"""Reads the pickle of a torch.save file without unpickling: nothing in it can name code and have it run.

A pickle is a program for a small stack machine. This one knows only the steps that torch.save writes for dicts, lists,
numbers, texts and tensors. A name (``torch.FloatStorage``) becomes a constant of ours and is never imported; a call is
only ever one of those in ``PickleReader.call``. Steps, memory and sizes are bounded; nothing here recurses, so nesting
is harmless, and what the pickle reuses by reference (its memo) is shared, not copied.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from llamagpu.errors import ModelFormatError

MAX_STEPS = 1 << 18  # half a second; a model of 1,200 tensors takes 36,000
MAX_AXES = 8
LARGEST_COUNT = 1 << 48  # of elements
MAX_NAME_BYTES = 200
# What one object costs in memory, roughly; a dict's entry and a memo's are alike.
OBJECT_BYTES, ITEM_BYTES, ENTRY_BYTES = 64, 16, 110
SLACK_BYTES = 1 << 21
STOP = b"."[0]
REMEDY = "the file is damaged or no model: fetch it again, or convert it to safetensors where you trust it"

STORAGE_TYPES: dict[str, np.dtype[Any]] = {
    "torch.FloatStorage": np.dtype("<f4"), "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"), "torch.IntStorage": np.dtype("<i4"), "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"), "torch.ByteStorage": np.dtype("u1"), "torch.BoolStorage": np.dtype("?"),
}  # fmt: skip
FUNCTIONS = (
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)


@dataclass(frozen=True, slots=True)
class Name:
    """What a name in a pickle becomes: a constant that nothing calls."""

    text: str


NAMES = {text: Name(text) for text in (*STORAGE_TYPES, *FUNCTIONS)}


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage (a flat array that tensors are views of): the member of the file that holds it, and its elements."""

    key: str
    dtype: np.dtype[Any]
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as the pickle describes it: a view of a storage; offset and strides count elements.

    Its numbers are whole and not negative; whether it lies within its storage, and that within the file, is not known.
    """

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(data: bytes, path: Path, budget: int) -> Any:
    """The object that ``data`` describes: dict, list, tuple, str, int, float, bool, None and TensorRef.

    OrderedDict is a dict, a Parameter its tensor. Lists and dicts may hold themselves: do not walk them blindly.
    budget: bytes of memory that it may fill, beside a little. Raises ModelFormatError.
    """
    return PickleReader(data, path, budget).read()


class PickleReader:
    """The stack machine. Underflow, a wrong type or an end too soon is a ModelFormatError like all else."""

    def __init__(self, data: bytes, path: Path, budget: int) -> None:
        self.data, self.path, self.at = data, path, 0
        self.memory_left = budget + SLACK_BYTES
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def refuse(self, problem: str) -> NoReturn:
        raise ModelFormatError(self.path, "data.pkl", f"{problem} (at byte {self.at})", REMEDY)

    def read(self) -> Any:
        for _ in range(MAX_STEPS):
            opcode = self.take(1)[0]
            if opcode == STOP:
                if len(self.stack) != 1 or self.marks:
                    self.refuse(f"ends with {len(self.stack)} objects, not one")
                return self.stack[0]
            step = STEPS.get(opcode)
            if step is None:
                self.refuse(f"has the opcode {bytes([opcode])!r}, which no model needs")
            step(self)
        self.refuse(f"has more than {MAX_STEPS} steps")

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        if n > len(self.data) - self.at:
            self.refuse(f"is cut short: {n} bytes are wanted, {len(self.data) - self.at} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def charge(self, n_bytes: int) -> None:
        self.memory_left -= n_bytes
        if self.memory_left < 0:
            self.refuse("would fill more memory than the file is long")

    def push(self, value: Any, n_bytes: int = OBJECT_BYTES) -> None:
        self.charge(n_bytes + ITEM_BYTES)
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.refuse("takes from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            self.refuse("goes back to a mark that is not there")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        """The object on top of the stack, which must be a list, or a dict."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or type(self.stack[-1]) is not kind:
            self.refuse(f"adds to what is no {kind.__name__}")
        return self.stack[-1]

    def text(self, n: int) -> None:
        try:
            text = self.take(n).decode()
        except UnicodeDecodeError:
            self.refuse("has a text that is no UTF-8")
        self.push(text, OBJECT_BYTES + (n if text.isascii() else 4 * n))

    def whole(self, n: int) -> None:
        if n > 16:
            self.refuse(f"has a number of {n} bytes")
        self.push(int.from_bytes(self.take(n), "little", signed=True))

    def tuple_of(self, n: int) -> None:
        items = tuple(reversed([self.pop() for _ in range(n)]))
        self.push(items)

    def mark(self) -> None:
        self.charge(ITEM_BYTES)
        self.marks.append(len(self.stack))

    def tuple_to_mark(self) -> None:
        items = tuple(self.pop_to_mark())
        self.push(items, OBJECT_BYTES + ITEM_BYTES * len(items))

    def put(self, index: int) -> None:
        self.charge(ENTRY_BYTES)
        value = self.pop()
        self.stack.append(value)
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.refuse(f"recalls object {index}, which it never stored")
        self.push(self.memo[index], 0)

    def append(self, items: list[Any]) -> None:
        self.charge(ITEM_BYTES * len(items))
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Keys are texts or 64-bit numbers: the hash of others may recurse, or be made to collide."""
        target = self.top(dict)
        if len(items) % 2:
            self.refuse("has a key without a value")
        self.charge(ENTRY_BYTES * (len(items) // 2))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and abs(key) < 1 << 60):
                self.refuse(f"has a {type(key).__name__} as a dict's key")
            target[key] = value

    def name(self, module: Any, attribute: Any) -> None:
        text = f"{module}.{attribute}" if type(module) is type(attribute) is str else "no text"
        if text not in NAMES:
            self.refuse(f"names {text[:MAX_NAME_BYTES]!r}, which is neither a tensor nor plain data: it is not run")
        self.push(NAMES[text], 0)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + MAX_NAME_BYTES)
        if end < 0:
            self.refuse("has a name without an end")
        line = self.take(end + 1 - self.at)[:-1]
        return line.decode("utf-8", "replace")

    def global_name(self) -> None:
        self.name(self.line(), self.line())

    def stack_name(self) -> None:
        attribute, module = self.pop(), self.pop()
        self.name(module, attribute)

    def storage(self) -> None:
        """BINPERSID: ("storage", type, key, device, number of elements)."""
        match self.pop():
            case ("storage", Name(kind), str(key), str(), int(numel)) if kind in STORAGE_TYPES and is_count(numel):
                self.push(StorageRef(key, STORAGE_TYPES[kind], numel))
            case _:
                self.refuse("refers to a storage in a way that torch.save does not")

    def call(self) -> None:
        """REDUCE: the calls of FUNCTIONS, which nothing carries out but this."""
        arguments, function = self.pop(), self.pop()
        match function, arguments:
            case Name("collections.OrderedDict"), ():
                self.push({})
            case Name("torch.Size"), (tuple(sizes),):
                self.push(sizes, 0)
            case Name("torch._utils._rebuild_parameter"), (TensorRef() as tensor, bool(), dict()):
                self.push(tensor, 0)
            case Name("torch._utils._rebuild_tensor_v2"), (StorageRef() as storage, offset, shape, strides, bool(), *_):
                if not is_count(offset) or not are_counts(shape) or not are_counts(strides):
                    self.refuse("has a tensor with a shape, stride or offset that is no number of elements")
                if len(shape) != len(strides):
                    self.refuse(f"has a tensor of {len(shape)} axes with {len(strides)} strides")
                self.push(TensorRef(storage, offset, shape, strides), 2 * OBJECT_BYTES)
            case Name(text), _:
                self.refuse(f"calls {text} with arguments that torch.save does not give it")
            case _:
                self.refuse("calls what is no function")

    def build(self) -> None:
        """BUILD: only the _metadata that a state_dict carries, which says nothing of the weights."""
        state = self.pop()
        self.top(dict)
        if type(state) is not dict or list(state) != ["_metadata"]:
            self.refuse("gives an object attributes")

    def protocol(self) -> None:
        version = self.take(1)[0]
        if version > 5:
            self.refuse(f"is of protocol {version}; those known are 2 to 5")

    def frame(self) -> None:
        n = self.number("<Q")
        if n > len(self.data) - self.at:
            self.refuse(f"has a frame of {n} bytes, {len(self.data) - self.at} are left")


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT


def are_counts(values: Any) -> bool:
    return type(values) is tuple and len(values) <= MAX_AXES and all(map(is_count, values))


STEPS: dict[int, Callable[[PickleReader], None]] = {
    ord(opcode): step
    for opcode, step in {
        "\x80": PickleReader.protocol,
        "\x95": PickleReader.frame,
        "(": PickleReader.mark,
        "}": lambda reader: reader.push({}),
        "]": lambda reader: reader.push([]),
        ")": lambda reader: reader.push((), 0),
        "N": lambda reader: reader.push(None, 0),
        "\x88": lambda reader: reader.push(True, 0),
        "\x89": lambda reader: reader.push(False, 0),
        "J": lambda reader: reader.push(reader.number("<i")),
        "K": lambda reader: reader.push(reader.number("<B"), 0),
        "M": lambda reader: reader.push(reader.number("<H")),
        "\x8a": lambda reader: reader.whole(reader.number("<B")),
        "G": lambda reader: reader.push(reader.number(">d")),
        "X": lambda reader: reader.text(reader.number("<I")),
        "\x8c": lambda reader: reader.text(reader.number("<B")),
        "\x8d": lambda reader: reader.text(reader.number("<Q")),
        "t": PickleReader.tuple_to_mark,
        "\x85": lambda reader: reader.tuple_of(1),
        "\x86": lambda reader: reader.tuple_of(2),
        "\x87": lambda reader: reader.tuple_of(3),
        "q": lambda reader: reader.put(reader.number("<B")),
        "r": lambda reader: reader.put(reader.number("<I")),
        "\x94": lambda reader: reader.put(len(reader.memo)),
        "h": lambda reader: reader.get(reader.number("<B")),
        "j": lambda reader: reader.get(reader.number("<I")),
        "a": lambda reader: reader.append([reader.pop()]),
        "e": lambda reader: reader.append(reader.pop_to_mark()),
        "s": lambda reader: reader.set_items([reader.pop(), reader.pop()][::-1]),
        "u": lambda reader: reader.set_items(reader.pop_to_mark()),
        "c": PickleReader.global_name,
        "\x93": PickleReader.stack_name,
        "Q": PickleReader.storage,
        "R": PickleReader.call,
        "b": PickleReader.build,
    }.items()
}
