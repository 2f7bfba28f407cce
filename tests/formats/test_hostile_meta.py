"""Damaged and hostile torch files and Meta folders: one line, quickly, in little memory, and nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.formats.pickle_reader import read_pickle
from tests.small_files import Shape
from tests.torch_files import (
    Entry,
    Saved,
    View,
    entries_of,
    meta_state,
    params_of,
    torch_bytes,
    write_meta,
    write_unzipped,
    zip_bytes,
)

SHAPE = Shape(dim=8, hidden_dim=12, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=20, tied=False)


def refuse(path: Path, field: str = "", problem: str = "") -> None:
    """Opening ``path`` fails in one line that names a file of it, the field and what to do."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ModelFormatError) as caught:
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (4 << 20)
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 5  # under 1 second where nothing traces it
    error, message = caught.value, str(caught.value)
    assert message.startswith(str(path.parent))
    assert message.isprintable()
    assert len(message) < 600
    assert field in error.field, message
    assert problem in error.problem, message
    assert len(error.remedy) > 5


def pickle_in_a_folder(folder: Path, data: bytes) -> Path:
    """A model whose data.pkl is ``data``."""
    write_meta(folder, SHAPE)
    saved = Saved(meta_state(SHAPE))
    saved.data = data
    (folder / "consolidated.00.pth").write_bytes(zip_bytes(entries_of(saved)))
    return folder


class RunsSomething:
    """What pickle would run: a marker that would be left in the working folder."""

    def __reduce__(self) -> Any:
        return os.system, ("touch it_was_run",)


class RunsCode:
    def __reduce__(self) -> Any:
        return exec, ("open('it_was_run', 'w')",)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"ccollections\nOrderedDict\n)R"
