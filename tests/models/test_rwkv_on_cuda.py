"""RWKVs through the CUDA backend: the same launches on the emulator and, with `-m gpu`, on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cuda import STEPS_AHEAD, CUDABackend
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.recurrent import DownMatrix
from llamagpu.backends.cuda.recurrent_state import LARGEST_NUMBER, SLOTS
from llamagpu.checkpoint import Checkpoint
from llamagpu.errors import UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.models import load_model
from llamagpu.sampling import SamplingParams
from tests.rwkv_models import RANKS, TYPES, random_rwkv

TEXT = list(b"It was a dark and stormy night; the rain fell in torrents")
GREEDY = SamplingParams(temperature=0, seed=0)


def on_device(checkpoint: Checkpoint, device: Device) -> LLM:
    """The LLM that `load` gives on a GPU, on any device."""
    llm = LLM(checkpoint, "cpu")
    llm.backend = CUDABackend(device)
    llm.model = load_model(checkpoint, llm.backend)
    return llm


def decoded(llm: LLM, prompt: list[int], n_tokens: int) -> list[int]:
    state = llm.model.new_state(llm.state_options(1))
    sampler = llm.backend.sampler(GREEDY, llm.config.vocab_size)
    return list(llm.model.decode(state, sampler, llm.model.forward(prompt, state), n_tokens))


@pytest.mark.parametrize("name", ["4v0-660K-FP32", "5v2-730K-FP32", "7v0-834K-FP32"])
def test_expected_logits_of_rwkv_cpp(name: str, data: Path, device: Device) -> None:
    expected = np.fromfile(data / "rwkv" / f"expected-logits-{name[:8]}.bin", "<f4")
    llm = on_device(open_checkpoint(data / "rwkv" / f"tiny-rwkv-{name}.bin"), device)
    assert np.abs(llm.logits(list(b'"in'))[-1] - expected).max() < 1e-4


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("version", RANKS)
def test_says_what_the_cpu_says(version: str, kind: str, device: Device) -> None:
    checkpoint = random_rwkv(version, kind)
    cpu, cuda = LLM(checkpoint, "cpu"), on_device(checkpoint, device)
    expected, got = cpu.logits(TEXT), cuda.logits(TEXT)
    assert np.square(got - expected).sum() / np.square(expected).sum() < 1e-8
    assert decoded(cuda, TEXT[:7], 20) == decoded(cpu, TEXT[:7], 20)


def test_matrices_of_several_types_where_they_are_large(device: Device) -> None:
    """From 256 on floats and tiles leave different numbers of sums behind; nothing is allocated within a graph."""
    checkpoint = random_rwkv("rwkv7", "mixed", dim=256, n_heads=8)
    cpu, cuda = LLM(checkpoint, "cpu"), on_device(checkpoint, device)
    assert decoded(cuda, TEXT[:3], 8) == decoded(cpu, TEXT[:3], 8)


@pytest.mark.parametrize("version", RANKS)
def test_a_prompt_in_any_pieces_leaves_one_state(version: str, device: Device) -> None:
    llm = on_device(random_rwkv(version), device)
    states = []
    for sizes in ([len(TEXT)], [1] * len(TEXT), [3, 8, 9, 1, 7, 16, 13]):
        state, at = llm.model.new_state(llm.state_options(1)), 0
        for size in sizes:
            llm.model.forward(TEXT[at : at + size], state, 0)
            at += size
        assert state.length == len(TEXT) == at
        states.append(llm.model.save_state(state))
    for other in states[1:]:
        for name, array in states[0].items():
            assert np.abs(other[name] - array).max() < 1e-5 * max(1, np.abs(array).max()), name


@pytest.mark.parametrize("n_taken", [1, 2, STEPS_AHEAD + 1, 11])
def test_steps_ahead_are_dropped(n_taken: int, device: Device) -> None:
    """Leaving a decode leaves the state of the tokens that were taken, though more were run; it goes on from there."""
    llm = on_device(random_rwkv("rwkv7"), device)
    state = llm.model.new_state(llm.state_options(1))
    sampler = llm.backend.sampler(GREEDY, 256)
    steps = llm.model.decode(state, sampler, llm.model.forward(TEXT[:5], state), 40)
    taken = [next(steps) for _ in range(n_taken)]
    steps.close()  # type: ignore[attr-defined]
    assert state.length == 5 + n_taken - 1  # the last is not run
    plain = llm.model.new_state(llm.state_options(1))
    for token in [*TEXT[:5], *taken[:-1]]:
        llm.model.forward([token], plain, 0)
    for name, array in llm.model.save_state(plain).items():
        np.testing.assert_allclose(llm.model.save_state(state)[name], array, rtol=1e-5, atol=1e-5)
    again = llm.model.forward(taken[-1:], state)
    np.testing.assert_array_equal(np.argmax(llm.backend.to_host(again, 256)), decoded(llm, TEXT[:5], n_taken + 1)[-1])


@pytest.mark.parametrize("version", RANKS)
def test_a_saved_state_goes_on_exactly(version: str, device: Device) -> None:
    llm = on_device(random_rwkv(version), device)
    state = llm.model.new_state(llm.state_options(1))
    llm.model.forward(TEXT[:20], state, 0)
    other = llm.model.new_state(llm.state_options(1))
    llm.model.load_state(other, llm.model.save_state(state), 20)
    logits = [llm.backend.to_host(llm.model.forward(TEXT[20:23], s), 256).copy() for s in (state, other)]
    np.testing.assert_array_equal(logits[0], logits[1])


def test_a_state_goes_between_cpu_and_gpu(device: Device) -> None:
    checkpoint = random_rwkv("rwkv7")
    cpu, cuda = LLM(checkpoint, "cpu"), on_device(checkpoint, device)
    state = cpu.model.new_state(cpu.state_options(1))
    cpu.model.forward(TEXT[:20], state, 0)
    other = cuda.model.new_state(cuda.state_options(1))
    cuda.model.load_state(other, cpu.model.save_state(state), 20)
    expected = cpu.model.forward(TEXT[20:22], state)
    np.testing.assert_allclose(cuda.backend.to_host(cuda.model.forward(TEXT[20:22], other), 256), expected, atol=1e-4)


def test_tokens_are_counted_past_what_an_int_holds(device: Device) -> None:
    """Decoding across the number at which the device counts anew says what it says elsewhere."""
    llm = on_device(random_rwkv("rwkv7"), device)
    texts = []
    for start in (0, LARGEST_NUMBER - 8, 5 * LARGEST_NUMBER - 8, 7):
        state = llm.model.new_state(llm.state_options(1))
        llm.model.load_state(state, llm.model.save_state(state), start)
        sampler = llm.backend.sampler(GREEDY, 256)
        texts.append(list(llm.model.decode(state, sampler, llm.model.forward(TEXT[:3], state), 20)))
        assert state.length == start + 22
    assert texts[1:] == texts[:1] * 3


def test_slots_are_enough_for_the_steps_ahead() -> None:
    assert SLOTS > STEPS_AHEAD + 1
    assert LARGEST_NUMBER % SLOTS == 0


@pytest.mark.parametrize("version", ["rwkv4", "rwkv7"])
def test_zeros_of_the_feed_forward_are_skipped(version: str, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both backends, a token at a time: the same logits as with the dense product. RWKV-4's gate needs that one."""
    checkpoint = random_rwkv(version, "float16")
    wide = random_rwkv(version, "float16")
    as_float32 = {name: t.astype(np.float32) for name, t in wide.tensors.items() if isinstance(t, np.ndarray)}
    expected = stepwise(LLM(replace(wide, tensors=as_float32), "cpu"))
    monkeypatch.setenv("LLAMAGPU_SPARSE_FFN", "1")
    sparse = on_device(checkpoint, device)
    assert isinstance(sparse.model.layers[0].channel_mix.value, DownMatrix)  # type: ignore[attr-defined]
    for llm in (LLM(checkpoint, "cpu"), sparse):
        np.testing.assert_allclose(stepwise(llm), expected, atol=1e-4)


def stepwise(llm: LLM) -> NDArray[np.float32]:
    """Logits after each token, run by itself."""
    state = llm.model.new_state(llm.state_options(1))
    return np.concatenate([llm.backend.to_host(llm.model.forward([token], state), 256).copy() for token in TEXT[:12]])


def test_heads_too_wide_for_the_kernels(device: Device) -> None:
    llm = on_device(random_rwkv("rwkv5", dim=144, n_heads=1), device)
    with pytest.raises(UsageError, match="device='cpu'"):
        llm.model.new_state(llm.state_options(1))
