"""RWKV-7 ("Goose"): each token may also take out of a head's state what a key has there (a delta rule).

    r, k, v = receptance, key, value; w = exp(-exp(-0.5) * sigmoid(w0 + w2 @ tanh(w1 @ mixed_w)))     the decay
    a = sigmoid(a0 + a2 @ a1 @ mixed_a);  g = g2 @ sigmoid(g1 @ mixed_g)
    v = v + (v of the first layer - v) * sigmoid(v0 + v2 @ v1 @ mixed_v)                              but in the first
    kk = k * k_k, each head of it of length 1;  k = k * (1 + (a - 1) * k_a)
    S = S * w - (S kk) (kk * a)^T + v k^T;  y = S r                                                   S [value, key]
    x += output @ ((GroupNorm of each head(y) + (sum of r * k * r_k) * v) * g)

ranks of its config: of w, a, v, g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llamagpu.backends.protocol import Array, Weight
from llamagpu.backends.recurrent import Activation, Group, Norm
from llamagpu.models.rwkv import RWKV, Loader
from llamagpu.rwkv_shapes import MIXES


@dataclass(frozen=True)
class TimeMix:
    """first: r, k, v and the first halves of w, a, g, v; second: their second halves."""

    mixes: Array
    first: Group
    second: Group
    vectors: tuple[Weight, Weight, Weight]
    norm: Norm
    output: Weight


class RWKV7(RWKV):
    def load_time_mix(self, load: Loader, layer: int) -> TimeMix:
        dim, names = self.config.dim, MIXES[self.config.architecture]
        w_rank, a_rank, v_rank, g_rank = self.config.ranks
        firsts = [
            load.segment("receptance.weight", names.index("r")),
            load.segment("key.weight", names.index("k")),
            load.segment("value.weight", names.index("v")),
            load.segment("w1", names.index("w"), Activation.TANH),
            load.segment("a1", names.index("a")),
            load.segment("g1", names.index("g"), Activation.SIGMOID),
        ]
        seconds = [
            load.segment("w2", 3, Activation.DECAY7, bias="w0"),
            load.segment("a2", 4, Activation.SIGMOID, bias="a0"),
            load.segment("g2", 5),
        ]
        widths = [dim, dim, dim, w_rank, a_rank, g_rank]
        if layer > 0:
            firsts.append(load.segment("v1", names.index("v")))
            seconds.append(load.segment("v2", 6, Activation.SIGMOID, bias="v0"))
            widths.append(v_rank)
        first = load.group(firsts, [dim] * len(names))
        vectors = load.vector("k_k"), load.vector("k_a"), load.vector("r_k")
        return TimeMix(
            load.mixes(names), first, load.group(seconds, widths), vectors, load.norm("ln_x"),
            load.matrix("output.weight"),
        )  # fmt: skip

    def time_mix(self, x: Array, layer: int, state: Any, carried: Any) -> tuple[Array, Any]:
        """carried: the values of the first layer."""
        backend, mix = self.backend, self.layers[layer].time_mix
        first = backend.multiply(self.shifted(x, layer, mix.mixes, state), mix.first)
        second = backend.multiply(first, mix.second)
        y, carried = backend.wkv7(first, second, carried, mix.vectors, mix.norm, self.config, state, layer)
        return backend.add_product(x, y, mix.output), carried
