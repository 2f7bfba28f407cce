"""Whole models through the CUDA backend: the same launches on the emulator and, with `-m gpu`, on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.backends.cuda import STEPS_AHEAD, CUDABackend
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import DeviceMatrix, pad_rows
from llamagpu.checkpoint import Checkpoint, llama_shapes
from llamagpu.config import ModelConfig, RopeLayout
from llamagpu.errors import LlamaGPUError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import DEMO, LLM, load, model_path
from llamagpu.models.llama import Llama
from llamagpu.quantization import AffineQuant, RandomMatrix
from llamagpu.sampling import SamplingParams
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
    cpu, cuda = load(small, "cpu"), on_device(small, device)
    ids = list(range(5, 35, 2))
    expected, got = cpu.logits(ids), cuda.logits(ids)
    if cuda.backend.kv_cache(cuda.config, 1).keys.dtype == np.float32:
        assert np.abs(expected - got).max() < 1e-4
    assert np.square(expected - got).sum() / np.square(expected).sum() < 1e-6
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
    assert device.n_launches == (1 + 6 * layers + 1 + 2) * 20, "launches of a step"


@needs_emulator
def test_the_host_runs_ahead_by_a_few_steps() -> None:
    device = EmulatedDevice()
    llm = on_device(model_path(DEMO), device)
    tokens = iter(llm.generate("One day", max_tokens=20, temperature=0))
    next(tokens)
    per_step = 1 + 6 * llm.config.n_layers + 1 + 2
    assert device.n_launches == per_step * (1 + STEPS_AHEAD)


def quantized(checkpoint: Checkpoint, bits: int = 4, act_order: bool = False, head_bits: int = 16) -> Checkpoint:
    """The matrices of all layers rounded to groups of 32, by turns with a zero point that GPTQ would give."""
    generator = np.random.default_rng(5)
    orders: dict[int, Any] = {}

    def rounded(name: str, w: Any) -> Any:
        if w.ndim == 1 or not (name.startswith("layers") or head_bits < 16):
            return w
        own_bits = bits if name.startswith("layers") else head_bits
        in_features = w.shape[1]
        order = orders.setdefault(in_features, generator.permutation(in_features)) if act_order else None
        padded = np.zeros((w.shape[0], -(-in_features // 32) * 32), np.float32)
        padded[:, :in_features] = w if order is None else w[:, order]
        groups = padded.reshape(w.shape[0], -1, 32)
        low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 1e-8)
        scales = ((high - low) / (2**own_bits - 1)).astype(np.float16)
        zeros = np.rint(-low / scales.astype(np.float32))
        q = np.clip(np.rint(groups / scales[..., None].astype(np.float32)) + zeros[..., None], 0, 2**own_bits - 1)
        return AffineQuant.pack(q.reshape(padded.shape)[:, :in_features], scales, zeros, own_bits, 32, order)

    tensors = {name: rounded(name, np.asarray(tensor)) for name, tensor in checkpoint.tensors.items()}
    return Checkpoint(checkpoint.path, "quantised", checkpoint.config, tensors, checkpoint.tokenizer)


def both(checkpoint: Checkpoint, device: Device) -> tuple[LLM, LLM]:
    """On the CPU and on the device."""
    cpu, cuda = LLM(checkpoint, "cpu"), LLM(checkpoint, "cpu")
    cuda.backend = CUDABackend(device)
    cuda.model = Llama(checkpoint, cuda.backend)
    return cpu, cuda


# seeds of models whose 64 tokens are clear choices: their two best logits are never near one another
SEEDS: dict[tuple[RopeLayout, bool], int] = {
    ("interleaved", False): 2, ("interleaved", True): 1, ("half_split", False): 1, ("half_split", True): 3
}  # fmt: skip


@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("layout", ["interleaved", "half_split"])
def test_a_random_4_bit_model(act_order: bool, layout: RopeLayout, device: Device) -> None:
    config = ModelConfig("llama", 96, 168, 2, 6, 2, 16, 300, 128, rope_layout=layout)
    generator = np.random.default_rng(SEEDS[layout, act_order])
    tensors: dict[str, Any] = {}
    for name, shape in llama_shapes(config).items():
        scale = 0.0 if len(shape) == 1 else 0.1 if name.startswith("layers") else 0.5
        tensors[name] = generator.standard_normal(shape, np.float32) * np.float32(scale) + np.float32(len(shape) == 1)
    cpu, cuda = both(quantized(Checkpoint(Path(), "random", config, tensors), 4, act_order, head_bits=4), device)
    prompt = generator.integers(0, 300, 40).tolist()[:5]
    runs = [greedy(llm, prompt, 64) for llm in (cpu, cuda)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 20, "a model that says one thing shows nothing"
    expected, got = (llm.logits(prompt + runs[0]) for llm in (cpu, cuda))
    assert np.square(expected - got).sum() / np.square(expected).sum() < 1e-5
    best = np.sort(expected[4:], axis=1)
    assert np.abs(expected - got).max() < (best[:, -1] - best[:, -2]).min(), "it might have been luck"


def greedy(llm: LLM, prompt: list[int], n_tokens: int) -> list[int]:
    backend = llm.backend
    cache = backend.kv_cache(llm.config, len(prompt) + n_tokens, llm.kv_bits)
    logits = llm.model.forward(prompt, cache)
    sampler = backend.sampler(SamplingParams(temperature=0, seed=0), llm.config.vocab_size)
    return list(backend.decode(llm.model.forward, cache, sampler, logits, n_tokens))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_built_in_model_at_few_bits_says_what_the_cpu_says(bits: int, device: Device) -> None:
    cpu, cuda = both(quantized(open_checkpoint(model_path(DEMO)), bits, head_bits=8), device)
    texts = ["".join(llm.generate("Once upon a time", max_tokens=40, temperature=0.8, seed=4)) for llm in (cpu, cuda)]
    assert texts[0] == texts[1]


def test_layers_that_mix_types_of_weights(device: Device) -> None:
    """As GGUF files do: such layers take the kernels that are not fused, for few tokens and for many."""
    checkpoint = open_checkpoint(model_path(DEMO))
    quarter, half = quantized(checkpoint, 4, act_order=True).tensors, quantized(checkpoint, 8).tensors
    tensors = dict(checkpoint.tensors)
    for name in tensors:
        if name.startswith("layers.0") and any(part in name for part in ("wk", "w1", "w3")):
            tensors[name] = (quarter if "w1" in name else half)[name]
        if name.startswith("layers.1"):
            tensors[name] = (quarter if "wv" in name or "w2" in name else half)[name]
    cpu, cuda = both(Checkpoint(checkpoint.path, "mixed", checkpoint.config, tensors, checkpoint.tokenizer), device)
    ids = np.random.default_rng(0).integers(3, 1024, 30).tolist()
    expected, got = cpu.logits(ids), cuda.logits(ids)
    assert np.square(got - expected).sum() / np.square(expected).sum() < 1e-5
    texts = ["".join(llm.generate("One day", max_tokens=30, temperature=0)) for llm in (cpu, cuda)]
    assert texts[0] == texts[1]


def test_random_weights_are_made_on_the_device(device: Device) -> None:
    """The same matrix as in host memory, whatever its size beside that of the block which is repeated."""
    backend = CUDABackend(device)
    for bits in (4, 8, 16):
        matrix = RandomMatrix(1500, 1408, bits)
        made = backend.weight(matrix)
        host = matrix.materialize()
        expected = host.q if isinstance(host, AffineQuant) else pad_rows(host)
        assert isinstance(made, DeviceMatrix)
        assert device.download(made.data).tobytes()[: 1 << 21] == expected.tobytes()[: 1 << 21]
        assert made.nbytes >= expected.nbytes


def test_a_context_that_outgrows_its_graph(device: Device) -> None:
    """One graph for each bucket of positions; the text does not show where one ends."""
    checkpoint = open_checkpoint(model_path(DEMO))
    config = replace(checkpoint.config, max_seq_len=600)
    cpu, cuda = both(Checkpoint(checkpoint.path, "longer", config, checkpoint.tensors, checkpoint.tokenizer), device)
    prompt = cpu.tokenizer.encode("Once upon a time there was a dog. " * 60)[:506]
    assert len(prompt) == 506
    assert greedy(cpu, prompt, 20) == greedy(cuda, prompt, 20)
