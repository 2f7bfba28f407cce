"""Checkpoints of small MicroRWKVs as its training saves them, of weights from a seed at the scale of trained ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.torch_files import torch_bytes

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MicroShape:
    """By the names of model_args, of which ``dim`` is n_embd."""

    n_embd: int = 16
    n_layer: int = 2
    n_head: int = 2
    block_size: int = 32
    vocab_size: int = 300
    num_experts: int = 3
    num_active_experts: int = 2
    expert_dim: int = 9  # 10 wide
    bias: bool = False
    idle_experts: bool = True  # whether the file has experts that are not run, which MicroRWKV itself does not build

    def model_args(self, **more: Any) -> dict[str, Any]:
        return {
            "block_size": self.block_size, "vocab_size": self.vocab_size, "n_layer": self.n_layer,
            "n_head": self.n_head, "n_embd": self.n_embd, "num_experts": self.num_experts,
            "num_active_experts": self.num_active_experts, "expert_dim": self.expert_dim, "dim": self.n_embd,
            "dropout": 0.0, "bias": self.bias, **more,
        }  # fmt: skip


def micro_state(shape: MicroShape, seed: int = 0) -> dict[str, Floats]:
    """MicroRWKV's state_dict; the head is the embedding, the same array."""
    rng = np.random.default_rng([seed, shape.n_embd, shape.n_layer])
    c, width = shape.n_embd, int(shape.expert_dim * 1.2)
    state: dict[str, Floats] = {}

    def put(name: str, values: NDArray[np.float64]) -> None:
        state[name] = values.astype(np.float32)

    def linear(name: str, out_features: int, in_features: int, bias: bool) -> None:
        put(f"{name}.weight", 0.8 * rng.standard_normal((out_features, in_features)) / np.sqrt(in_features))
        if bias:
            put(f"{name}.bias", 0.1 * rng.standard_normal(out_features))

    def norm(name: str, bias: bool) -> None:
        put(f"{name}.weight", 1 + 0.2 * rng.standard_normal(c))
        if bias:
            put(f"{name}.bias", 0.1 * rng.standard_normal(c))

    put("transformer.wte.weight", 0.15 * rng.standard_normal((shape.vocab_size, c)))
    put("transformer.wpe.weight", 0.1 * rng.standard_normal((shape.block_size, c)))
    for i in range(shape.n_layer):
        block = f"transformer.h.{i}"
        for name in "kvrg":
            put(f"{block}.tmix.time_maa_{name}", rng.uniform(0, 1, (1, 1, c)))
        put(f"{block}.tmix.time_decay", rng.uniform(-6, 0, (shape.n_head, 1)))
        put(f"{block}.tmix.time_faaaa", rng.normal(0.3, 0.5, (shape.n_head, 1)))
        for name in ("receptance", "key", "value", "gate", "output"):
            linear(f"{block}.tmix.{name}", c, c, shape.bias)
        norm(f"{block}.tmix.ln_x", True)
        for name in "kr":
            put(f"{block}.cmix.time_maa_{name}", rng.uniform(0, 1, (1, 1, c)))
        linear(f"{block}.cmix.key", 3 * c, c, shape.bias)
        linear(f"{block}.cmix.value", c, 3 * c, shape.bias)
        linear(f"{block}.cmix.receptance", c, c, shape.bias)
        linear(f"{block}.sliding_attn.qkv", 3 * c, c, False)
        linear(f"{block}.sliding_attn.proj", c, c, False)
        linear(f"{block}.grouped_attn.qkvw", 4 * c, c, False)
        linear(f"{block}.grouped_attn.out", c, c, False)
        linear(f"{block}.moe.gate", shape.num_experts, c, True)
        for a in range(shape.num_experts if shape.idle_experts else shape.num_active_experts):
            linear(f"{block}.moe.experts.{a}", width, c, True)
        linear(f"{block}.moe.fc", c, width, True)
    norm("transformer.ln_f", shape.bias)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def micro_checkpoint(shape: MicroShape, seed: int = 0, prefix: str = "", **model_args: Any) -> dict[str, Any]:
    """The object that is saved. prefix: of the names, such as torch.compile's."""
    state = {prefix + name: values for name, values in micro_state(shape, seed).items()}
    moments = {i: {"step": np.zeros((), np.float32), "exp_avg": np.ones(3, np.float32)} for i in range(2)}
    return {
        "model": state, "optimizer": {"state": moments, "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.95)}]},
        "model_args": shape.model_args(**model_args), "iter_num": 500, "best_val_loss": np.array(3.1, np.float32),
        "config": {"compile": True, "dataset": "openwebtext", "wandb_log": None},
    }  # fmt: skip


def micro_bytes(shape: MicroShape, seed: int = 0, prefix: str = "", **model_args: Any) -> bytes:
    return torch_bytes(micro_checkpoint(shape, seed, prefix, **model_args))
