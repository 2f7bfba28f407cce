"""Names and shapes of the tensors of a MicroRWKV (models/micro_rwkv.py); checkpoint.py has those of a Llama."""

from __future__ import annotations

from collections.abc import Iterable

from llamagpu.config import ModelConfig

TIME_MIXED, CHANNEL_MIXED = "kvrg", "kr"  # the mixes of a token with the one before it, by what they become
PARTS = ("weight", "bias")


def micro_rwkv_shapes(config: ModelConfig, idle_experts: bool = True) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, in the order in which a forward pass reads them.

    idle_experts: those that the gate weighs and that are never run, too. MicroRWKV itself builds only the active ones.
    """
    dim, hidden, n_heads = config.dim, config.hidden_dim, config.n_heads
    n_experts = config.n_experts if idle_experts else config.n_active_experts
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (config.vocab_size, dim),
        "position_embeddings.weight": (config.max_seq_len, dim),
    }

    def linear(name: str, out_features: int, in_features: int, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = (out_features, in_features)
        if bias:
            shapes[f"{name}.bias"] = (out_features,)

    for i in range(config.n_layers):
        time_mix, channel_mix = f"layers.{i}.time_mix", f"layers.{i}.channel_mix"
        shapes |= {f"{time_mix}.mix_{name}": (dim,) for name in TIME_MIXED}
        shapes |= {f"{time_mix}.decay": (n_heads,), f"{time_mix}.bonus": (n_heads,)}
        for name in ("receptance", "key", "value", "gate", "output"):
            linear(f"{time_mix}.{name}", dim, dim, config.linear_bias)
        shapes |= {f"{time_mix}.norm.weight": (dim,), f"{time_mix}.norm.bias": (dim,)}
        shapes |= {f"{channel_mix}.mix_{name}": (dim,) for name in CHANNEL_MIXED}
        linear(f"{channel_mix}.key", hidden, dim, config.linear_bias)
        linear(f"{channel_mix}.value", dim, hidden, config.linear_bias)
        linear(f"{channel_mix}.receptance", dim, dim, config.linear_bias)
        linear(f"layers.{i}.sliding_attention.qkv", 3 * dim, dim)
        linear(f"layers.{i}.sliding_attention.output", dim, dim)
        linear(f"layers.{i}.grouped_attention.qkvw", 4 * dim, dim)
        linear(f"layers.{i}.grouped_attention.output", dim, dim)
        linear(f"layers.{i}.moe.gate", config.n_experts, dim, bias=True)
        for a in range(n_experts):
            linear(f"layers.{i}.moe.experts.{a}", config.expert_hidden_dim, dim, bias=True)
        linear(f"layers.{i}.moe.output", dim, config.expert_hidden_dim, bias=True)
    shapes["norm.weight"] = (dim,)
    if config.linear_bias:
        shapes["norm.bias"] = (dim,)
    return shapes


def has_idle_experts(config: ModelConfig, names: Iterable[str]) -> bool:
    """Whether any of the names is of an expert that is never run, in these names or MicroRWKV's."""
    idle = tuple(f".moe.experts.{a}.{kind}" for a in range(config.n_active_experts, config.n_experts) for kind in PARTS)
    return bool(idle) and any(name.endswith(idle) for name in names)
