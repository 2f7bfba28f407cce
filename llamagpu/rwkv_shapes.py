"""Names and shapes of the tensors of an RWKV, as every reader of one gives them.

att mixes over time, ffn over channels; the names are those of RWKV's own files, but for three things. ``x_r`` and its
like are what the step from a token to the one before it is multiplied with, in all versions (RWKV-4 and 5 say
time_mix = 1 - x). Thin matrices are [out_features, in_features] as all others are. ``decay`` of RWKV-4 is
-exp(time_decay), of RWKV-5 exp(-exp(time_decay)): what each step adds to, or multiplies the state with. RWKV-5.0 is 5
without a gate; what it has one of for each head stands here for each channel.
"""

from __future__ import annotations

import re

from llamagpu.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]
# Of att, in the order of the kernels.
MIXES = {"rwkv4": "rkv", "rwkv5.0": "rkv", "rwkv5": "rkvg", "rwkv6": "wkvrg", "rwkv7": "rwkvag"}
# The matrices that steer decays, mixes and gates: a few percent of all weights, and what the state hangs on.
THIN = re.compile(r"layers\.[0-9]+\.att\.(maa_w[12]_[wkvrg]|[wavg][12])")


def rwkv_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every tensor of a recurrent config, in the order in which a forward pass reads them."""
    dim = config.dim
    shapes: Shapes = {"tok_embeddings.weight": (config.vocab_size, dim), **layernorm("embedding_norm", dim)}
    for i in range(config.n_layers):
        layer = f"layers.{i}"
        shapes |= layernorm(f"{layer}.attention_norm", dim)
        shapes |= {f"{layer}.att.{name}": shape for name, shape in att_shapes(config, is_first=i == 0).items()}
        shapes |= layernorm(f"{layer}.ffn_norm", dim)
        shapes |= {f"{layer}.ffn.{name}": shape for name, shape in ffn_shapes(config).items()}
    return shapes | layernorm("norm", dim) | {"output.weight": (config.vocab_size, dim)}


def layernorm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def att_shapes(config: ModelConfig, is_first: bool) -> Shapes:
    """The time mix of a layer; the first of an RWKV-7 has no values to mix with."""
    dim, version = config.dim, config.architecture
    shapes: Shapes = {f"x_{name}": (dim,) for name in MIXES[version]}
    matrices = ["receptance", "key", "value"]
    if version in ("rwkv4", "rwkv5.0", "rwkv5"):
        shapes |= {"decay": (dim,), "bonus": (dim,)}
    if version == "rwkv6":
        mix_rank, decay_rank = config.ranks
        shapes |= {"x_x": (dim,), "bonus": (dim,)}
        for name in MIXES[version]:
            shapes |= {f"maa_w1_{name}": (mix_rank, dim), f"maa_w2_{name}": (dim, mix_rank)}
        shapes |= thin("w", decay_rank, dim)
    if version == "rwkv7":
        for name, rank in zip("wavg", config.ranks, strict=True):
            if name != "v" or not is_first:
                shapes |= thin(name, rank, dim)
        del shapes["g0"]
        shapes |= {"k_k": (dim,), "k_a": (dim,), "r_k": (dim,)}
    if version in ("rwkv5", "rwkv6"):
        matrices.append("gate")
    shapes |= {f"{name}.weight": (dim, dim) for name in matrices}
    if version != "rwkv4":
        shapes |= layernorm("ln_x", dim)
    return shapes | {"output.weight": (dim, dim)}


def thin(name: str, rank: int, dim: int) -> Shapes:
    """A vector and a pair of thin matrices: name0 + name2 @ (name1 @ x)."""
    return {f"{name}0": (dim,), f"{name}1": (rank, dim), f"{name}2": (dim, rank)}


def is_thin(name: str) -> bool:
    """Whether a tensor of ``rwkv_shapes`` is one of a pair of thin matrices."""
    return THIN.fullmatch(name) is not None


def ffn_shapes(config: ModelConfig) -> Shapes:
    """The channel mix of a layer."""
    dim, hidden = config.dim, config.hidden_dim
    shapes: Shapes = {"x_k": (dim,)}
    if config.architecture != "rwkv7":
        shapes |= {"x_r": (dim,), "receptance.weight": (dim, dim)}
    return shapes | {"key.weight": (hidden, dim), "value.weight": (dim, hidden)}
