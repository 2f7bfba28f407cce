"""Shapes of well-known models, and checkpoints of such a shape with random weights: to measure without a download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from llamagpu.checkpoint import Checkpoint, tensor_shapes
from llamagpu.config import ModelConfig
from llamagpu.quantization.random import RandomMatrix
from llamagpu.rwkv_shapes import is_thin


def rwkv7(dim: int, n_layers: int, ranks: tuple[int, ...]) -> ModelConfig:
    """An RWKV-7 of the World series."""
    return ModelConfig("rwkv7", dim, 4 * dim, n_layers, dim // 64, dim // 64, 64, 65536, 4096, ranks=ranks)


SHAPES: dict[str, ModelConfig] = {
    "llama2-7b": ModelConfig("llama", 4096, 11008, 32, 32, 32, 128, 32000, 4096),
    "llama2-13b": ModelConfig("llama", 5120, 13824, 40, 40, 40, 128, 32000, 4096),
    "llama2-70b": ModelConfig("llama", 8192, 28672, 80, 64, 8, 128, 32000, 4096),
    "llama3-8b": ModelConfig("llama", 4096, 14336, 32, 32, 8, 128, 128256, 8192, rope_theta=500000.0),
    "llama3.2-1b": ModelConfig("llama", 2048, 8192, 16, 32, 8, 64, 128256, 8192, rope_theta=500000.0, tied_head=True),
    "rwkv7-0.4b": rwkv7(1024, 24, (64, 64, 32, 128)),
    "rwkv7-1.5b": rwkv7(2048, 24, (96, 96, 64, 256)),
    "rwkv7-2.9b": rwkv7(2560, 32, (96, 96, 64, 320)),
    "rwkv7-7b": rwkv7(4096, 32, (128, 128, 96, 480)),
    "tiny": ModelConfig("llama", 64, 192, 2, 4, 2, 16, 128, 4096),  # for tests
    "tiny-rwkv": replace(rwkv7(64, 2, (8, 8, 8, 16)), n_heads=4, n_kv_heads=4, head_dim=16, vocab_size=128),
}
BITS = (4, 8, 16)
EMBEDDING_AND_HEAD = ("tok_embeddings.weight", "output.weight")


def random_checkpoint(
    shape: str, bits: int, head_bits: int, group_size: int, max_seq_len: int, seed: int
) -> Checkpoint:
    """A checkpoint of ``SHAPES[shape]`` that was never a file; its matrices are made by whoever loads it.

    bits: of each weight; head_bits: of the embedding and the output head; 16 is float16, below it one scale for
    group_size weights of a row. max_seq_len: positions, whatever such a model was trained for.
    """
    config = replace(SHAPES[shape], max_seq_len=max_seq_len)
    tensors: dict[str, Any] = {}
    for n, (name, size) in enumerate(tensor_shapes(config).items()):
        if len(size) == 1:
            tensors[name] = np.ones(size, np.float32)
        else:
            matrix_bits = 16 if is_thin(name) else head_bits if name in EMBEDDING_AND_HEAD else bits
            tensors[name] = RandomMatrix(size[0], size[1], matrix_bits, group_size, seed + n)
    return Checkpoint(Path(shape), f"random {shape}", config, cast("dict[str, np.ndarray[Any, Any]]", tensors))