PICKLES: dict[str, tuple[bytes, str]] = {
    "os.system": (pickle.dumps({"a": RunsSomething()}, 2), "system"),
    "os.system by STACK_GLOBAL": (pickle.dumps({"a": RunsSomething()}, 4), "system"),
    "exec by STACK_GLOBAL": (pickle.dumps(RunsCode(), 4), "builtins.exec"),
    "eval by GLOBAL": (b"\x80\x02cbuiltins\neval\n" + text("1") + b"\x85R.", "builtins.eval"),
    "a class of NumPy": (pickle.dumps(np.zeros(3), 2), "numpy"),
    "an attribute of an allowed name": (b"\x80\x02ctorch\nFloatStorage.__class__\n.", "FloatStorage.__class__"),
    "INST": (b"\x80\x02(ios\nsystem\n.", "opcode"),
    "OBJ": (b"\x80\x02(ctorch\nSize\no.", "opcode"),
    "NEWOBJ": (b"\x80\x02ctorch\nSize\n)\x81.", "opcode"),
    "an extension code": (b"\x80\x02\x82\x01.", "opcode"),
    "a persistent id as text": (b"\x80\x02Pos.system\n.", "opcode"),
    "STACK_GLOBAL of numbers": (b"\x80\x04K\1K\2\x93.", "no text"),
    "calls a text": (b"\x80\x02" + text("os.system") + text("ls") + b"\x85R.", "calls what is no function"),
    "calls a storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
    "OrderedDict of arguments": (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "calls collections.OrderedDict"),
    "attributes of a dict": (b"\x80\x02}}" + text("__class__") + b"Nsb.", "attributes"),
    "attributes of a number": (b"\x80\x02K\1}b.", "no dict"),
    "no STOP": (b"\x80\x02}", "cut short"),
    "nothing": (b"\x80", "cut short"),
    "STOP at once": (b"\x80\x02.", "ends with 0"),
    "two objects": (b"\x80\x02NN.", "ends with 2"),
    "an open mark": (b"\x80\x02(N.", "ends with"),
    "protocol 77": (b"\x80\x4d.", "protocol 77"),
    "an unknown opcode": (b"\x80\x02\xff.", "opcode"),
    "a text beyond the end": (b"\x80\x02X\xff\xff\xff\x7fabc", "cut short"),
    "a text of 2^63": (b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"abc", "cut short"),
    "a text that is none": (b"\x80\x02X\2\0\0\0\xff\xfe.", "no UTF-8"),
    "a frame beyond the end": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", "frame"),
    "LONG4 of 2^31 bytes": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\1.", "opcode"),
    "LONG1 of 255 bytes": (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "255 bytes"),
    "a name without an end": (b"\x80\x02c" + b"a" * 5000 + b"\n" + b"b\n.", "without an end"),
    "recalls what is not there": (b"\x80\x02h\7.", "recalls object 7"),
    "stores nothing": (b"\x80\x02q\0.", "empty stack"),
    "pops below a mark": (b"\x80\x02N(\x85.", "empty stack"),
    "goes back to no mark": (b"\x80\x02t.", "mark"),
    "appends to a number": (b"\x80\x02K\1K\2a.", "no list"),
    "appends to a tuple": (b"\x80\x02)K\2a.", "no list"),
    "sets an item of a list": (b"\x80\x02]NNs.", "no dict"),
    "a key without a value": (b"\x80\x02}(Nu.", "without a value"),
    "a tuple as a key": (b"\x80\x02})Ns.", "tuple as a dict's key"),
    "a list as a key": (b"\x80\x02}]Ns.", "list as a dict's key"),
    "a persistent id of no storage": (b"\x80\x02" + text("storage") + b"\x85Q.", "storage"),
    "a storage of floats that is a text": (
        b"\x80\x02(" + text("storage") + text("torch.FloatStorage") + text("0") + text("cpu") + b"K\1tQ.", "storage",
    ),
    "a storage of True elements": (STORAGE.replace(b"K\x04", b"\x88") + b".", "storage"),
    "a storage of -1 elements": (STORAGE.replace(b"K\x04", b"J\xff\xff\xff\xff") + b".", "storage"),
    "a storage of 2^70 elements": (STORAGE.replace(b"K\x04", b"\x8a\x09" + bytes(8) + b"\x40") + b".", "storage"),
    "a tensor of a number": (REBUILD + b"(K\1K\0K\4\x85K\1\x85\x89" + HOOKS + b"tR.", "arguments"),
    "a negative offset": (REBUILD + b"(" + STORAGE + b"J\xff\xff\xff\xffK\4\x85K\1\x85\x89" + HOOKS + b"tR.", "offset"),
    "a negative stride": (
        REBUILD + b"(" + STORAGE + b"K\0K\4\x85J\xff\xff\xff\xff\x85\x89" + HOOKS + b"tR.", "stride",
    ),
    "a shape that is a number": (REBUILD + b"(" + STORAGE + b"K\0K\4K\1\x85\x89" + HOOKS + b"tR.", "shape"),
    "a shape of texts": (REBUILD + b"(" + STORAGE + b"K\0" + text("4") + b"\x85K\1\x85\x89" + HOOKS + b"tR.", "shape"),
    "more axes than strides": (REBUILD + b"(" + STORAGE + b"K\0K\2K\2\x86K\1\x85\x89" + HOOKS + b"tR.", "2 axes"),
    "1,000 axes": (REBUILD + b"(" + STORAGE + b"K\0(" + b"K\1" * 1000 + b"t)\x89" + HOOKS + b"tR.", "shape"),
    "a list at the root": (b"\x80\x02].", "no dict"),
    "a list that holds itself": (b"\x80\x02]q\0h\0a.", "no dict"),
    "a dict that holds itself": (b"\x80\x02}q\0" + text("tok_embeddings.weight") + b"h\0s.", "no tensor"),
    "a dict of numbers": (b"\x80\x02}K\1K\2s.", "no dict of named"),
    "an empty dict": (b"\x80\x02}.", "no Llama"),
    "dicts without end": (b"\x80\x02" + b"}" * 400_000 + b".", "memory"),
    "lists in lists": (b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".", "memory"),
    "tuples in tuples": (b"\x80\x02)" + b"\x85" * 300_000 + b".", "memory"),
    "a memo without end": (b"\x80\x02N" + b"\x94" * 300_000 + b".", "memory"),
    "marks without end": (b"\x80\x02" + b"(" * 300_000 + b".", "memory"),
    "the same list, again and again": (b"\x80\x02]q\0" + b"h\0a" * 200_000 + b".", "memory"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "problem"), PICKLES.values(), ids=PICKLES)
