"""Log-probabilities: what they are, on every kind of model and on both backends; and that they change no token."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llamagpu
from llamagpu.backends.cuda import CUDABackend
from llamagpu.backends.cuda.device import Device
from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.load_options import LoadOptions
from llamagpu.logprobs import log_softmax, most_likely, text_of
from llamagpu.models import load_model
from llamagpu.sampling import SamplingParams
from llamagpu.tokenizers import open_spec
from tests.emulated_device import EmulatedDevice
from tests.kernels.harness import needs_emulator
from tests.memory_model_files import MemoryShape, memory_model_bytes, memory_weights
from tests.micro_rwkv_files import micro_bytes
from tests.models.test_micro_rwkv import SMALL
from tests.rwkv_models import RANKS, random_rwkv
from tests.small_files import Shape, random_weights, v0_bytes

PROMPT = [1, 5, 9, 60, 31]
SAMPLED = {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.2, "seed": 5}


def file_of(data: bytes, **options: object) -> Callable[[Path], LLM]:
    def make(folder: Path) -> LLM:
        (folder / "model").write_bytes(data)
        return LLM(open_checkpoint(folder / "model"), options=LoadOptions("cpu", **options))  # type: ignore[arg-type]

    return make


def rwkv(version: str) -> Callable[[Path], LLM]:
    return lambda folder: LLM(random_rwkv(version), "cpu")


SMALL_LLAMA = v0_bytes(Shape(tied=False), random_weights(Shape(tied=False)))
MEMORY = memory_model_bytes(MemoryShape(), memory_weights(MemoryShape()), 8)
MODELS: dict[str, Callable[[Path], LLM]] = {
    "llama": file_of(SMALL_LLAMA),
    "keys of 8 bits": file_of(SMALL_LLAMA, kv_bits=8),
    "window": file_of(SMALL_LLAMA, window=6, sinks=2),
    "memory, by chunk": file_of(MEMORY),
    "memory, by token": file_of(MEMORY, memory_update="token"),
    "micro_rwkv": file_of(micro_bytes(SMALL)),
    "micro_rwkv, recurrent": file_of(micro_bytes(SMALL), recurrent=True),
    **{version: rwkv(version) for version in RANKS},
}


def model_of(name: str, folder: Path) -> LLM:
    llm = MODELS[name](folder)
    llm.__dict__["tokenizer"] = open_spec(TokenizerSpec("bytes", b""), Path("bytes"))
    return llm


def on_device(llm: LLM, device: Device) -> LLM:
    """What `load` gives on a GPU, on any device."""
    llm.backend = CUDABackend(device)
    llm.model = load_model(llm.checkpoint, llm.backend, recurrent=llm.options.recurrent)
    return llm


def check(llm: LLM, tolerance: float, n_tokens: int = 14) -> None:
    """The same tokens as without, sampled and greedy; each logprob that of the logits of a run of its own."""
    for options in (SAMPLED, {"temperature": 0}):
        plain, asked = (llm.generate(PROMPT, n_tokens, ignore_eos=True, logprobs=k, **options) for k in (None, 3))
        assert plain.text == asked.text
        assert plain.tokens == asked.tokens
        assert len(asked.tokens) == n_tokens
        assert plain.logprobs is None
        rows = asked.logprobs
        assert rows is not None
        assert [row["id"] for row in rows] == asked.tokens
        logits = llm.logits([*PROMPT, *asked.tokens])[len(PROMPT) - 1 : -1].astype(float)
        for row, values in zip(rows, logits, strict=True):
            expected = values - max(values) - math.log(math.fsum(np.exp(values - max(values))))
            assert abs(row["logprob"] - expected[row["id"]]) < tolerance
            top = [candidate["logprob"] for candidate in row["top"]]
            assert top == sorted(top, reverse=True)
            np.testing.assert_allclose(top, np.sort(expected)[::-1][:3], rtol=0, atol=tolerance)
            assert len({candidate["id"] for candidate in row["top"]}) == 3
        if options["temperature"] == 0:
            assert all(row["id"] == row["top"][0]["id"] for row in rows)


@pytest.mark.parametrize("name", MODELS)
def test_on_the_cpu(name: str, tmp_path: Path) -> None:
    check(model_of(name, tmp_path), 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_on_the_cuda_backend(name: str, tmp_path: Path, device: Device) -> None:
    """Equal tokens, though the one is a captured graph that runs ahead and the other waits for each token."""
    # keys of 8 bits have other bits where a text is read in other pieces; the emulator takes its time over whole texts
    tolerance, n_tokens = (1e-2 if name == "keys of 8 bits" else 2e-4), (3 if name == "micro_rwkv" else 8)
    check(on_device(model_of(name, tmp_path), device), tolerance, n_tokens)


@needs_emulator
def test_without_them_nothing_leaves_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decode step stays one captured graph, and no logits are downloaded."""
    llm = on_device(model_of("llama", tmp_path), EmulatedDevice())
    called: list[str] = []
    for name in ("to_host", "decode_each"):
        monkeypatch.setattr(llm.backend, name, lambda *args, name=name: called.append(name))
    generation = llm.generate(PROMPT, 8, temperature=0, ignore_eos=True)
    assert generation.text is not None
    assert len(generation.tokens) == 8
    assert called == []


