"""Windows with sinks: against a plain reference that forgets, on both backends, token by token and in chunks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention_window import Ring
from llamagpu.backends.cuda import window_cache
from llamagpu.backends.cuda.device import Device
from llamagpu.errors import UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import DEMO, LLM, load, model_path
from llamagpu.models import State, StateOptions
from llamagpu.sampling import SamplingParams
from tests.models.reference_window import forward_in_window
from tests.models.test_architectures_on_cuda import random_model
from tests.models.test_llama_on_cuda import both

ORDINARY = ["llama", "qwen2", "qwen3"]  # interleaved with factors; half_split with bias; half_split with norms
WINDOWS = [(5, 2), (1, 0), (8, 0), (1, 3), (16, 4)]
IDS = [int(token) for token in np.random.default_rng(7).integers(0, 300, 70)]
LONGEST = 6  # chunk


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings of W + 5 places that come round often."""
    monkeypatch.setattr(Ring, "n_turns", property(lambda ring: ring.window + LONGEST - 1))


def read(llm: LLM, state: State, ids: list[int], sizes: list[int]) -> NDArray[np.float32]:
    """Logits after each token, read in chunks of these sizes, the last again and again."""
    rows, at = [], 0
    while at < len(ids):
        chunk = ids[at : at + sizes[0]]
        logits = llm.model.forward(chunk, state, len(chunk))
        rows.append(llm.backend.to_host(logits, llm.config.vocab_size).copy())
        at, sizes = at + len(chunk), sizes[1:] or sizes
    return np.concatenate(rows)


def off(got: NDArray[np.float32], expected: NDArray[np.floating]) -> float:
    """Normalised squared error."""
    return float(np.square(got - expected).sum() / np.square(expected).sum())


@pytest.mark.parametrize(("window", "sinks"), WINDOWS)
@pytest.mark.parametrize("name", ORDINARY)
def test_against_a_reference_that_forgets(
    name: str, window: int, sinks: int, device: Device, short_chunks: None
) -> None:
    """Over more than six turns of the ring; in chunks, odd ones and some that are longer than the window."""
    checkpoint = random_model(name, "float32")
    expected = forward_in_window(checkpoint.tensors, checkpoint.config, IDS, window, sinks)
    for llm in both(checkpoint, device):
        rows = {}
        for sizes in ([1], [3, 1, 6, 5, 2], [6]):
            state = llm.model.new_state(StateOptions(0, 16, window, sinks))
            rows[sizes[0]] = read(llm, state, IDS, sizes)
            assert (state.length, state.room) == (70, None)
            assert off(rows[sizes[0]], expected) < 1e-10
            assert np.abs(rows[sizes[0]] - expected).max() < 1e-4
        assert np.abs(rows[3] - rows[1]).max() < 1e-4
        assert np.abs(rows[6] - rows[1]).max() < 1e-4


def test_a_prompt_that_is_longer_than_all_that_is_kept(device: Device) -> None:
    """512 tokens in one call, as generate reads them, and 88 more."""
    checkpoint = random_model("qwen2", "float32")
    ids = np.random.default_rng(8).integers(0, 300, 600).tolist()
    expected = forward_in_window(checkpoint.tensors, checkpoint.config, ids, 11, 3)
    for llm in both(checkpoint, device):
        llm.window, llm.sinks = 11, 3
        got = llm.logits(ids)
        assert np.abs(got - expected).max() < 1e-4
        assert off(got, expected) < 1e-10


def test_while_nothing_is_forgotten_nothing_differs(device: Device) -> None:
    for name in ORDINARY:
        for llm, most in zip(both(random_model(name, "float32"), device), (0.0, 1e-9), strict=True):
            for sizes in ([1], [25, 1, 3]):
                plain, windowed = (
                    read(llm, llm.model.new_state(options), IDS[:30], sizes)
                    for options in (StateOptions(30), StateOptions(0, 16, 26, 4))
                )
                assert off(windowed, plain) <= most


def greedy(llm: LLM, prompt: list[int], n_tokens: int, window: int, sinks: int) -> tuple[list[int], State]:
    state = llm.model.new_state(StateOptions(0, 16, window, sinks))
    logits = llm.model.forward(prompt, state)
    sampler = llm.backend.sampler(SamplingParams(temperature=0, seed=0), llm.config.vocab_size)
    return list(llm.model.decode(state, sampler, logits, n_tokens)), state


