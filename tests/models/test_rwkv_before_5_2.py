"""RWKV-5.0 (which rwkv.cpp calls 5.1: no gate) and 5.1: one decay and one bonus for each head, as they were first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cuda import CUDABackend
from llamagpu.backends.cuda.device import Device
from llamagpu.checkpoint import Checkpoint
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.models import load_model
from tests.references.rwkv_reference import Array, Reference, Weights, layernorm, mixed, random_weights, sigmoid
from tests.rwkv_files import Arrays, ggmf_bytes, pth_bytes
from tests.test_cli import llamagpu

IDS = [5, 0, 69, 3, 3, 3, 41, 17, 8, 60, 22, 5, 5, 1, 33, 2, 50, 68, 12, 7]
SHAPES = [{}, {"head_dim": 32, "n_layers": 1}, {"dim": 24, "head_dim": 3, "hidden": 7, "n_layers": 2}]


def weights_of(gated: bool, **shape: int) -> Weights:
    """A 5.2 with a number for each head where that has one for each channel."""
    weights, rng = random_weights(5, **shape), np.random.default_rng(3)
    out: Weights = {}
    for name, value in weights.items():
        if not gated and ("gate" in name or "mix_g" in name):
            continue
        if name.endswith("time_decay"):
            value = value[:, 0]
        if name.endswith("time_faaaa"):
            name, value = name.replace("faaaa", "first"), rng.normal(0, 0.7, len(value)).astype(np.float32)
        out[name] = value
    return out


class Earlier(Reference):
    """The forward pass of 5.0 and 5.1, head by head."""

    def __init__(self, weights: Weights, head_eps: float = 64e-5) -> None:
        n_heads, dim = weights["blocks.0.att.time_first"].size, weights["emb.weight"].shape[1]
        shape = np.zeros((n_heads, dim // n_heads), np.float32)
        super().__init__({**weights, "blocks.0.att.time_faaaa": shape}, 5, head_eps)

    def time_mix_5(self, w: dict[str, Array], x: Array, before: Array, i: int) -> Array:
        r, k, v = (w[f"{kind}.weight"] @ mixed(x, before, w[f"time_mix_{kind[0]}"])
                   for kind in ("receptance", "key", "value"))  # fmt: skip
        n_heads, n = self.states.shape[1:3]
        first, decay = np.exp(w["time_first"]), np.exp(-np.exp(w["time_decay"]))
        out = []
        for h in range(n_heads):
            part = slice(h * n, (h + 1) * n)
            kv = np.outer(k[part], v[part])
            y = r[part] @ (first[h] * kv + self.states[i, h])
            self.states[i, h] = decay[h] * self.states[i, h] + kv
            out.append(layernorm(y, w["ln_x.weight"][part], w["ln_x.bias"][part], self.head_eps))
        y = np.concatenate(out)
        if "gate.weight" in w:
            g = w["gate.weight"] @ mixed(x, before, w["time_mix_g"])
            y = y * g * sigmoid(g)
        return np.asarray(w["output.weight"] @ y)


def as_rwkv_cpp_has_them(weights: Weights) -> Arrays:
    """Its converter works both out, and adds two axes."""
    out: Arrays = {}
    for name, value in weights.items():
        if name.endswith("time_decay"):
            value = np.exp(-np.exp(value)).reshape(-1, 1, 1)
        elif name.endswith("time_first"):
            value = np.exp(value).reshape(-1, 1, 1)
        elif ".time_" in name:
            value = value.squeeze()
        out[name] = value
    return out


def opened(data: bytes, tmp_path: Path, name: str = "model.pth") -> Checkpoint:
    path = tmp_path / name
    path.write_bytes(data)
    return open_checkpoint(path)


def on_device(checkpoint: Checkpoint, device: Device) -> LLM:
    llm = LLM(checkpoint, "cpu")
    llm.backend = CUDABackend(device)
    llm.model = load_model(checkpoint, llm.backend)
    return llm


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_an_independent_forward_pass(gated: bool, shape: dict[str, int], tmp_path: Path) -> None:
    weights = weights_of(gated, **shape)
    expected = Earlier(weights).logits(IDS)
    assert np.abs(expected).max() > 1
    checkpoint = opened(pth_bytes(weights), tmp_path)
    assert checkpoint.config.architecture == ("rwkv5" if gated else "rwkv5.0")
    np.testing.assert_allclose(LLM(checkpoint, "cpu").logits(IDS), expected, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_files_of_rwkv_cpp(shape: dict[str, int], half: bool, tmp_path: Path) -> None:
    weights = weights_of(False, **shape)
    data = ggmf_bytes(as_rwkv_cpp_has_them(weights), half, as_it_is=True)
    checkpoint = opened(data, tmp_path, "model.bin")
    rounded = {name: value.astype(np.float16).astype(np.float32) if half and value.ndim == 2 else value
               for name, value in weights.items()}  # fmt: skip
    np.testing.assert_allclose(LLM(checkpoint, "cpu").logits(IDS), Earlier(rounded, 1e-5).logits(IDS), atol=1e-4)


def test_the_cuda_backend_says_the_same(tmp_path: Path, device: Device) -> None:
    checkpoint = opened(pth_bytes(weights_of(False)), tmp_path)
    expected: NDArray[np.float32] = LLM(checkpoint, "cpu").logits(IDS)
    llm = on_device(checkpoint, device)
    assert np.square(llm.logits(IDS) - expected).sum() / np.square(expected).sum() < 1e-8


def test_it_can_be_converted_and_quantised(tmp_path: Path) -> None:
    weights = weights_of(False, dim=64, head_dim=32, vocab=256)
    expected = LLM(opened(pth_bytes(weights), tmp_path), "cpu").logits(IDS)
    out = tmp_path / "out.bin"
    assert llamagpu("convert", tmp_path / "model.pth", out, "--tokenizer", "none").returncode == 0
    np.testing.assert_allclose(LLM(open_checkpoint(out), "cpu").logits(IDS), expected, atol=1e-5)
