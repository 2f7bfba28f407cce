"""llama2Rnn's model files, told from llama2.c's by their length, and its training checkpoints."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu.convert_command import convert
from llamagpu.errors import ModelFormatError
from llamagpu.formats import llama2rnn, open_checkpoint
from llamagpu.inspect_commands import info
from llamagpu.quantization import Int8Matrix
from tests.formats.test_hostile_files import refuse
from tests.memory_model_files import (
    MemoryShape,
    memory_model_bytes,
    memory_weights,
    named,
    rounded,
    training_args,
    training_state,
)
from tests.small_files import MAGIC, Shape, random_weights, tokenizer_bin, v2_bytes
from tests.torch_files import torch_bytes

SHAPES = {
    "grouped, tied": MemoryShape(),
    "as many key heads, untied": MemoryShape(n_kv_heads=4, tied=False, mem_len=6),
    "one row": MemoryShape(n_layers=1, mem_len=1, tied=False),
    "odd sizes": MemoryShape(dim=24, hidden_dim=20, n_heads=3, n_kv_heads=1, vocab_size=11, n_layers=3, mem_len=7),
}


@pytest.mark.parametrize("group_size", [1, 4, 8])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_file_holds_the_written_weights(shape: MemoryShape, group_size: int, tmp_path: Path) -> None:
    weights = memory_weights(shape)
    path = tmp_path / "model.bin"
    path.write_bytes(memory_model_bytes(shape, weights, group_size))
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert (config.architecture, config.mem_len, config.tied_head) == ("memory_llama", shape.mem_len, shape.tied)
    assert (config.dim, config.hidden_dim, config.n_kv_heads) == (shape.dim, shape.hidden_dim, shape.n_kv_heads)
    assert config.endless
    assert "llama2Rnn" in checkpoint.format
    expected = named(rounded(weights, group_size))
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in checkpoint.tensors.items():
        values = tensor.dequantize() if isinstance(tensor, Int8Matrix) else tensor
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_no_header_is_of_both(tmp_path: Path) -> None:
    """All shapes with all lengths of memory, those too that make the low byte of mem_len a flag of llama2.c's."""
    n_looked_at = 0
    for dim, hidden, heads in (
        (64, 172, 8),
        (288, 768, 6),
        (512, 1376, 8),
        (768, 2048, 12),
        (16, 24, 4),
        (4096, 11008, 32),
    ):
        for mem_len in (1, 5, 32, 128, 256, 257, 512, 513, 1024, 65536):
            for group_size in (1, 8, 32, 64, 128, 256, 257):
                for tied in (0, 1):
                    shape = [dim, hidden, 6, heads, heads, 32000, 256]
                    memory = llama2rnn.implied_length(shape, tied, group_size, mem_len)
                    plain = llama2rnn.implied_length(shape, tied, group_size, 0)
                    assert memory is not None
                    assert plain is not None
                    head = struct.pack("<Ii7iiBi", MAGIC, 2, *shape, mem_len, tied, group_size).ljust(64, b"\0")
                    assert llama2rnn.sniff(head, memory)
                    head = struct.pack("<Ii7iBi", MAGIC, 2, *shape, tied, group_size).ljust(64, b"\0")
                    assert not llama2rnn.sniff(head, plain)
                    assert not llama2rnn.sniff(head, memory)
                    n_looked_at += 1
    assert n_looked_at == 840


def test_the_published_sizes() -> None:
    shape = [288, 768, 6, 6, 6, 32000, 256]
    assert llama2rnn.implied_length(shape, 1, 32, 32) == 21815680
    assert llama2rnn.implied_length(shape, 1, 32, 128) == 22479232


def test_plain_files_stay_plain(tmp_path: Path) -> None:
    path = tmp_path / "plain.bin"
    for shape in (Shape(), Shape(tied=False), Shape(n_layers=1, vocab_size=3)):
        path.write_bytes(v2_bytes(shape, random_weights(shape), 8))
        assert open_checkpoint(path).config.architecture == "llama"


