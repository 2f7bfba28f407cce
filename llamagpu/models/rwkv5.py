"""RWKV-5 ("Eagle"; its files say 5.2): the state of a head is a matrix, to which every token adds k v^T.

r, k, v, g = receptance, key, value, silu(gate), of the mixes r, k, v, g
y = S r + (sum of bonus * k * r) * v;  S = S * decay + v k^T        S [value, key], decay for each key
x += output @ (GroupNorm of each head(y) * g)

RWKV-5.0 has no gate: g is 1.
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
    mixes: Array
    rkvg: Group
    decay: Weight
    bonus: Weight
    norm: Norm
    output: Weight


class RWKV5(RWKV):
    def load_time_mix(self, load: Loader, layer: int) -> TimeMix:
        names = MIXES[self.config.architecture]
        segments = [
            load.segment("receptance.weight", 0),
            load.segment("key.weight", 1),
            load.segment("value.weight", 2),
        ]
        if "g" in names:
            segments.append(load.segment("gate.weight", 3, Activation.SILU))
        rkvg = load.group(segments, [self.config.dim] * len(names))
        return TimeMix(
            load.mixes(names), rkvg, load.vector("decay"), load.vector("bonus"), load.norm("ln_x"),
            load.matrix("output.weight"),
        )  # fmt: skip

    def time_mix(self, x: Array, layer: int, state: Any, carried: Any) -> tuple[Array, Any]:
        backend, mix = self.backend, self.layers[layer].time_mix
        rkvg = backend.multiply(self.shifted(x, layer, mix.mixes, state), mix.rkvg)
        y = backend.wkv5(rkvg, mix.decay, mix.bonus, mix.norm, self.config, state, layer)
        return backend.add_product(x, y, mix.output), carried
