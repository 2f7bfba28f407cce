"""llama2Rnn's memory files: read and written as the original has them, and refused where they are not this model's."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats.llama2rnn_memory import read_memory, write_memory
from llamagpu.llm import load
from tests.memory_model_files import MemoryShape, Recurrence, memory_file
from tests.models.test_memory_llama import Model, check, new, read

SHAPES = {
    "as many key heads": MemoryShape(n_kv_heads=4, mem_len=5, max_seq_len=32),
    "grouped": MemoryShape(mem_len=5, max_seq_len=32),
    "fewer positions than slots": MemoryShape(mem_len=5, max_seq_len=8),
}


def n_positions(shape: MemoryShape) -> int:
    return max(shape.max_seq_len, 2 * shape.mem_len)


@pytest.mark.parametrize("mode", ["chunk", "token"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_sequence_goes_on_from_the_originals_file(shape: MemoryShape, mode: str, tmp_path: Path) -> None:
    """At any place of a chunk, at its end too, which the file may call M."""
    model, path = Model(tmp_path, shape, 8), tmp_path / "memory"
    llm = model.on("cpu", mode)
    for n in range(11):
        recurrence = Recurrence(shape, model.weights, mode == "token")
        for token in model.ids[:n]:
            recurrence.step(token)
        for pos in {recurrence.pos, recurrence.pos or shape.mem_len}:
            path.write_bytes(memory_file(recurrence, n_positions(shape), pos))
            arrays, length = read_memory(path, llm.config)
            assert length == n % shape.mem_len
            state = new(llm)
            llm.model.load_state(state, arrays, length)
        rest = model.ids[n : n + 9]
        check(read(llm, state, rest, len(rest)), [recurrence.step(token) for token in rest], model, llm)


def test_a_memory_of_nothing_stands_at_0(tmp_path: Path) -> None:
    model, path = Model(tmp_path, SHAPES["grouped"], 8), tmp_path / "memory"
    llm = model.on("cpu", "chunk")
    write_memory(path, llm.config, llm.model.save_state(new(llm)), 0)
    assert struct.unpack("<i", path.read_bytes()[-4:]) == (0,)
    assert read_memory(path, llm.config)[1] == 0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_is_written_is_what_the_original_would_write(shape: MemoryShape, tmp_path: Path) -> None:
    """At a chunk's end the place is M, as the original's text has it: at 0 it begins anew, with all of its prompt."""
    model, path = Model(tmp_path, shape, 8), tmp_path / "memory"
    llm = model.on("cpu", "chunk")
    state, recurrence = new(llm), Recurrence(shape, model.weights)
    for n, token in enumerate(model.ids[:17], start=1):
        read(llm, state, [token])
        recurrence.step(token)
        write_memory(path, llm.config, llm.model.save_state(state), n)
        data, expected = path.read_bytes(), memory_file(recurrence, n_positions(shape))
        assert len(data) == len(expected)
        assert struct.unpack("<i", data[-4:]) == (n % shape.mem_len or shape.mem_len,)
        got, wanted = (np.frombuffer(part[:-4], "<f4") for part in (data, expected))
        n_memory = recurrence.mem.size
        np.testing.assert_allclose(got[:n_memory], wanted[:n_memory], rtol=0, atol=1e-4)
        filled = shape.mem_len + n % shape.mem_len
        for a, b in zip(got[n_memory:].reshape(2, -1), wanted[n_memory:].reshape(2, -1), strict=True):
            slots = [part.reshape(shape.n_layers, -1, shape.kv_dim) for part in (a, b)]
            np.testing.assert_allclose(slots[0][:, :filled], slots[1][:, :filled], rtol=0, atol=1e-4)
            assert not slots[0][:, filled:].any()
        arrays, length = read_memory(path, llm.config)
        for name, array in llm.model.save_state(state).items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
        assert length == n % shape.mem_len
    assert not list(tmp_path.glob(".llamagpu-*"))


def test_the_older_form_has_the_memory_alone(tmp_path: Path) -> None:
    model, path = Model(tmp_path, SHAPES["grouped"], 8), tmp_path / "memory"
    llm = model.on("cpu", "chunk")
    recurrence = Recurrence(model.shape, model.weights)
    for token in model.ids[:10]:
        recurrence.step(token)
    path.write_bytes(recurrence.mem.astype("<f4").tobytes())
    arrays, length = read_memory(path, llm.config)
    assert (set(arrays), length) == ({"memory"}, 0)
    state = new(llm)
    llm.model.load_state(state, arrays, length)
    rest = model.ids[10:20]
    check(read(llm, state, rest, len(rest)), [recurrence.step(token) for token in rest], model, llm)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    model, path = Model(tmp_path, SHAPES["grouped"], 8), tmp_path / "memory"
    config = model.on("cpu", "chunk").config
    recurrence = Recurrence(model.shape, model.weights)
    good = memory_file(recurrence, 32)

    def refuse(data: bytes, field: str) -> None:
        path.write_bytes(data)
        with pytest.raises(ModelFormatError) as caught:
            read_memory(path, config)
        assert caught.value.field == field
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == data

    for data in (b"", b"x", good[:-1], good + b"x", good[:-4], good * 2):
        refuse(data, "length")
    for pos in (-1, 6, 2**31 - 1, -(2**31)):
        refuse(good[:-4] + struct.pack("<i", pos), "pos")
    for bits in (0x7FC00000, 0x7F800000, 0xFF7FFFFF):
        refuse(struct.pack("<I", bits) + good[4:], "memory")
        at = 4 * recurrence.mem.size
        refuse(good[:at] + struct.pack("<I", bits) + good[at + 4 :], "keys")
        at += 4 * 2 * 32 * model.shape.kv_dim
        refuse(good[:at] + struct.pack("<I", bits) + good[at + 4 :], "values")
    with pytest.raises(ModelFormatError, match="cannot be opened"):
        read_memory(tmp_path / "missing", config)


def test_states_that_have_no_place_in_the_file(tmp_path: Path, small_model: Path) -> None:
    model, path = Model(tmp_path, SHAPES["grouped"], 8), tmp_path / "memory"
    llm = model.on("cpu", "chunk")
    arrays = llm.model.save_state(new(llm))
    with pytest.raises(ValueError, match="no state of this model"):
        write_memory(path, llm.config, arrays, 1)
    with pytest.raises(UsageError, match="8 bits"):
        write_memory(path, llm.config, {**arrays, "scales": arrays["keys"]}, 0)
    with pytest.raises(UsageError, match="only a model with a memory"):
        write_memory(path, load(small_model, "cpu").config, arrays, 0)
    with pytest.raises(UsageError, match="only a model with a memory"):
        read_memory(path, load(small_model, "cpu").config)
    assert not path.exists()