@pytest.mark.parametrize("mem_len", [1, 5, 256, 257])
def test_damaged_files_are_refused(mem_len: int, tmp_path: Path) -> None:
    """Cut, lengthened, or with another number in the header: always one line, never another model."""
    shape = MemoryShape(mem_len=mem_len)
    good = memory_model_bytes(shape, memory_weights(shape), 8)
    path = tmp_path / "model.bin"
    for damaged in (good[:-1], good + b"\0", good[:-4096], good[: len(good) // 2], good[:300], good[:256]):
        path.write_bytes(damaged)
        refuse(path, "length")
    for length in (255, 60, 45, 44, 40, 36, 12):
        path.write_bytes(good[:length])
        refuse(path)
    for at, value in ((8, 0), (8, 17), (12, -1), (16, 1 << 30), (20, 3), (24, 3), (28, 301), (36, 0), (36, 1 << 20)):
        data = bytearray(good)
        struct.pack_into("<i", data, at, value)
        path.write_bytes(data)
        refuse(path)
    for value in (0, -1, 7, 1 << 30):
        data = bytearray(good)
        struct.pack_into("<i", data, 41, value)
        path.write_bytes(data)
        refuse(path)
    for flag in (1 - good[40], 2, 255):
        data = bytearray(good)
        data[40] = flag
        path.write_bytes(data)
        refuse(path)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = MemoryShape()
    path, out = tmp_path / "memory.bin", tmp_path / "native.bin"
    path.write_bytes(memory_model_bytes(shape, memory_weights(shape), 8))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    info(str(path))
    shown = capsys.readouterr().out
    assert "llama2Rnn memory model" in shown
    assert "memory_llama" in shown
    assert "no end" in shown
    convert(str(path), str(out))
    info(str(out))
    assert "memory_llama" in capsys.readouterr().out
    settings: dict[str, Any] = {"max_tokens": 50, "temperature": 0.7, "seed": 5}
    texts = ["".join(llamagpu.load(file, "cpu").generate("the", **settings)) for file in (path, out)]
    assert texts[0] == texts[1]


def write_training(path: Path, shape: MemoryShape, state: dict[str, Any] | None = None, **args: Any) -> None:
    state = training_state(shape, memory_weights(shape)) if state is None else state
    prefixed = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    path.write_bytes(torch_bytes({"model": prefixed, "model_args": training_args(shape, **args), "iter_num": 7}))


@pytest.mark.parametrize("tied", [True, False])
def test_a_training_checkpoint(tied: bool, tmp_path: Path) -> None:
    shape = MemoryShape(n_kv_heads=4, tied=tied)
    path = tmp_path / "ckpt.pt"
    write_training(path, shape, theta=10000)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert checkpoint.format == "llama2Rnn training checkpoint"
    assert (config.architecture, config.mem_len, config.tied_head) == ("memory_llama", shape.mem_len, tied)
    assert (config.max_seq_len, config.rope_theta) == (256, 10000.0)
    expected = named(memory_weights(shape))
    assert set(checkpoint.tensors) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(checkpoint.tensors[name]), array, err_msg=name)
    assert np.isfinite(llamagpu.load(path, "cpu").logits(list(range(20)))).all()


ARGS: dict[str, tuple[dict[str, Any], str]] = {
    "its own matrix": ({"do_wm": True}, "do_wm"),
    "no norm": ({"memory_norm": False}, "memory_norm"),
    "no feed-forward": ({"do_memory_ffn": False}, "do_memory_ffn"),
    "its own keys": ({"reuse_kv": False}, "reuse_kv"),
    "adapters": ({"lora": True}, "lora"),
    "normed keys": ({"key_norm": True}, "key_norm"),
    "stretched": ({"extend_method": "logn_train"}, "extend_method"),
    "another attention": ({"attention_type": "attention"}, "attention_type"),
    "a number for a flag": ({"reuse_kv": 1}, "reuse_kv"),
    "another length": ({"memseqlen": 6}, "memseqlen"),
    "a length of text": ({"memseqlen": [[5]]}, "memseqlen"),
    "unknown": ({"wings": 2}, "wings"),
    "another theta": ({"theta": -1}, "rope_theta"),
}


@pytest.mark.parametrize(("args", "field"), ARGS.values(), ids=ARGS)
def test_settings_that_would_say_something_else(args: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    write_training(path, MemoryShape(), **args)
    refuse(path, field)


def test_tensors_that_are_another_model(tmp_path: Path) -> None:
    shape, path = MemoryShape(), tmp_path / "ckpt.pt"
    first = "layers.0.attention"
    changes: list[tuple[str, Any, str]] = [
        (f"{first}.wm.weight", np.eye(16, dtype=np.float32), "wm.weight"),
        (f"{first}.wkm.weight", np.ones((8, 16), np.float32), "wkm.weight"),
        (f"{first}.memory_norm.weight", None, "memory_norm"),
        (f"{first}.ffn_norm.weight", None, "ffn_norm"),
        (f"{first}.feed_forward.w2.weight", None, "feed_forward.w2"),
        (f"{first}.origin_mem", None, "origin_mem"),
        (f"{first}.origin_mem", np.ones((2, 5, 16), np.float32), "origin_mem"),
        (f"{first}.origin_mem", np.ones((5, 16), np.float32), "origin_mem"),
        ("layers.1.attention.origin_mem", np.ones((1, 4, 16), np.float32), "origin_mem"),
        ("layers.1.attention.origin_mem", np.ones((2, 5, 16), np.float32), "origin_mem"),
        ("layers.1.attention.wings", np.ones(3, np.float32), "wings"),
    ]
    for name, array, field in changes:
        state = training_state(shape, memory_weights(shape))
        state.pop(name, None)
        if array is not None:
            state[name] = array
        write_training(path, shape, state)
        refuse(path, field)
    write_training(path, shape, None)
    assert open_checkpoint(path).config.mem_len == 5
    state = {
        name: array for name, array in named(memory_weights(shape)).items() if "attention.feed_forward" not in name
    }
    others = ("attention.ffn_norm", "memory_norm", "origin_mem")
    write_training(path, shape, {name: array for name, array in state.items() if not any(o in name for o in others)})
    with pytest.raises(ModelFormatError, match="no plain Llama has"):  # settings of a memory, and none there
        open_checkpoint(path)
