"""Whole models through the CUDA backend: the same launches on the emulator and, with `-m gpu`, on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.backends.cuda import STEPS_AHEAD, CUDABackend
from llamagpu.backends.cuda.device import Device
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import DEMO, LLM, load, model_path
from llamagpu.models.llama import Llama
from llamagpu.quantization import Int8Matrix
from tests.emulated_device import EmulatedDevice
from tests.kernels.harness import needs_emulator
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v2_bytes


def on_device(path: Path, device: Device, kv_dtype: type | None = None) -> LLM:
    """The LLM that `load` gives on a GPU, on any device."""
    llm = LLM(open_checkpoint(path), "cpu")
    llm.backend = CUDABackend(device, kv_dtype)
    llm.model = Llama(llm.checkpoint, llm.backend)
    return llm


def test_stories260k_says_the_expected_464_bytes(data: Path, device: Device) -> None:
    expected = (data / "llama2c" / "stories260K.expected_stdout_200.txt").read_bytes()
    llm = on_device(data / "llama2c" / "stories260K.bin", device)
    text = "".join(llm.generate("", max_tokens=220, temperature=0))
    assert len(expected) == 464
    assert text.encode().startswith(expected)


def test_stories260k_logits(data: Path, device: Device) -> None:
    ids = np.load(data / "llama2c" / "stories260K.greedy200.ids.npy").tolist()[:70]
    reference = np.load(data / "llama2c" / "stories260K.greedy200.logits.npy")[:70]
    llm = on_device(data / "llama2c" / "stories260K.bin", device)
    assert np.abs(llm.logits(ids) - reference).max() < 1e-4


def test_quantised_stories260k_says_what_the_cpu_says(data: Path, device: Device) -> None:
    path = data / "llama2c" / "stories260K_q80.bin"
    cpu = load(path, "cpu")
    texts = ["".join(llm.generate("", max_tokens=40, temperature=0)) for llm in (cpu, on_device(path, device))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_built_in_model_says_what_the_cpu_says(temperature: float, device: Device) -> None:
    cpu, cuda = load(DEMO, "cpu"), on_device(model_path(DEMO), device)
    settings = {"max_tokens": 60, "temperature": temperature, "seed": 7, "repetition_penalty": 1.1}
    runs = [llm.generate("Once upon a time", **settings) for llm in (cpu, cuda)]  # type: ignore[arg-type]
    texts = ["".join(run) for run in runs]
    assert texts[0] == texts[1]
    assert runs[0].tokens == runs[1].tokens
    assert len(runs[1].tokens) == 60


def test_built_in_models_logits(device: Device) -> None:
    """Prompt chunks and keys in float16 stay near float32 on the CPU."""
    ids = np.random.default_rng(0).integers(3, 1024, 75).tolist()
    expected, got = load(DEMO, "cpu").logits(ids), on_device(model_path(DEMO), device).logits(ids)
    assert np.square(got - expected).sum() / np.square(expected).sum() < 1e-5


@pytest.fixture(params=["float32", "int8", "int8 across rows", "one key head"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "small.bin"
    shape = Shape(tied=False) if request.param == "float32" else Shape()
    if request.param == "one key head":
        shape = Shape(dim=24, hidden_dim=40, n_layers=1, n_heads=6, n_kv_heads=1, vocab_size=300)
    weights = random_weights(shape)
    group_size = {"int8": 8, "int8 across rows": 32}.get(request.param)
    path.write_bytes(v2_bytes(shape, weights, group_size) if group_size else v0_bytes(shape, weights))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    return path


def test_small_models_agree_with_the_cpu(small: Path, device: Device) -> None:
    cpu, cuda = load(small, "cpu"), on_device(small, device, np.float32)
    ids = list(range(5, 35, 2))
    assert np.abs(cpu.logits(ids) - cuda.logits(ids)).max() < 1e-4
    runs = [llm.generate("the other", max_tokens=50, temperature=0) for llm in (cpu, cuda)]
    assert "".join(runs[0]) == "".join(runs[1])
    assert runs[1].stop_reason == runs[0].stop_reason == "context"


def test_two_runs_are_equal_and_two_sequences_do_not_mix(device: Device) -> None:
    llm = on_device(model_path(DEMO), device)
    first = list(llm.generate("One day", max_tokens=12, seed=1))
    one, other = (iter(llm.generate(text, max_tokens=12, seed=1)) for text in ("One day", "The little dog"))
    pieces = []
    for piece in one:  # each step of one between two of the other
        pieces.append(piece)
        next(other, "")
    assert pieces == first


def test_leaving_early_is_safe(device: Device) -> None:
    """Steps that were queued ahead are dropped, and the next sequence is not disturbed."""
    llm = on_device(model_path(DEMO), device)
    whole = "".join(llm.generate("One day", max_tokens=20, temperature=0))
    generation = llm.generate("One day", max_tokens=20, temperature=0, stop=[whole[10:14]])
    assert "".join(generation) == whole[: whole.index(whole[10:14])]
    assert generation.stop_reason == "stop"
    assert "".join(llm.generate("One day", max_tokens=20, temperature=0)) == whole


def test_damaged_weights_are_told(tmp_path: Path, device: Device) -> None:
    shape = Shape()
    weights = random_weights(shape)
    weights["final_norm"][3] = np.nan
    path = tmp_path / "damaged.bin"
    path.write_bytes(v0_bytes(shape, weights))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    with pytest.raises(LlamaGPUError, match="not numbers"):
        list(on_device(path, device).generate("a", max_tokens=5, temperature=0))


@needs_emulator
def test_the_decode_step_is_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first two steps no Python of the model runs: the host only launches the graph."""
    device = EmulatedDevice()
    llm = on_device(model_path(DEMO), device)
    calls = []
    forward = llm.model.forward

    def counted(*args: Any, **rest: Any) -> Any:
        calls.append(1)
        return forward(*args, **rest)

    monkeypatch.setattr(llm.model, "forward", counted)
    assert len(list(llm.generate("One day", max_tokens=20, temperature=0))) > 0
    assert len(calls) == 3  # the prompt, one step as it is, one step captured
    layers = llm.config.n_layers
    assert device.n_launches == (1 + 8 * layers + 2 + 2) * 20, "launches of a step"


@needs_emulator
def test_the_host_runs_ahead_by_a_few_steps() -> None:
    device = EmulatedDevice()
    llm = on_device(model_path(DEMO), device)
    tokens = iter(llm.generate("One day", max_tokens=20, temperature=0))
    next(tokens)
    per_step = 1 + 8 * llm.config.n_layers + 2 + 2
    assert device.n_launches == per_step * (1 + STEPS_AHEAD)


@needs_emulator
def test_mixed_weight_types_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(model_path(DEMO))
    name = "layers.0.attention.wk.weight"
    q = np.zeros(checkpoint.tensors[name].shape, np.int8)
    checkpoint.tensors[name] = Int8Matrix(q, np.ones(q.size // 32, np.float32), 32)  # type: ignore[index]
    backend = CUDABackend(EmulatedDevice())
    model = Llama(checkpoint, backend)
    with pytest.raises(UsageError, match="mixes weight types"):
        model.forward([1, 2], backend.kv_cache(checkpoint.config, 4))