def test_a_hostile_pickle(data: bytes, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(pickle_in_a_folder(tmp_path / "model", data), "", problem)
    assert not (tmp_path / "it_was_run").exists()


def laughs(n: int) -> bytes:
    """A list of ten times the same list of ten times the same list ...: 10^n objects to whoever walks them."""
    levels = (b"er" + struct.pack("<I", i) + (b"j" + struct.pack("<I", i)) * 9 for i in range(1, n))
    return b"](" * n + b"N" + b"".join(levels) + b"e"


def test_a_billion_laughs_is_read_but_never_walked(tmp_path: Path) -> None:
    found = read_pickle(laughs(300) + b".", Path("x"), 0)
    assert len(found) == 10
    assert found[0] is found[9]
    data = b"\x80\x02}" + text("tok_embeddings.weight") + laughs(300) + b"s."
    refuse(pickle_in_a_folder(tmp_path / "model", data), "tok_embeddings", "no tensor")
    for name in ("dim", "vocab_size", "max_seq_len", "norm_eps", "n_kv_heads", "use_scaled_rope", "whatever"):
        saved = Saved({"model": meta_state(SHAPE), "model_args": {**params_of(SHAPE), name: "here"}})
        here = saved.data.index(text("here"))
        rest = saved.data[here + len(text("here")) + 2 :]  # and the two bytes that remember it
        saved.data = saved.data[:here] + laughs(300) + rest
        (tmp_path / "ckpt.pt").write_bytes(zip_bytes(entries_of(saved)))
        refuse(tmp_path / "ckpt.pt", name)


def test_steps_are_bounded_whatever_the_memory() -> None:
    start = time.process_time()
    for data in (b"}" * 10**6, b"K\1" * 10**6, b"ctorch\nSize\n" * 10**6, b"(" * 10**6, b")" + b"\x85" * 10**6):
        with pytest.raises(ModelFormatError, match="steps"):
            read_pickle(data, Path("x"), 1 << 50)
    assert time.process_time() - start < 10


def good_entries() -> list[Entry]:
    return entries_of(Saved(meta_state(SHAPE)))


def change(index: int, **changes: Any) -> Callable[[list[Entry]], None]:
    def edit(entries: list[Entry]) -> None:
        for name, value in changes.items():
            setattr(entries[index], name, value)

    return edit


def rename_top(entries: list[Entry]) -> None:
    for entry in entries:
        entry.name = entry.name.replace("archive", "../../archive")


ZIPS: dict[str, tuple[Callable[[list[Entry]], Any], str, str]] = {
    "a compressed member": (change(0, method=8), "data.pkl", "compressed"),
    "an encrypted member": (change(3, flags=1), "data/1", "encrypted"),
    "sizes that differ": (change(2, stored_size=4), "zip directory", "sizes"),
    "a bomb: a size beyond the file": (change(2, stored_size=1 << 31, size=1 << 31), "data/0", "directory begins"),
    "a storage cut short": (change(2, stored_size=4, size=4), "tok_embeddings", "which should be"),
    "an offset beyond the file": (change(2, offset=1 << 31), "data/0", "bytes"),
    "an offset into the directory": (change(-1, offset=9999999), "version", "bytes"),
    "an offset into another member": (change(3, offset=30), "", "byte"),
    "the same offset twice": (change(3, offset=0), "", ""),
    "a name twice": (lambda entries: entries.append(Entry("archive/data.pkl", b"")), "data.pkl", "twice"),
    "two pickles": (lambda entries: entries.append(Entry("other/data.pkl", b"")), "data.pkl", "2 times"),
    "no pickle": (lambda entries: entries.pop(0), "data.pkl", "0 times"),
    "names that lead out": (rename_top, "../archive/", "no name"),
    "a name from the root": (change(-1, name="/etc/passwd"), "/etc/passwd", "no name"),
    "a name with a backslash": (change(-1, name="archive\\..\\x"), "archive", "no name"),
    "a name of 60,000 bytes": (change(-1, name="x" * 60_000), "zip directory", "60000"),
    "an empty name": (change(-1, name=""), "zip directory", "0 bytes"),
    "a big-endian file": (change(1, data=b"big"), "byteorder", "big"),
    "a byte order of 17 bytes": (change(1, data=b"little little end"), "byteorder", "17 bytes"),
    "a storage is missing": (lambda entries: entries.pop(4), "", "missing"),
    "a storage too many bytes": (change(2, data=bytes(10_000)), "tok_embeddings", "10000"),
    "an empty storage": (change(2, data=b""), "tok_embeddings", "0 bytes"),
    "9,000 members": (
        lambda entries: entries.extend(Entry(f"archive/{i}", b"") for i in range(9000)), "zip directory", "members",
    ),
}  # fmt: skip


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize(("edit", "field", "problem"), ZIPS.values(), ids=ZIPS)
def test_a_hostile_zip(
    edit: Callable[[list[Entry]], Any], field: str, problem: str, zip64: bool, tmp_path: Path
) -> None:
    entries = good_entries()
    edit(entries)
    folder = write_meta(tmp_path / "model", SHAPE)
    path = folder / "consolidated.00.pth"
    path.write_bytes(zip_bytes(entries, zip64))
    refuse(path, field, problem)


def test_a_bomb_that_is_compressed(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "model", SHAPE)
    with zipfile.ZipFile(folder / "consolidated.00.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(50_000_000))
    refuse(folder, "data.pkl", "compressed")


def test_cut_anywhere_or_made_longer(tmp_path: Path) -> None:
    data = torch_bytes(meta_state(SHAPE))
    path = write_meta(tmp_path / "model", SHAPE) / "consolidated.00.pth"
    places = {1, 4, 29, 30, 31, 99, len(data) // 2, *range(len(data) - 100, len(data))}
    for place in sorted(places | set(range(0, len(data), 97)) - {0}):
        path.write_bytes(data[:place])
        refuse(path)
    for more in (1, 22, 5000):
        path.write_bytes(data + bytes(more))
        refuse(path, "zip directory")


def test_any_byte_of_the_ends_changed(tmp_path: Path) -> None:
    """Of the end records and the directory: opened as before, or refused, and never anything else."""
    data = torch_bytes(meta_state(SHAPE))
    path = write_meta(tmp_path / "model", SHAPE) / "consolidated.00.pth"
    rng = random.Random(0)
    n_refused = 0
    for _ in range(400):
        at = len(data) - 1 - rng.randrange(400)
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            open_checkpoint(path)
        except ModelFormatError:
            n_refused += 1
    assert n_refused > 100


def view(size: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> View:
    return View(np.zeros(size, np.float32), offset, shape, strides)


TENSORS: dict[str, tuple[Any, str]] = {
    "past the end of its storage": (view(160, 1, (20, 8), (8, 1)), "needs elements 1 to 161"),
    "far past it": (view(160, 2**40, (20, 8), (8, 1)), "needs elements"),
    "a shape whose product overflows": (view(160, 0, (2**40, 2**40), (2**40, 1)), "needs elements"),
    "transposed": (view(160, 0, (20, 8), (1, 20)), "strides"),
    "one row again and again": (view(8, 0, (20, 8), (0, 1)), "strides"),
    "rows with gaps": (view(400, 0, (20, 8), (16, 1)), "strides"),
    "another shape": (view(160, 0, (8, 20), (20, 1)), ""),
    "one axis": (view(160, 0, (160,), (1,)), "no matrix"),
    "no axis": (view(160, 0, (), ()), "no matrix"),
    "three axes": (view(160, 0, (20, 8, 1), (8, 1, 1)), "no matrix"),
    "nothing": (view(160, 0, (0, 8), (8, 1)), ""),
    "whole numbers": (np.zeros((20, 8), np.int64), "int64"),
    "float64": (np.zeros((20, 8)), "float64"),
    "a number": (3, "no tensor"),
}


@pytest.mark.parametrize(("tensor", "problem"), TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("unzipped", [False, True])
def test_a_hostile_tensor(tensor: Any, problem: str, unzipped: bool, tmp_path: Path) -> None:
    state = {**meta_state(SHAPE), "tok_embeddings.weight": tensor}
    folder = write_meta(tmp_path / "model", SHAPE, vocab_size=20)
    if unzipped:
        (folder / "consolidated.00.pth").unlink()
        write_unzipped(folder / "consolidated.00", state)
    else:
        (folder / "consolidated.00.pth").write_bytes(torch_bytes(state))
    refuse(folder, "", problem)


def test_names_of_tensors(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "model", SHAPE) / "consolidated.00.pth"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layers.0.feed_forward.gate.weight": np.zeros((2, 2), np.float32)}, "gate"),
        ({"layers.0.attention.wq.bias": np.zeros(8, np.float32)}, "bias"),
        ({"layers.1.attention.wq.weight": np.zeros((8, 8), np.float32)}, "layers.1"),
        ({"_orig_mod.norm.weight": np.zeros(8, np.float32)}, "norm.weight"),
        ({"x\x1b[2J\n" * 40: np.zeros(8, np.float32)}, "x"),
        ({"norm.weight": None}, "norm.weight"),
    ]
    for change_names, field in cases:
        path.write_bytes(torch_bytes({**meta_state(SHAPE), **change_names}))
        refuse(path, field)
    for name in meta_state(SHAPE):
        if name not in ("rope.freqs", "output.weight"):
            path.write_bytes(torch_bytes({key: value for key, value in meta_state(SHAPE).items() if key != name}))
            refuse(path, name)


def test_keys_that_lead_out_of_an_unzipped_folder(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "model", SHAPE, unzipped=True)
    shard = folder / "consolidated.00"
    stored = (shard / "data" / "0").read_bytes()
    (folder / "secret").write_bytes(stored)
    data = (shard / "data.pkl").read_bytes()
    for key in ("../../secret", "/etc/passwd", "", "a" * 100, "..", "0\0"):
        (shard / "data.pkl").write_bytes(data.replace(text("0"), text(key), 1))
        refuse(folder, "tok_embeddings", "no such name")
    (shard / "data.pkl").write_bytes(data)
    (shard / "data" / "0").unlink()
    refuse(folder, "tok_embeddings", "missing")
    (shard / "data" / "0").mkdir()
    refuse(folder, "tok_embeddings", "missing")
    (shard / "data" / "0").rmdir()
    os.mkfifo(shard / "data" / "0")
    refuse(folder, "tok_embeddings", "missing")
    (shard / "data.pkl").unlink()
    refuse(folder)


PARAMS: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "params.json"),
    "nested deep": ("[" * 100_000, "params.json"),
    "a list": ("[1]", "params.json"),
    "a vast number": ('{"dim": 1' + "0" * 10_000 + "}", "params.json"),
    "no UTF-8": (b"\xff\xfe{}", "params.json"),
    "empty object": ("{}", "dim"),
    "dim is a text": ({"dim": "8"}, "dim"),
    "dim is true": ({"dim": True}, "dim"),
    "dim is 8.0": ({"dim": 8.0}, "dim"),
    "dim is another": ({"dim": 16}, "tok_embeddings"),
    "dim is vast": ({"dim": 10**400}, "dim"),
    "dim is negative": ({"dim": -8}, "dim"),
    "no heads": ({"n_heads": 0}, "n_heads"),
    "heads that do not divide": ({"n_heads": 3, "n_kv_heads": 3}, "n_heads"),
    "more heads than dim": ({"n_heads": 99, "n_kv_heads": 99}, "head_dim"),
    "key heads that do not divide": ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads"),
    "key heads of text": ({"n_kv_heads": "1"}, "n_kv_heads"),
    "other key heads": ({"n_kv_heads": 2}, "layers.0.attention.wk"),
    "more layers": ({"n_layers": 2}, "layers.1"),
    "layers without end": ({"n_layers": 10**9}, "n_layers"),
    "another vocabulary": ({"vocab_size": 32000}, "vocab_size"),
    "a vocabulary of lists": ({"vocab_size": [[]]}, "vocab_size"),
    "eps is NaN": ({"norm_eps": float("nan")}, "norm_eps"),
    "eps is a list": ({"norm_eps": [1e-5]}, "norm_eps"),
    "theta is 0": ({"rope_theta": 0}, "rope_theta"),
    "theta is null": ({"rope_theta": None}, "rope_theta"),
    "positions of text": ({"max_seq_len": "many"}, "max_seq_len"),
    "no positions": ({"max_seq_len": 0}, "max_seq_len"),
    "scaled by a text": ({"use_scaled_rope": "yes"}, "use_scaled_rope"),
    "scaled by 0": ({"use_scaled_rope": True, "rope_scale_factor": 0}, "rope_scale_factor"),
    "scaled by infinity": ({"use_scaled_rope": True, "rope_scale_factor": float("inf")}, "rope_scale_factor"),
    "scaled by a list": ({"use_scaled_rope": True, "rope_scale_factor": [8]}, "rope_scale_factor"),
    "scaled with a theta of nothing": ({"use_scaled_rope": True, "rope_theta": 5e-324}, "use_scaled_rope"),
    "experts": ({"moe": {"num_experts": 8}}, "moe"),
    "quantised": ({"quantization_args": {"spinquant": True}}, "quantization_args"),
    "a vision model": ({"vision_chunk_size": 448}, "vision_chunk_size"),
    "a window": ({"sliding_window": 4096}, "sliding_window"),
    "terminal escapes": ({"\x1b[2J\n": 1}, "\x1b"),
}


@pytest.mark.parametrize(("params", "field"), PARAMS.values(), ids=PARAMS)
def test_hostile_params(params: Any, field: str, tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "model", SHAPE)
    if isinstance(params, dict) and params:
        params = json.dumps({**params_of(SHAPE), **params})
    (folder / "params.json").write_bytes(params if isinstance(params, bytes) else params.encode())
    refuse(folder, field)


def test_params_that_are_no_file(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "model", SHAPE)
    (folder / "params.json").unlink()
    refuse(folder, "path", "is missing")
    os.mkfifo(folder / "params.json")
    refuse(folder, "path", "no regular file")
    (folder / "params.json").unlink()
    (folder / "params.json").write_bytes(b" " * (1 << 21) + b"{}")
    refuse(folder, "length")


def test_shards_that_do_not_fit_together(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "model", SHAPE, 2)
    first, second = (folder / f"consolidated.0{i}.pth" for i in range(2))
    good = second.read_bytes()
    second.unlink()
    refuse(folder, "tok_embeddings")  # half a model
    (folder / "consolidated.03.pth").write_bytes(good)
    refuse(folder, "consolidated.01.pth", "is missing")
    (folder / "consolidated.03.pth").unlink()
    second.write_bytes(torch_bytes(meta_state(SHAPE)))
    refuse(folder, "", "another shape")
    second.write_bytes(torch_bytes(meta_state(SHAPE, np.float16)))
    refuse(folder, "", "another shape or type")
    state = meta_state(SHAPE)
    del state["layers.0.attention.wo.weight"]
    second.write_bytes(torch_bytes(state))
    refuse(folder, "layers.0.attention.wo.weight", "not in each")
    second.write_bytes(good[:-10])
    refuse(folder, "zip directory")
    second.write_bytes(good)
    assert open_checkpoint(folder).config.dim == SHAPE.dim
    first.write_bytes(torch_bytes({"model": meta_state(SHAPE), "model_args": params_of(SHAPE)}))
    refuse(folder, "model")
    first.write_bytes(b"PK\x03\x04 but no zip" * 9)
    refuse(folder)


def test_a_training_checkpoint_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    args: dict[Any, Any] = {**params_of(SHAPE), "max_seq_len": 8}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": meta_state(SHAPE), "model_args": {**args, "attention_type": "memory_attention"}}, "attention_type"),
        ({"model": meta_state(SHAPE), "model_args": {**args, 5: 6}}, "5"),
        ({"model": meta_state(SHAPE), "model_args": {**args, "dim": 9}}, "n_heads"),
        ({"model": [1], "model_args": args}, "data.pkl"),
        ({"model": meta_state(SHAPE), "model_args": [args]}, "model"),
        ({"model": {}, "model_args": args}, "tok_embeddings"),
    ]
    for value, field in cases:
        path.write_bytes(torch_bytes(value))
        refuse(path, field)
