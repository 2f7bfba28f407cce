"""What Mistral, Qwen2, Qwen3 and Llama 3 add to Llama, through the CUDA backend: same text and logits as on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llamagpu.backends.cuda.device import Device
from llamagpu.checkpoint import Checkpoint, llama_shapes
from llamagpu.config import ModelConfig
from llamagpu.llm import LLM
from llamagpu.quantization import AffineQuant, Deferred
from tests.models.test_llama_on_cuda import both, greedy

SHAPE = ("dim", 48), ("hidden_dim", 80), ("n_layers", 3), ("n_heads", 6), ("n_kv_heads", 2), ("head_dim", 10)
SIZES = {**dict(SHAPE), "vocab_size": 300, "max_seq_len": 128}
MODELS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 7},
    "qwen2": {"qkv_bias": True, "rope_layout": "half_split"},
    "qwen2 with windows from layer 1": {"qkv_bias": True, "sliding_window": 20, "first_window_layer": 1},
    "qwen3": {"qk_norm": True, "rope_layout": "half_split", "norm_eps": 1e-6},
    "llama with biases": {"qkv_bias": True, "out_bias": True, "ffn_bias": True, "rope_layout": "half_split"},
    "llama": {"rope_factors": (1.0, 1.0, 1.7, 8.0, 8.0), "rope_attention_factor": 1.1, "rope_theta": 5e5},
}
# of models whose choices are clear: their two best logits are never near one another
SEEDS = {("qwen2 with windows from layer 1", "8 bits with offsets"): 1, ("qwen3", "4 bits, wv 8"): 2}
SEEDS |= {("llama with biases", "4 bits, wv 8"): 1, ("llama", "float16"): 1, ("llama", "bfloat16"): 1}
WEIGHTS = ["float32", "float16", "bfloat16", "4 bits", "8 bits with offsets", "4 bits, wv 8"]


def weight(kind: str, name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Any:
    if len(shape) == 1:
        return np.float32(not name.endswith("bias")) + 0.3 * generator.standard_normal(shape, np.float32)
    w = generator.standard_normal(shape, np.float32) * np.float32(0.15 if name.startswith("layers") else 0.5)
    if kind in ("float32", "float16", "bfloat16"):
        return w.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    bits = 8 if kind.startswith("8") or ("wv" in name and kind.endswith("8")) else 4
    has_offsets = kind.endswith("offsets")
    rows = np.pad(w, ((0, 0), (0, -shape[1] % 16))).reshape(shape[0], -1, 16)
    low, high = rows.min(axis=2), rows.max(axis=2)
    scales = ((high - low) / (2**bits - 1)).astype(np.float16).astype(np.float32)
    zeros = low if has_offsets else np.rint(-low / scales)
    q = (rows - low[..., None] if has_offsets else rows + (zeros * scales)[..., None]) / scales[..., None]
    q = np.clip(np.rint(q), 0, 2**bits - 1).reshape(shape[0], -1)[:, : shape[1]]
    made = AffineQuant.pack(q.astype(np.uint8), scales, zeros, bits, 16, has_offsets=has_offsets)
    return Deferred(made.shape, made.nbytes, f"{bits}-bit", lambda: made)


def random_model(name: str, kind: str, seed: int = 0) -> Checkpoint:
    config = ModelConfig.checked("x", {"architecture": name.split()[0], **SIZES, **MODELS[name]})
    generator = np.random.default_rng(seed)
    tensors = {name: weight(kind, name, shape, generator) for name, shape in llama_shapes(config).items()}
    return Checkpoint(Path("x"), "random", config, tensors)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_text(name: str, kind: str, device: Device) -> None:
    """A prompt of 40, then token by token past the window."""
    cpu, cuda = both(random_model(name, kind, SEEDS.get((name, kind), 0)), device)
    prompt = np.random.default_rng(1).integers(0, 300, 40).tolist()
    said = greedy(cpu, prompt, 30)
    assert greedy(cuda, prompt, 30) == said
    assert len(set(said)) > 10, "a model that says one thing shows nothing"
    expected, got = (llm.logits(prompt + said) for llm in (cpu, cuda))
    assert np.square(expected - got).sum() / np.square(expected).sum() < (1e-9 if kind == "float32" else 1e-5)
    best = np.sort(expected, axis=1)[len(prompt) - 1 : -1]
    off = np.abs(expected - got).max(axis=1)[len(prompt) - 1 : -1]
    assert (best[:, -1] - best[:, -2] > 2 * off).all(), "it might have been luck"


@pytest.mark.parametrize("name", MODELS)
def test_keys_and_values_of_8_bits(name: str, device: Device) -> None:
    """Rounded alike on both: one number of a hundred thousand may fall to the other side of a tie."""
    checkpoint = random_model(name, "float32")
    cpu, cuda = both(checkpoint, device)
    ids = np.random.default_rng(1).integers(0, 300, 60).tolist()
    exact = cpu.logits(ids)
    cpu.kv_bits = cuda.kv_bits = 8
    cache = cuda.backend.kv_cache(cuda.config, 10, 8)
    assert (cache.keys.dtype, cpu.backend.kv_cache(cpu.config, 10, 8).keys.dtype) == (np.int8, np.int8)
    expected, got = cpu.logits(ids), cuda.logits(ids)
    assert np.square(got - expected).sum() / np.square(expected).sum() < 1e-5
    rounding = np.square(expected - exact).sum() / np.square(exact).sum()
    assert 1e-6 < rounding < 1e-3
    said = [greedy(llm, ids[:20], 12) for llm in (cpu, cuda)]
    assert said[0] == said[1]


@pytest.mark.parametrize("name", MODELS)
def test_one_token_at_a_time_is_the_same_as_a_prompt(name: str, device: Device) -> None:
    """The fused kernels of few tokens and the ones of prompts have the same bias, norms, windows and angles."""
    _, cuda = both(random_model(name, "float32"), device)
    ids = np.random.default_rng(2).integers(0, 300, 34).tolist()
    whole = cuda.logits(ids)
    for step in (1, 3):
        cache = cuda.backend.kv_cache(cuda.config, len(ids))
        rows = [cuda.model.forward(ids[at : at + step], cache, len(ids[at : at + step])) for at in range(0, 12, step)]
        del rows[:-1]
        last = cuda.backend.to_host(rows[0], 300)[-1]
        assert np.square(last - whole[11]).sum() / np.square(whole[11]).sum() < 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_what_is_new_changes_the_logits(name: str) -> None:
    """A detail that is read and then ignored would pass all of the above."""
    checkpoint = random_model(name, "float32")
    ids = np.random.default_rng(2).integers(0, 300, 34).tolist()
    plain = replace(
        checkpoint.config, sliding_window=0, rope_factors=None, rope_attention_factor=1.0, qkv_bias=False,
        qk_norm=False, out_bias=False, ffn_bias=False,
    )  # fmt: skip
    tensors = {k: v for k, v in checkpoint.tensors.items() if not k.endswith("bias") and "q_norm" not in k}
    without = Checkpoint(Path("x"), "random", plain, {k: v for k, v in tensors.items() if "k_norm" not in k})
    difference = LLM(checkpoint, "cpu").logits(ids) - LLM(without, "cpu").logits(ids)
    assert np.abs(difference).max() > 0.05
