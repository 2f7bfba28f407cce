"""Random RWKVs of each version, with weights of the sizes that trained ones have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec
from llamagpu.config import ModelConfig
from llamagpu.quantization import round_to_nearest
from llamagpu.rwkv_shapes import is_thin, rwkv_shapes

RANKS: dict[str, tuple[int, ...]] = {"rwkv4": (), "rwkv5.0": (), "rwkv5": (), "rwkv6": (5, 7), "rwkv7": (8, 5, 3, 12)}
TYPES = ("float32", "float16", "8 bits", "4 bits", "mixed")
LENGTHS = {
    "decay": {"rwkv4": (-5.0, -0.01), "rwkv5.0": (0.4, 0.999), "rwkv5": (0.4, 0.999)},
    "w0": {"rwkv6": (-6.0, -1.0), "rwkv7": (-3.0, 2.0)},
}


def random_rwkv(version: str, kind: str = "float32", dim: int = 48, n_heads: int = 3, seed: int = 0) -> Checkpoint:
    """A model of two layers and a vocabulary of bytes. kind: of TYPES, of the large matrices."""
    heads = 1 if version == "rwkv4" else n_heads
    config = ModelConfig(version, dim, 3 * dim, 2, heads, heads, dim // heads, 256, 4096, ranks=RANKS[version])
    random = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for n, (name, shape) in enumerate(rwkv_shapes(config).items()):
        leaf = name.rpartition(".")[2]
        if len(shape) == 2:
            matrix = random.standard_normal(shape).astype(np.float32) * np.float32(shape[1] ** -0.5)
            tensors[name] = matrix if is_thin(name) else stored(matrix, kind, n)
        elif leaf in LENGTHS:
            tensors[name] = random.uniform(*LENGTHS[leaf][version], shape).astype(np.float32)
        elif leaf.startswith("x_") or leaf in ("k_k", "k_a"):
            tensors[name] = random.uniform(0, 1, shape).astype(np.float32)
        else:
            around = 1.0 if leaf == "weight" else 0.0
            tensors[name] = (around + 0.3 * random.standard_normal(shape)).astype(np.float32)
    return Checkpoint(Path(version), f"random {version}", config, tensors, TokenizerSpec("bytes", b""))


def stored(matrix: NDArray[np.float32], kind: str, n: int) -> Tensor:
    """A matrix in a type; n: its number, by which "mixed" chooses."""
    if kind == "mixed":
        kind = TYPES[n % 4]
    if kind in ("float32", "float16"):
        floats: NDArray[Any] = matrix.astype(kind)
        return floats
    return round_to_nearest(matrix, 4 if kind == "4 bits" else 8, 16)
