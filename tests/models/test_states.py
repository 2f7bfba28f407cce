"""The state of a sequence as arrays: saved, loaded, moved from one device to another."""

from __future__ import annotations

import numpy as np
import pytest

from llamagpu.backends.cuda.device import Device
from llamagpu.llm import LLM
from llamagpu.models import State, StateOptions
from tests.models.test_architectures_on_cuda import random_model
from tests.models.test_llama_on_cuda import both

IDS = [int(token) for token in np.random.default_rng(5).integers(0, 300, 40)]


def read(llm: LLM, state: State, ids: list[int]) -> np.ndarray:
    """Logits after the last of some tokens."""
    logits: np.ndarray = llm.backend.to_host(llm.model.forward(ids, state), llm.config.vocab_size)[-1].copy()
    return logits


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_what_is_saved_goes_on_as_if_nothing_had_happened(name: str, kv_bits: int, device: Device) -> None:
    models = both(random_model(name, "float32"), device)
    saved = []
    for llm in models:
        state = llm.model.new_state(StateOptions(64, kv_bits))
        assert state.room == 64
        read(llm, state, IDS[:25])
        saved.append(llm.model.save_state(state))
        assert (state.length, state.room) == (25, 39)
        expected = read(llm, state, IDS[25:])
        again = llm.model.new_state(StateOptions(48, kv_bits))
        llm.model.load_state(again, saved[-1], 25)
        assert (again.length, again.room) == (25, 23)
        np.testing.assert_array_equal(read(llm, again, IDS[25:]), expected)
    on_cpu, on_cuda = saved
    assert {k: (v.shape, v.dtype) for k, v in on_cpu.items()} == {k: (v.shape, v.dtype) for k, v in on_cuda.items()}


def test_from_one_device_to_the_other_and_from_16_to_8_bits(device: Device) -> None:
    cpu, cuda = both(random_model("qwen2", "float32"), device)
    state = cpu.model.new_state(StateOptions(64))
    read(cpu, state, IDS[:25])
    arrays = cpu.model.save_state(state)
    expected = read(cpu, state, IDS[25:])
    for llm, kv_bits, tolerance in ((cuda, 16, 1e-9), (cuda, 8, 1e-3), (cpu, 8, 1e-3)):
        other = llm.model.new_state(StateOptions(64, kv_bits))
        llm.model.load_state(other, arrays, 25)
        back = llm.model.new_state(StateOptions(64))
        llm.model.load_state(back, llm.model.save_state(other), 25)
        for loaded in (other, back):
            assert np.square(read(llm, loaded, IDS[25:]) - expected).sum() < tolerance * np.square(expected).sum()


def test_what_does_not_fit_is_refused(device: Device) -> None:
    for llm in both(random_model("qwen2", "float32"), device):
        state = llm.model.new_state(StateOptions(64))
        read(llm, state, IDS[:25])
        arrays = llm.model.save_state(state)
        for damaged in (
            {},
            {"keys": arrays["keys"]},
            {**arrays, "keys": arrays["keys"][:1]},
            {**arrays, "x": arrays["keys"]},
        ):
            with pytest.raises(ValueError, match="holds arrays"):
                llm.model.load_state(llm.model.new_state(StateOptions(64)), damaged, 25)
        with pytest.raises(ValueError, match="the context 20"):
            llm.model.load_state(llm.model.new_state(StateOptions(20)), arrays, 25)
