"""Roundings next to a half, told from faults: scripts/measure/seed_ties, on runs of ours as the other program."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu.llm import LLM

sys.path.append(str(Path(__file__).parent.parent.parent / "scripts" / "measure"))

import seed_ties
from seed_files import Shape, random_weights, write_int8, write_simple_llama
from seed_originals import Heard
from seed_ties import Along, Near, Rounding, quantized_alike

SHAPE = Shape(64, 128, 2, 4, 512, 32)
IDS = [1, *range(300, 340)]


def opened(folder: Path, mem_len: int = 0) -> LLM:
    shape = replace(SHAPE, mem_len=mem_len)
    path = write_int8(folder / "model.bin", shape, random_weights(shape, 3), 32)
    return llamagpu.load(path, "cpu", faithful=True)


def slots_of(llm: LLM, state: Any) -> np.ndarray[Any, Any]:
    arrays, m = llm.model.save_state(state), llm.config.mem_len
    both = [arrays[name][:, :, :m].transpose(0, 2, 1, 3) for name in ("keys", "values")]
    return np.array([part.reshape(llm.config.n_layers, m, -1) for part in both])


def other_program(llm: LLM, n: int, switches: dict[int, int]) -> tuple[Heard, list[Near]]:
    """Our run, where of some tokens the n-th number next to a half is rounded the other way."""
    rounding, mem_len = Rounding(llm), llm.config.mem_len
    state = llm.model.new_state(llm.state_options(n))
    slots, rows, switched = [slots_of(llm, state)] if mem_len else [], [], []
    for i, token in enumerate(IDS[:n]):
        before, length = {k: a.copy() for k, a in llm.model.save_state(state).items()}, state.length
        rounding.begin(())
        row = llm.model.forward([token], state)[-1].copy()
        if i in switches:
            switched.append(rounding.near[switches[i]])
            llm.model.load_state(state, before, length)
            rounding.begin(switched[-1:])
            row = llm.model.forward([token], state)[-1].copy()
        rows.append(row)
        if mem_len and state.length % mem_len == 0:
            slots.append(slots_of(llm, state))
    return Heard(IDS[:n], np.array(rows), np.array(slots)), switched


def test_an_activation_next_to_a_half_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_ties, "RADIUS", 3e-5)  # so that there are some
    heard, switched = other_program(opened(tmp_path), 6, {1: 0, 4: 1})
    assert np.abs(heard.logits - opened(tmp_path).logits(heard.ids)).max() > 1e-3
    along = Along(opened(tmp_path), heard)
    along.go()
    assert along.ties.parted is None
    assert [near.place for near in along.ties.found] == [near.place for near in switched]
    assert str(along.ties).startswith("token by token, 2 of ")
    assert str(along.ties).endswith("the other way: all 6 within 0.0e+00")


def test_one_in_a_memory_that_is_renewed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_ties, "RADIUS", 1e-5)
    heard, switched = other_program(opened(tmp_path, 8), 20, {7: -1, 15: -1})
    assert all(near.place[0] > 8 for near in switched)  # after the nine products of a token
    along = Along(opened(tmp_path, 8), heard)
    state = along.go()
    assert along.ties.parted is None
    assert [near.place for near in along.ties.found] == [near.place for near in switched]
    np.testing.assert_array_equal(slots_of(along.llm, state), heard.slots[-1])


def test_a_fault_is_no_tie(tmp_path: Path) -> None:
    heard, _ = other_program(opened(tmp_path), 6, {})
    for noise, parted in ((1e-2, 3), (1e-6, None)):
        logits = heard.logits.copy()
        logits[3] += noise * np.random.default_rng(0).standard_normal(512).astype(np.float32)
        along = Along(opened(tmp_path), replace(heard, logits=logits))
        along.go()
        assert along.ties.parted == parted
    assert "explains token 3" in str(replace(along.ties, parted=3))
    heard, _ = other_program(opened(tmp_path, 8), 20, {})
    slots = heard.slots.copy()
    slots[1, 0, 1, 5, 3] += np.float32(1e-2)
    along = Along(opened(tmp_path, 8), replace(heard, slots=slots))
    along.go()
    assert along.ties.parted == 7


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_files(bits: int, tmp_path: Path) -> None:
    shape = Shape(128, 256, 1, 4, 512)
    weights = random_weights(shape, 3)
    model = write_simple_llama(tmp_path / "a", shape, weights, bits)
    data, other = bytearray(model.read_bytes()), tmp_path / "b"
    other.write_bytes(data)
    assert quantized_alike(other, model, shape, weights, bits) == (f"the same {len(data)} bytes", True)
    at, n = 256 + 4 * 128 * 3, 512 * 128 * bits // 8
    data[at + n] ^= 1  # the first scale, in the last place
    other.write_bytes(data)
    text, same = quantized_alike(other, model, shape, weights, bits)
    assert same == "ties"
    assert text == ("1 of 2304 scales differ, by 1 in the last place; no number of 294912 differs")
    data[at + 50] ^= 2  # a number that lies next to no half
    other.write_bytes(data)
    assert quantized_alike(other, model, shape, weights, bits)[1] is False
    other.write_bytes(data[:-1])
    assert quantized_alike(other, model, shape, weights, bits) == (f"{len(data) - 1} bytes, ours {len(data)}", False)