@pytest.mark.parametrize(("window", "sinks", "kind"), [(7, 2, "float32"), (5, 0, "float16"), (5, 2, "4 bits")])
def test_one_captured_graph_round_the_ring(
    window: int, sinks: int, kind: str, device: Device, short_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight turns and more by the same graph; on the device tokens are counted anew after 40."""
    cpu, cuda = both(random_model("qwen3", kind), device)
    expected, _ = greedy(cpu, IDS[:6], 100, window, sinks)
    for most in (1 << 30, 40):
        monkeypatch.setattr(window_cache, "LARGEST_NUMBER", most)
        said, state = greedy(cuda, IDS[:6], 100, window, sinks)
        assert said == expected
        assert state.length == 6 + 99
        assert state.position_of(state.length) < most + LONGEST  # type: ignore[attr-defined]
    assert len(set(expected)) > 10, "a model that says one thing shows nothing"


def test_numbers_on_the_device_stay_small_and_true(device: Device) -> None:
    config = random_model("qwen3", "float32").config
    cache = window_cache.CUDAWindowCache(device, config, Ring(9, 4), np.float32)
    turns = cache.ring.n_turns
    for n in (0, 5, 2**30 - 1, 2**30, 2**30 + 1, 2**40 + 12345, 10**15):
        number = cache.position_of(n)
        assert min(n, cache.ring.n_kept) <= number < 2**30
        assert number == n or (number - n) % turns == 0
        assert cache.position_of(n + 1) == number + 1 or cache.counts_anew(n + 1)
    assert [n for n in range(2**30 - 3, 2**30 + 3) if cache.counts_anew(n)] == [2**30]


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("n_before", [4, 13, 45])
def test_saved_and_loaded(name: str, n_before: int, device: Device, short_chunks: None) -> None:
    """It goes on to the bit on the same device, and on the other one as near as it is by itself."""
    models = both(random_model(name, "float32"), device)
    options = StateOptions(0, 16, 8, 3)
    saved, after = [], []
    for llm in models:
        state = llm.model.new_state(options)
        read(llm, state, IDS[:n_before], [5])
        saved.append(llm.model.save_state(state))
        assert saved[-1]["window_keys"].shape == (3, 2, min(n_before, 11), 10)
        after.append(read(llm, state, IDS[n_before:], [1, 4]))
    for i, llm in enumerate(models):
        for j, arrays in enumerate(saved):
            state = llm.model.new_state(options)
            llm.model.load_state(state, arrays, n_before)
            assert state.length == n_before
            again = llm.model.save_state(state)
            assert all(np.array_equal(again[part], arrays[part]) for part in arrays)
            rows = read(llm, state, IDS[n_before:], [1, 4])
            if i == j:
                np.testing.assert_array_equal(rows, after[i])
            assert off(rows, after[j]) < 1e-9


def test_a_saved_state_that_does_not_fit_is_refused(device: Device) -> None:
    for llm in both(random_model("qwen2", "float32"), device):
        state, plain = llm.model.new_state(StateOptions(0, 16, 8, 3)), llm.model.new_state(StateOptions(64))
        read(llm, state, IDS[:20], [5])
        read(llm, plain, IDS[:20], [5])
        arrays, of_plain = llm.model.save_state(state), llm.model.save_state(plain)
        for other, problem in ((StateOptions(0, 16, 7, 4), "not 7 and 4"), (StateOptions(64), "holds arrays")):
            with pytest.raises(ValueError, match=problem):
                llm.model.load_state(llm.model.new_state(other), arrays, 20)
        for damaged, length in ((of_plain, 20), (arrays, 10), ({"window_keys": arrays["window_keys"]}, 20)):
            with pytest.raises(ValueError, match="holds arrays"):
                llm.model.load_state(llm.model.new_state(StateOptions(0, 16, 8, 3)), damaged, length)


def test_what_cannot_forget_is_refused(small_model: Path, device: Device) -> None:
    for name in ("mistral", "qwen2 with windows from layer 1"):
        with pytest.raises(UsageError, match="own sliding windows"):
            LLM(random_model(name, "float32"), "cpu", window=5)
    with pytest.raises(UsageError, match="kv_bits=8 does not go with window"):
        load(small_model, "cpu", kv_bits=8, window=5)
    with pytest.raises(UsageError, match="30 and 4 sinks are 34 positions, the model was trained for 32"):
        load(small_model, "cpu", window=30)
    for window, sinks in ((-1, 4), (5, -1), (1.5, 0)):
        with pytest.raises(UsageError, match="must be a whole number"):
            load(small_model, "cpu", window=window, sinks=sinks)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="context does not go with window"):
        load(small_model, "cpu", context=20, window=5)
    checkpoint = random_model("qwen2", "float32")
    with pytest.raises(UsageError, match="a memory of its own"):
        LLM(replace(checkpoint, config=replace(checkpoint.config, architecture="llama2rnn")), "cpu", window=5)
    wide = replace(checkpoint.config, head_dim=258)
    _, cuda = both(checkpoint, device)
    with pytest.raises(UsageError, match="too wide for windows"):
        cuda.backend.window_cache(wide, 5, 2)


def test_text_goes_on_past_the_context(device: Device) -> None:
    """The built-in model has 512 positions: a prompt and a text longer than all of them, alike on both backends."""
    cpu, cuda = both(open_checkpoint(model_path(DEMO)), device)
    prompt = "Once upon a time there was a dog. " * 70
    runs = []
    for llm, n_tokens in ((cpu, 700), (cuda, 8)):
        llm.window, llm.sinks = 40, 4
        runs.append(llm.generate(prompt, max_tokens=n_tokens, temperature=0))
        assert len(runs[-1].prompt_tokens) > 512
        assert "".join(runs[-1])
        assert runs[-1].stop_reason in ("max_tokens", "eos")
    assert runs[1].tokens == runs[0].tokens[:8]
