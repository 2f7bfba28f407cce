"""Small GPTQ and AWQ models, packed from their published layouts by plain loops, and what their weights are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references.make_huggingface import LLAMA, Arrays, random_tensors, write_folder

CONFIG = LLAMA | {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 96}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Quantized:
    """method: gptq or awq. version: of GPTQ. g_idx: "none", "trivial" or "act order". modules: which are quantised."""

    method: str = "gptq"
    bits: int = 4
    group_size: int = 32
    version: int = 1
    g_idx: str = "trivial"
    modules: tuple[str, ...] = PROJECTIONS
    config: dict[str, Any] = field(default_factory=lambda: CONFIG)

    def settings(self) -> dict[str, Any]:
        if self.method == "awq":
            common = {"quant_method": "awq", "version": "gemm", "zero_point": True}
            return common | {"bits": self.bits, "group_size": self.group_size, "modules_to_not_convert": None}
        return {
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group_size, "sym": False,
            "desc_act": self.g_idx == "act order", "checkpoint_format": ("gptq", "gptq_v2")[self.version - 1],
        }  # fmt: skip


def packed(numbers: NDArray[np.int64], bits: int, order: tuple[int, ...]) -> NDArray[np.int32]:
    """Along the last axis: neighbour order[i] of 32 / bits is bits i * bits and up of a word."""
    per_word = 32 // bits
    words = np.zeros((numbers.shape[0], numbers.shape[1] // per_word), np.int64)
    for word in range(words.shape[1]):
        for i in range(per_word):
            words[:, word] |= numbers[:, word * per_word + order[i]] << (bits * i)
    return words.astype(np.uint32).view(np.int32)


def quantize(
    case: Quantized, module: str, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Arrays, NDArray[np.float32]]:
    """Tensors of one quantised matrix, all numbers random, and the matrix that they mean."""
    out_features, in_features = shape
    group_size = in_features if case.group_size == -1 else case.group_size
    n_groups = -(-in_features // group_size)
    q = rng.integers(0, 2**case.bits, (in_features, out_features))
    first = 1 if case.method == "gptq" and case.version == 1 else 0
    zeros = rng.integers(first, 2**case.bits + first, (n_groups, out_features))
    scales = (rng.uniform(0.5, 1.5, (n_groups, out_features)) / 2**case.bits / in_features**0.5 * 3).astype(np.float16)
    group = np.arange(in_features) // group_size
    if case.g_idx == "act order":
        group = group[rng.permutation(in_features)]
    weight = np.zeros(shape, np.float32)
    for i in range(in_features):
        weight[:, i] = scales[group[i]].astype(np.float32) * (q[i] - zeros[group[i]]).astype(np.float32)

    in_order = tuple(range(32 // case.bits))
    tensors: Arrays = {f"{module}.scales": scales}
    if case.method == "awq":
        tensors[f"{module}.qweight"] = packed(q, 4, AWQ_ORDER)
        tensors[f"{module}.qzeros"] = packed(zeros, 4, AWQ_ORDER)
        return tensors, weight
    tensors[f"{module}.qweight"] = np.ascontiguousarray(packed(q.T, case.bits, in_order).T)
    tensors[f"{module}.qzeros"] = packed(zeros - first, case.bits, in_order)
    if case.g_idx != "none":
        tensors[f"{module}.g_idx"] = group.astype(np.int32)
    return tensors, weight


def tensors_of(case: Quantized) -> tuple[Arrays, Arrays]:
    """The tensors of the quantised model and, under the same names, those of the float32 model that it means."""
    rng = np.random.default_rng([case.bits, case.group_size & 0xFFFF, case.version])
    quantized: Arrays = {}
    plain = random_tensors(case.config, seed=1)
    for name, array in list(plain.items()):
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module.rpartition(".")[2] in case.modules:
            parts, plain[name] = quantize(case, module, array.shape, rng)
            quantized |= parts
        else:
            quantized[name] = array
    return quantized, plain


def build_pair(case: Quantized, folder: Path) -> tuple[Path, Path]:
    """A folder of the quantised model and one of the float32 model."""
    quantized, plain = tensors_of(case)
    config = case.config | {"quantization_config": case.settings()}
    return write_folder(folder / "quantized", config, quantized), write_folder(folder / "plain", case.config, plain)
