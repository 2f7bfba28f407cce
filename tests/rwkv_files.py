"""Small RWKVs in every form that is read, made from the weights of tests/references/rwkv_reference.py."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references.rwkv_reference import Weights
from tests.torch_files import torch_bytes

Arrays = dict[str, NDArray[Any]]
GGMF = 0x67676D66
THIN = tuple(f".att.{x}{n}" for x in "wavg" for n in "12")
KEPT_IN_FP32 = (".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")


def version_of(weights: Mapping[str, Any]) -> int:
    names = set(weights)
    marks = {7: "blocks.0.att.r_k", 6: "blocks.0.att.time_maa_x", 5: "blocks.0.att.time_faaaa"}
    return next((version for version, mark in marks.items() if mark in names), 4)


def pth_bytes(weights: Mapping[str, NDArray[Any]], dtype: Any = np.float32) -> bytes:
    """As RWKV publishes it."""
    return torch_bytes({name: value.astype(dtype) for name, value in weights.items()})


def ggmf_arrays(weights: Weights) -> Arrays:
    """What rwkv.cpp's converter makes of each tensor, axis by axis."""
    version, out = version_of(weights), dict[str, NDArray[Any]]()
    for name, value in weights.items():
        if version == 7 and ".att.x_" in name:
            fused = name[:-1] + "rwkvag"
            out[fused] = np.concatenate([out[fused], value]) if fused in out else value
            continue
        if ".time_" in name:
            value = value.squeeze()
        if version == 7 and name.endswith(THIN):
            value = value.T
        if version == 6 and ("time_maa_w1" in name or "time_decay_w" in name):
            value = value.T
        if version == 6 and "time_maa_w2" in name:
            value = value.transpose(0, 2, 1)
        if version == 6 and name.endswith("time_decay"):
            value = value.reshape(weights["blocks.0.att.time_faaaa"].shape[0], -1, 1)
        if version == 5 and "time_decay" in name:
            value = np.exp(-np.exp(value))[..., None]
        if "time_faaaa" in name:
            value = value[..., None]
        if version == 4 and "time_decay" in name:
            value = -np.exp(value)
        out[name] = np.ascontiguousarray(value)
    return out


def ggmf_bytes(
    weights: Weights, half: bool = False, quantise: Callable[[NDArray[Any]], tuple[int, bytes]] | None = None
) -> bytes:
    """half: FP16. quantise: type and blocks of a matrix, for those that rwkv.cpp quantises."""
    arrays = ggmf_arrays(weights)
    n_layers = sum(name.endswith(".ln1.weight") for name in arrays)
    out = struct.pack("<6I", GGMF, 101, *weights["emb.weight"].shape, n_layers, int(half))
    for name, value in arrays.items():
        kind, data = 0, value.astype("<f4").tobytes()
        if half and value.ndim > 1 and not any(part in name for part in KEPT_IN_FP32):
            kind, data = 1, value.astype("<f2").tobytes()
        if quantise and value.ndim == 2 and name not in ("emb.weight", "head.weight") and value.shape[1] % 32 == 0:
            kind, data = quantise(value)
        out += ggmf_tensor(name, value.shape, kind, data)
    return out


def ggmf_tensor(name: str | bytes, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    encoded = name.encode() if isinstance(name, str) else name
    head = struct.pack(f"<{3 + len(shape)}I", len(shape), len(encoded), kind, *reversed(shape))
    return head + encoded + data
