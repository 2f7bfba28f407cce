"""Damaged and hostile files: each is a ModelFormatError of one line that names the file, the field and what to do."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from llamagpu.checkpoint import Checkpoint, TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats import native, open_checkpoint
from llamagpu.tokenizers import open_spec, read_spec
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v1_bytes, v2_bytes

SHAPE = Shape()


def native_bytes(folder: Path) -> bytes:
    source = folder / "source.bin"
    source.write_bytes(v2_bytes(SHAPE, random_weights(SHAPE), 8))
    opened = open_checkpoint(source)
    spec = TokenizerSpec("llama2c", tokenizer_bin())
    native.write(folder / "native.bin", Checkpoint(source, "", opened.config, opened.tensors, spec))
    return (folder / "native.bin").read_bytes()


MAKERS: dict[str, Callable[[Path], bytes]] = {
    "v0": lambda folder: v0_bytes(SHAPE, random_weights(SHAPE)),
    "v1": lambda folder: v1_bytes(SHAPE, random_weights(SHAPE)),
    "v2": lambda folder: v2_bytes(SHAPE, random_weights(SHAPE), 8),
    "native": native_bytes,
}


def refuse(path: Path, field: str = "") -> ModelFormatError:
    """Opening must fail, in one line that names the file and the field and says what to do; no big allocation."""
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError) as caught:
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * (path.stat().st_size if path.is_file() else 0) + (1 << 20)
    finally:
        tracemalloc.stop()
    error = caught.value
    message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert field in error.field
    assert "; " in message
    assert len(error.remedy) > 5
    return error


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("change", [-1, +1, -100, +4096])
def test_a_wrong_length_is_refused(make: Callable[[Path], bytes], change: int, tmp_path: Path) -> None:
    data = make(tmp_path)
    path = tmp_path / "model.bin"
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    refuse(path)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_cut_anywhere_is_refused(make: Callable[[Path], bytes], tmp_path: Path) -> None:
    data = make(tmp_path)
    path = tmp_path / "model.bin"
    for length in [1, 4, 7, 8, 9, 27, 28, 29, 36, 40, 41, 255, 256, 257, 300, len(data) // 2]:
        path.write_bytes(data[:length])
        refuse(path)


FIELDS = ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"]


@pytest.mark.parametrize("make", [MAKERS["v0"], MAKERS["v1"], MAKERS["v2"]], ids=["v0", "v1", "v2"])
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1, 3, 1 << 20])
@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_header_field_is_refused(make: Callable[[Path], bytes], field: str, value: int, tmp_path: Path) -> None:
    data = bytearray(make(tmp_path))
    at = (0 if make is MAKERS["v0"] else 8) + 4 * FIELDS.index(field)
    struct.pack_into("<i", data, at, value)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    if field == "max_seq_len" and make is not MAKERS["v0"] and 0 < value < 1 << 24:
        assert open_checkpoint(path).config.max_seq_len == value  # these files hold nothing of that length
    elif value <= 0 and not (field == "vocab_size" and make is MAKERS["v0"] and value == -1):
        refuse(path, field)
    else:  # the field itself may be possible, and then its neighbour or the length gives it away
        refuse(path)


@pytest.mark.parametrize("value", [0, -1, 7, 2**31 - 1, -(2**31)])
def test_a_wrong_group_size_is_refused(value: int, tmp_path: Path) -> None:
    data = bytearray(MAKERS["v2"](tmp_path))
    struct.pack_into("<i", data, 37, value)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    refuse(path, "group_size")


def test_a_wrong_version_and_flag_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for at, value, field in [(4, 3, "version"), (4, 0, "version"), (36, 2, "shared_classifier")]:
        data = bytearray(MAKERS["v2"](tmp_path))
        data[at] = value
        path.write_bytes(data)
        refuse(path, field)


def test_what_is_no_model_at_all(tmp_path: Path) -> None:
    refuse(tmp_path, "path")
    path = tmp_path / "model.bin"
    path.write_bytes(b"")
    refuse(path, "length")
    path.write_text("This is a text file, and a rather long one, since someone saved the wrong page.\n" * 10)
    refuse(path, "header")
    path.write_bytes(bytes(100_000))
    refuse(path, "header")
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "path")
    refuse(tmp_path / "missing.bin", "path")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(MAKERS["v0"](tmp_path))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: step down to nobody for the moment
        for folder in (tmp_path, *tmp_path.parents):
            if folder.owner() == "root" and folder.stat().st_mode & 0o777 == 0o700:
                monkeypatch.setattr("builtins.open", forbid(path))
                refuse(path, "path")
                return
        os.seteuid(65534)
    try:
        assert "chmod" in refuse(path, "path").remedy
    finally:
        os.seteuid(os.getuid())


def forbid(path: Path) -> Callable[..., object]:
    """An open() that answers as the system does for a file without permission."""

    def fake_open(name: object, *args: object, **kwargs: object) -> object:
        assert Path(str(name)) == path
        raise PermissionError(13, "Permission denied", str(name))

    return fake_open


def edit_native(data: bytes, edit: Callable[[dict[str, dict[str, object]]], None]) -> bytes:
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


NORM, OTHER_NORM, QUANTIZED = "norm.weight", "layers.0.ffn_norm.weight", "layers.0.attention.wq.weight"
EDITS: dict[str, tuple[str, Callable[[dict], object]]] = {  # type: ignore[type-arg]
    "no metadata": ("__metadata__", lambda h: h.pop("__metadata__")),
    "another version": ("format_version", lambda h: h["__metadata__"].update({"llamagpu.format_version": "99"})),
    "no config": ("config", lambda h: h["__metadata__"].pop("config")),
    "config is no JSON": ("config", lambda h: h["__metadata__"].update(config="{")),
    "config nested deep": ("config", lambda h: h["__metadata__"].update(config="[" * 100_000)),
    "config is a list": ("config", lambda h: h["__metadata__"].update(config="[1]")),
    "config lacks dim": ("dim", lambda h: change_config(h, dim=None)),
    "dim is a text": ("dim", lambda h: change_config(h, dim="16")),
    "dim is true": ("dim", lambda h: change_config(h, dim=True)),
    "dim is another": ("tok_embeddings", lambda h: change_config(h, dim=32)),
    "dim is vast": ("dim", lambda h: change_config(h, dim=10**30)),
    "more layers than there are": ("layers.2", lambda h: change_config(h, n_layers=3)),
    "fewer layers than there are": ("layers.1", lambda h: change_config(h, n_layers=1)),
    "eps is NaN": ("norm_eps", lambda h: change_config(h, norm_eps=float("nan"))),
    "theta is zero": ("rope_theta", lambda h: change_config(h, rope_theta=0)),
    "eps is beyond float": ("norm_eps", lambda h: change_config(h, norm_eps=10**400)),
    "a tensor of many dimensions": ("tensor", lambda h: h.update(tensor={"dtype": "F32", "shape": [1] * 70 + [0],
                                                                         "data_offsets": [0, 0]})),
    "an empty tensor of vast shape": ("tensor", lambda h: h.update(tensor={"dtype": "F32", "shape": [0, 2**62],
                                                                           "data_offsets": [0, 0]})),
    "very many tensors": ("header", lambda h: h.update({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                                                        for i in range(50_000)})),
    "odd head_dim": ("head_dim", lambda h: change_config(h, head_dim=3)),
    "kv heads do not divide": ("n_kv_heads", lambda h: change_config(h, n_kv_heads=3)),
    "an unknown architecture": ("architecture", lambda h: change_config(h, architecture="mamba")),
    "an unknown rope": ("rope_layout", lambda h: change_config(h, rope_layout="spiral")),
    "tied_head is 1": ("tied_head", lambda h: change_config(h, tied_head=1)),
    "an unknown config field": ("config", lambda h: change_config(h, wings=2)),
    "a negative window": ("sliding_window", lambda h: change_config(h, sliding_window=-1)),
    "too few RoPE factors": ("rope_factors", lambda h: change_config(h, rope_factors=[1.0])),
    "a RoPE factor of 0": ("rope_factors", lambda h: change_config(h, rope_factors=[0.0, 1.0])),
    "RoPE factors of text": ("rope_factors", lambda h: change_config(h, rope_factors=["a", "b"])),
    "a bias that is not there": ("layers.0.attention.wq.bias", lambda h: change_config(h, qkv_bias=True)),
    "a bias that is a number": ("qkv_bias", lambda h: change_config(h, qkv_bias=1)),
    "a tensor is missing": (NORM, lambda h: h.update(other=h.pop(NORM))),
    "a tensor of the wrong shape": (NORM, lambda h: h[NORM].update(shape=[4, 4])),
    "a tensor of the wrong type": (NORM, lambda h: h[NORM].update(dtype="I32")),
    "negative offsets": ("header", lambda h: h[NORM].update(data_offsets=[-4, 60])),
    "offsets past the end": ("header", lambda h: h[NORM].update(data_offsets=[1 << 40, (1 << 40) + 64])),
    "overlapping tensors": ("header", lambda h: h[NORM].update(data_offsets=h[OTHER_NORM]["data_offsets"])),
    "shape times dtype overflows": ("header", lambda h: h[NORM].update(shape=[1 << 62, 4])),
    "scales are missing": (f"{QUANTIZED}.q", lambda h: h.update(x=h.pop(f"{QUANTIZED}.scales"))),
    "group size is no number": (".q", lambda h: h["__metadata__"].update(group_size="eight")),
    "group size is zero": (".q", lambda h: h["__metadata__"].update(group_size="0")),
    "group size is another": (".q", lambda h: h["__metadata__"].update(group_size="16")),
    "tokenizer is not named": ("tokenizer", lambda h: h["__metadata__"].pop("tokenizer")),
    "tokenizer is not there": ("tokenizer", lambda h: h.update({"norm.x": h.pop("tokenizer")})),
}  # fmt: skip


def change_config(header: dict[str, dict[str, str]], **changes: object) -> None:
    config = json.loads(header["__metadata__"]["config"]) | changes
    header["__metadata__"]["config"] = json.dumps({k: v for k, v in config.items() if v is not None})


@pytest.mark.parametrize(("field", "edit"), EDITS.values(), ids=EDITS)
def test_a_native_file_with_a_lie_in_its_header(
    field: str, edit: Callable[[dict[str, dict[str, object]]], None], tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(edit_native(native_bytes(tmp_path), edit))
    refuse(path, field)


def test_a_native_file_with_a_name_twice(tmp_path: Path) -> None:
    data = native_bytes(tmp_path)
    length = struct.unpack_from("<Q", data)[0]
    text = data[8 : 8 + length].replace(b'"layers.0.ffn_norm.weight"', b'"layers.1.ffn_norm.weight"')
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    refuse(path, "header")


def test_an_absurd_header_length(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for length in [2**63, 2**64 - 1, 99_999_999]:
        path.write_bytes(struct.pack("<Q", length) + b"{" + bytes(1000))
        refuse(path)


def test_an_unknown_tokenizer_inside(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(edit_native(native_bytes(tmp_path), lambda h: h["__metadata__"].update(tokenizer="word2vec")))
    checkpoint = open_checkpoint(path)
    assert checkpoint.tokenizer is not None
    with pytest.raises(ModelFormatError, match="word2vec"):
        open_spec(checkpoint.tokenizer, path)


def tokenizer_cases() -> dict[str, bytes]:
    good = tokenizer_bin()

    def patched(at: int, value: bytes) -> bytes:
        return good[:at] + value + good[at + len(value) :]

    return {
        "cut by one byte": good[:-1],
        "one byte too long": good + b"x",
        "only a length": good[:4],
        "three bytes": good[:3],
        "zero maximum": patched(0, struct.pack("<I", 0)),
        "vast maximum": patched(0, struct.pack("<I", 2**32 - 1)),
        "a length past the end": patched(8, struct.pack("<I", 2**32 - 1)),
        "a length of zero": patched(8, struct.pack("<I", 0)),
        "a score that is no number": patched(4, struct.pack("<f", float("nan"))),
        "bytes in another order": good.replace(b"<0x41>", b"<0x99>"),
        "a byte token that names none": good.replace(b"<0x41>", b"<0x-1>"),
        "too few tokens": tokenizer_bin(259)[: -len(struct.pack("<fI", 0, 0)) - 6],
        "a text": b"Not a tokenizer, but somebody's letter to a friend.\n" * 20,
        "a broken protobuf": b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02" + bytes(range(200)),
    }


@pytest.mark.parametrize("data", tokenizer_cases().values(), ids=tokenizer_cases())
def test_a_damaged_tokenizer_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data)
    with pytest.raises(ModelFormatError) as caught:
        open_spec(read_spec(path), path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_messages_never_hold_terminal_escapes(tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b[2J\nname.bin"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()
