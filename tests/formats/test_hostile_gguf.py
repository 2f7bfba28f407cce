"""Damaged and hostile GGUF files: each is a ModelFormatError of one line that names file, field and remedy."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.formats.gguf_header import MAX_KEYS, MAX_STRINGS, MAX_TENSORS
from tests.formats.gguf_files import File, Shape, Tensor, small_model, small_vocabulary
from tests.formats.test_hostile_files import refuse

SMALL = Shape(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16)
ARCHITECTURE = "general.architecture"
WQ, NORM, EMBEDDING = "blk.1.attn_q.weight", "blk.0.attn_norm.weight", "token_embd.weight"


def small_file(version: int = 3) -> File:
    file, _ = small_model("llama", ["Q4_0", "Q8_0", "F16"], SMALL)
    file.version = version
    file.keys |= small_vocabulary()
    return file


@pytest.mark.parametrize("version", [1, 2, 3])
def test_cut_anywhere_is_refused(version: int, tmp_path: Path) -> None:
    """At every border between sections and around it, in the middle of each, and at every byte of the first keys."""
    file = small_file(version)
    data = file.to_bytes()
    path = tmp_path / "model.gguf"
    whole = len(data) - (-len(list(file.tensors.values())[-1].data) % 32)  # what is behind the last tensor may be lost
    borders = sorted([*file.marks.values(), whole])
    middles = [(a + b) // 2 for a, b in zip([0, *borders], borders, strict=False)]
    lengths = {n for border in borders for n in range(border - 9, border + 9)} | set(middles) | set(range(4, 200))
    for length in sorted(n for n in lengths if n < whole):
        path.write_bytes(data[:length])
        refuse(path)
    path.write_bytes(data)
    assert open_checkpoint(path).config.n_layers == 2


def test_counts_lengths_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    good = small_file().to_bytes()
    for field, at, value in [
        ("version", 4, 0), ("version", 4, 4), ("version", 4, 2**32 - 1), ("header", 8, 2**64 - 1), ("header", 8, 2**62),
        ("header", 8, MAX_TENSORS + 1), ("header", 16, MAX_KEYS + 1), ("header", 16, 2**63), ("key 0", 24, 2**64 - 1),
        ("key 0", 24, 0), ("key 0", 24, 1025), (ARCHITECTURE, 52, 13), (ARCHITECTURE, 52, 2**32 - 1),
        (ARCHITECTURE, 56, 2**64 - 1), (ARCHITECTURE, 56, 2**31),
    ]:  # fmt: skip
        data = bytearray(good)
        width = 4 if field == "version" or at == 52 else 8
        data[at : at + width] = value.to_bytes(width, "little")
        path.write_bytes(data)
        refuse(path, field)
    path.write_bytes(good[:4] + struct.pack(">I", 3) + good[8:])
    assert "big-endian" in refuse(path, "version").problem
    for attribute, n_true in (("n_tensors", len(small_file().tensors)), ("n_keys", len(small_file().keys))):
        for n in (0, 1, n_true - 1, n_true + 1, n_true + 1000):
            file = small_file()
            setattr(file, attribute, n)
            path.write_bytes(file.to_bytes())
            refuse(path)


def without(name: str) -> Callable[[File], object]:
    return lambda file: file.tensors.pop(name)


def keys(**changes: tuple[Any, ...]) -> Callable[[File], object]:
    """Keys of the architecture, dots written as two underscores."""
    return lambda file: file.keys.update({f"llama.{key.replace('__', '.')}": value for key, value in changes.items()})


def general(key: str, *value: Any) -> Callable[[File], object]:
    return lambda file: file.keys.update({key: value})


def tensor(name: str, **changes: Any) -> Callable[[File], object]:
    def change(file: File) -> None:
        for field, value in changes.items():
            setattr(file.tensors[name], field, value)

    return change


def added(name: str, *shape: int, kind: str | int = "F32") -> Callable[[File], object]:
    def change(file: File) -> None:
        file.tensors[name] = Tensor(shape, kind, bytes(4 * int(np.prod(shape))))

    return change


def renamed(old: str, new: str) -> Callable[[File], object]:
    return lambda file: file.tensors.update({new: file.tensors.pop(old)})


DEEP: tuple[Any, ...] = ("u8", [])
for _ in range(10):
    DEEP = ("arr", [DEEP])

EDITS: dict[str, tuple[str, Callable[[File], object]]] = {
    "no architecture": ("general.architecture", lambda f: f.keys.pop("general.architecture")),
    "architecture is a number": ("general.architecture", general("general.architecture", "u32", 1)),
    "another architecture": ("general.architecture", general("general.architecture", "str", "mamba")),
    "an adapter": ("general.type", general("general.type", "str", "adapter")),
    "an architecture with escapes": ("general.architecture", general("general.architecture", "str", "\x1b[2J\n" * 50)),
    "an architecture that is no UTF-8": ("general.architecture", general("general.architecture", "str", b"\xff\xfe")),
    "a key that is no ASCII": ("key", general("général", "u32", 1)),
    "an unknown key": ("llama.wings", keys(wings=("u32", 2))),
    "experts": ("llama.expert_count", keys(expert_count=("u32", 8))),
    "experts that are a text": ("llama.expert_count", keys(expert_count=("str", "8"))),
    "not causal": ("llama.attention.causal", keys(attention__causal=("bool", False))),
    "no embedding length": ("llama.embedding_length", lambda f: f.keys.pop("llama.embedding_length")),
    "embedding length is a text": ("llama.embedding_length", keys(embedding_length=("str", "64"))),
    "embedding length is a float": ("llama.embedding_length", keys(embedding_length=("f32", 64.0))),
    "embedding length is vast": ("dim", keys(embedding_length=("u64", 2**63))),
    "embedding length is negative": ("dim", keys(embedding_length=("i32", -64))),
    "another embedding length": ("tok_embeddings", keys(embedding_length=("u32", 128))),
    "no heads": ("llama.attention.head_count", keys(attention__head_count=("u32", 0))),
    "heads by layer": ("llama.attention.head_count", keys(attention__head_count=("arr", "i32", [4, 2]))),
    "no heads of keys": ("n_kv_heads", keys(attention__head_count_kv=("u32", 0))),
    "heads that do not divide": ("n_kv_heads", keys(attention__head_count_kv=("u32", 3))),
    "values of another width": ("llama.attention.value_length", keys(attention__value_length=("u32", 8))),
    "odd heads": ("head_dim", keys(attention__key_length=("u32", 15), attention__value_length=("u32", 15),
                                   rope__dimension_count=("u32", 15))),
    "RoPE of a part": ("llama.rope.dimension_count", keys(rope__dimension_count=("u32", 8))),
    "more layers": ("layers.2", keys(block_count=("u32", 3))),
    "fewer layers": ("layers.1", keys(block_count=("u32", 1))),
    "no layers": ("n_layers", keys(block_count=("u32", 0))),
    "very many layers": ("n_layers", keys(block_count=("u32", 2**32 - 1))),
    "no positions": ("max_seq_len", keys(context_length=("u32", 0))),
    "eps is NaN": ("norm_eps", keys(attention__layer_norm_rms_epsilon=("f32", float("nan")))),
    "no eps": ("layer_norm_rms_epsilon", lambda f: f.keys.pop("llama.attention.layer_norm_rms_epsilon")),
    "theta is infinite": ("rope_theta", keys(rope__freq_base=("f32", float("inf")))),
    "an unknown scaling": ("llama.rope.scaling.type", keys(rope__scaling__type=("str", "longrope"))),
    "a negative factor": ("llama.rope.scaling.factor", keys(rope__scaling__factor=("f32", -2.0))),
    "a factor that is NaN": ("llama.rope.scaling.factor", keys(rope__scaling__factor=("f32", float("nan")))),
    "yarn without sense": ("llama.rope.scaling.type", keys(
        rope__scaling__type=("str", "yarn"), rope__scaling__original_context_length=("u64", 2**63))),
    "yarn at theta 1": ("llama.rope.freq_base", keys(rope__scaling__type=("str", "yarn"), rope__freq_base=("f32", 1))),
    "RoPE factors of another width": ("rope_freqs.weight", added("rope_freqs.weight", 9)),
    "RoPE factors of 0": ("rope_factors", added("rope_freqs.weight", 8)),
    "RoPE factors as blocks": ("rope_freqs.weight", lambda f: f.tensors.update(
        {"rope_freqs.weight": Tensor((1, 32), "Q8_0", bytes(34))})),
    "a window that is negative": ("sliding_window", keys(attention__sliding_window=("i32", -1))),
    "blocks of another layout": ("general.quantization_version", general("general.quantization_version", "u32", 1)),
    "alignment of 0": ("general.alignment", general("general.alignment", "u32", 0)),
    "alignment of 24": ("general.alignment", general("general.alignment", "u32", 24)),
    "vast alignment": ("general.alignment", general("general.alignment", "u64", 2**63)),
    "alignment is a text": ("general.alignment", general("general.alignment", "str", "32")),
    "arrays too deep": ("x.y", general("x.y", "arr", "arr", [DEEP])),
    "a chat template that is a number": ("tokenizer.chat_template", general("tokenizer.chat_template", "u32", 1)),
    "a vast chat template": ("tokenizer.chat_template", general("tokenizer.chat_template", "str", "x" * (1 << 21))),
    "tokenizer model is a number": ("tokenizer.ggml.model", general("tokenizer.ggml.model", "u32", 1)),
    "an end token that is a text": ("tokenizer.ggml.eos_token_id", general("tokenizer.ggml.eos_token_id", "str", "2")),
    "a tensor is missing": ("layers.1.attention.wq.weight", without(WQ)),
    "the embedding is missing": (EMBEDDING, without(EMBEDDING)),
    "an unknown tensor": ("blk.0.ffn_gate_inp.weight", added("blk.0.ffn_gate_inp.weight", 4, 64)),
    "a tensor of no layer": ("blk.007.attn_q.weight", added("blk.007.attn_q.weight", 64, 64)),
    "a tensor of two names": ("tensors", added("tok_embeddings.weight", 300, 64)),
    "an unknown bias": ("layers.0.attention_norm.bias", added("blk.0.attn_norm.bias", 64)),
    "some biases of the output": ("layers.1.attention.wo.bias", added("blk.0.attn_output.bias", 64)),
    "a bias of up alone": ("layers.0.feed_forward.w3.bias", added("blk.0.ffn_up.bias", 96)),
    "some biases": ("wk.bias", added("blk.0.attn_q.bias", 64)),
    "a tensor without a name": ("tensor", renamed(WQ, "")),
    "a tensor of a long name": ("tensor", renamed(WQ, "x" * 300)),
    "a tensor named in another script": ("tensor", renamed(WQ, "голова")),
    "a tensor of the wrong shape": ("layers.0.attention_norm", tensor(NORM, shape=(16, 4))),
    "no axes": (NORM, tensor(NORM, shape=())),
    "five axes": (NORM, tensor(NORM, shape=(1, 1, 1, 1, 64))),
    "an empty tensor": (NORM, tensor(NORM, shape=(0,))),
    "a shape that overflows": (WQ, tensor(WQ, shape=(1 << 39, 1 << 39))),
    "a shape beyond 64 bits": (WQ, tensor(WQ, shape=(1 << 63, 4))),
    "rows that blocks do not divide": (WQ, tensor(WQ, shape=(64, 65), kind="Q4_0")),
    "rows of K blocks": (WQ, tensor(WQ, kind="Q6_K")),
    "a type that is not read": (WQ, tensor(WQ, kind="IQ2_XS")),
    "integers": (WQ, tensor(WQ, kind="I32")),
    "a type that is gone": (WQ, tensor(WQ, kind=4)),
    "a type without a number": (WQ, tensor(WQ, kind=999)),
    "a vector of blocks": (NORM, tensor(NORM, kind="Q8_0")),
    "an offset past the end": (NORM, tensor(NORM, offset=1 << 40)),
    "an offset beyond all": (NORM, tensor(NORM, offset=2**64 - 32)),
    "an offset between": (NORM, tensor(NORM, offset=4)),
    "overlapping tensors": ("blk", tensor("blk.0.attn_q.weight", offset=64)),
    "the same place twice": (EMBEDDING, tensor("blk.1.attn_norm.weight", offset=0)),
    "a part of a split model": ("split.count", general("split.count", "u16", 2)),
    "very many parts": ("split.count", general("split.count", "u32", 2**32 - 1)),
}  # fmt: skip


@pytest.mark.parametrize(("field", "edit"), EDITS.values(), ids=EDITS)
def test_a_lie_in_the_header(field: str, edit: Callable[[File], object], tmp_path: Path) -> None:
    file = small_file()
    edit(file)
    path = tmp_path / "model.gguf"
    path.write_bytes(file.to_bytes())
    refuse(path, field)


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for field, edit in (EDITS["a type that is not read"], EDITS["experts"], EDITS["an unknown scaling"]):
        file = small_file()
        edit(file)
        path.write_bytes(file.to_bytes())
        error = refuse(path, field)
        assert "get " in error.remedy
    assert "longrope" in error.problem


@pytest.mark.parametrize("n", [2**64 - 1, 2**63, 2**32, MAX_STRINGS + 1, 10_000_000])
@pytest.mark.parametrize("element", ["u8", "u64", "str", "arr"])
def test_arrays_of_a_length_that_is_not_there(element: str, n: int, tmp_path: Path) -> None:
    file = small_file()
    file.keys["x.array"] = ("arr", element, [])
    data = file.to_bytes()
    at = data.index(b"x.array") + 7 + 4 + 4
    path = tmp_path / "model.gguf"
    path.write_bytes(data[:at] + struct.pack("<Q", n) + data[at + 8 :])
    refuse(path, "x.array")


def test_a_string_of_a_length_that_is_not_there(tmp_path: Path) -> None:
    data = small_file().to_bytes()
    at = data.index(b"<0x41>") - 8
    path = tmp_path / "model.gguf"
    for length in (2**64 - 1, 2**63, 2**63 - 1, len(data), 2**32):
        path.write_bytes(data[:at] + struct.pack("<Q", length) + data[at + 8 :])
        refuse(path, "tokenizer.ggml.tokens")


def test_bytes_behind_the_last_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file().to_bytes() + b"x")
    refuse(path, "length")


@pytest.mark.parametrize("what", ["key", "tensor"])
def test_a_name_twice(what: str, tmp_path: Path) -> None:
    data = small_file().to_bytes()
    old, new = (b"general.name", b"general.nam2") if what == "key" else (b"blk.0.ffn_norm", b"blk.1.ffn_norm")
    if what == "key":
        file = small_file()
        file.keys["general.nam2"] = ("u32", 1)
        old, new, data = new, old, file.to_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data.replace(old, new))
    assert refuse(path, new.decode()).problem == "is there twice"


def test_very_many_empty_strings_are_over_in_a_second(tmp_path: Path) -> None:
    """As many as are let through: a step of the loop each, and no memory."""
    file = small_file()
    file.keys["x.array"] = ("arr", "str", [])
    data = file.to_bytes()
    at = data.index(b"x.array") + 7 + 4 + 4
    path = tmp_path / "model.gguf"
    n = MAX_STRINGS - 300
    path.write_bytes(data[:at] + struct.pack("<Q", n) + bytes(8 * n) + data[at + 8 :])
    start = time.process_time()
    assert open_checkpoint(path).config.n_layers == 2
    assert time.process_time() - start < 1


def test_scales_that_are_no_numbers_are_seen_when_they_are_read(tmp_path: Path) -> None:
    file = small_file()
    wq = next(name for name, stored in file.tensors.items() if stored.kind == "Q8_0" and "attn" in name)
    file.tensors[wq].data = struct.pack("<e", float("nan")) + file.tensors[wq].data[2:]
    path = tmp_path / "model.gguf"
    path.write_bytes(file.to_bytes())
    assert open_checkpoint(path).config.dim == 64
    with pytest.raises(ModelFormatError, match=f"{wq}: has a scale that is no finite number in rows 0 to") as caught:
        llamagpu.load(path, device="cpu")
    assert "\n" not in str(caught.value)


def test_very_many_tensors_take_little_memory(tmp_path: Path) -> None:
    """As many as are let through, as small as they may be."""
    file = File({"general.architecture": ("str", "llama")}, {})
    file.tensors = {f"{i:05}": Tensor((1,), "F32", bytes(4)) for i in range(MAX_TENSORS)}
    path = tmp_path / "model.gguf"
    path.write_bytes(file.to_bytes())
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match=r"token_embd\.weight: is missing"):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + (4 << 20)
    finally:
        tracemalloc.stop()