def test_left_early_the_session_goes_on_as_without(tmp_path: Path) -> None:
    texts = []
    for k in (None, 0):
        llm = model_of("llama", tmp_path)
        first = llm.generate(PROMPT, 9, temperature=0, ignore_eos=True, logprobs=k)
        next(iter(first))
        first.close()
        second = llamagpu.Answer(first.session, 6, SamplingParams(temperature=0), ends=(), logprobs=k)
        texts.append((first.tokens, second.text, second.tokens, first.session.tokens))
        for answer in (first, second):
            rows = answer.logprobs
            assert rows is None if k is None else rows is not None and len(rows) == len(answer.tokens)
            assert all(row["top"] == [] for row in rows or [])
    assert texts[0] == texts[1]


def test_tokens_are_shown_as_they_are_alone(small_model: Path) -> None:
    tokenizer = llamagpu.load(small_model).tokenizer
    assert [text_of(tokenizer, token) for token in (270, 275, 3 + 0xE7)] == [" the", "猫", "\\xe7"]
    generation = llamagpu.load("demo", "cpu").generate("Once upon a time", 3, temperature=0, logprobs=2)
    assert generation.logprobs == []  # nothing is made before it is asked for
    assert generation.text == "".join(row["token"] for row in generation.logprobs or [])


def test_of_a_stop_string_all_tokens_have_one(small_model: Path) -> None:
    llm = llamagpu.load(small_model, "cpu")
    whole = llm.generate("on the", 12, temperature=0).text
    generation = llm.generate("on the", 12, temperature=0, stop=[whole[4:7]], logprobs=1)
    assert generation.text == whole[: whole.index(whole[4:7])]
    assert [row["id"] for row in generation.logprobs or []] == generation.tokens


def test_equal_ones_come_by_their_ids() -> None:
    logprobs = log_softmax(np.asarray([1, 3, 3, -np.inf, 3, 2], np.float32))
    assert most_likely(logprobs, 2).tolist() == [1, 2]
    assert most_likely(logprobs, 6).tolist() == [1, 2, 4, 5, 0, 3]
    assert most_likely(logprobs, 0).tolist() == []
    assert logprobs[3] == -np.inf
    assert np.exp(logprobs).sum() == pytest.approx(1, abs=1e-15)


def test_large_logits_do_not_overflow() -> None:
    assert log_softmax(np.asarray([3e38, 3e38], np.float32)).tolist() == [-math.log(2)] * 2


@pytest.mark.parametrize("k", [-1, 301, 1.0, "2", True])
def test_wrong_numbers_are_refused(k: object, small_model: Path) -> None:
    with pytest.raises(UsageError, match="logprobs must be a whole number from 0 to 300, not"):
        llamagpu.load(small_model, "cpu").generate("a", logprobs=k)  # type: ignore[arg-type]


def test_damaged_weights_are_told_as_without(small_model: Path) -> None:
    data = bytearray(small_model.read_bytes())
    data[28 : 28 + 4 * 300 * 16] = np.full(300 * 16, np.nan, np.float32).tobytes()
    small_model.write_bytes(data)
    with pytest.raises(LlamaGPUError, match="not numbers"):
        _ = llamagpu.load(small_model, "cpu").generate("a", logprobs=3).text
