"""Small random models in floats of every architecture, as checkpoints in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llamagpu.checkpoint import Checkpoint, Tensor, llama_shapes
from llamagpu.config import ModelConfig

SIZES = {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "vocab_size": 320,
         "max_seq_len": 64}  # fmt: skip
# Llama 3's rule with factor 8, trained on 256 positions, theta 10000: as its authors' code computes it.
LLAMA3_FACTORS = tuple(
    8.0 if wave > 256 / 1 else 1.0 if wave < 256 / 4 else 1 / ((1 - part) / 8 + part)
    for wave, part in ((wave, (256 / wave - 1) / 3) for wave in (2 * np.pi * 10000.0 ** (2 * j / 16) for j in range(8)))
)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10000.0},
    "llama, head tied": {"tied_head": True},
    "llama, stretched": {"rope_factors": (2.5,) * 8, "rope_layout": "half_split"},
    "llama 3": {"rope_factors": LLAMA3_FACTORS, "norm_eps": 1e-6},
    "mistral": {"architecture": "mistral", "sliding_window": 7},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True, "rope_layout": "half_split", "tied_head": True},
    "qwen2, windows": {"architecture": "qwen2", "qkv_bias": True, "sliding_window": 9, "first_window_layer": 1},
    "qwen3": {"architecture": "qwen3", "qk_norm": True},
    "llama, biases": {"qkv_bias": True, "out_bias": True, "ffn_bias": True},
    "qwen3, biases": {"architecture": "qwen3", "qk_norm": True, "qkv_bias": True, "out_bias": True},
}


def float_model(name: str = "llama", dtype: Any = np.float32, seed: int = 0, **sizes: int) -> Checkpoint:
    """Matrices in ``dtype``, vectors in float32."""
    config = ModelConfig.checked("x", {"architecture": "llama", **SIZES, **MODELS[name], **sizes})
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for key, shape in llama_shapes(config).items():
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 2:
            tensors[key] = (values / np.float32(shape[1] ** 0.5)).astype(dtype)
        else:
            tensors[key] = np.float32(not key.endswith("bias")) + np.float32(0.2) * values
    return Checkpoint(Path("random"), "random", config, tensors)


def float_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: np.asarray(tensor, np.float32) for name, tensor in checkpoint.tensors.items()}
