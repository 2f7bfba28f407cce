"""RWKV-4 ("Dove"): each channel is an average of values, weighted by exp(key) and by how long ago they were.

    r, k, v = sigmoid(receptance), key, value, of the mixes r, k, v
    wkv_t = sum over i < t of exp((t - 1 - i) * decay + k_i) * v_i + exp(bonus + k_t) * v_t, over the same sum without v
    x += output @ (r * wkv)

The sums are kept divided by exp of their largest exponent, so nothing overflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llamagpu.backends.protocol import Array, Weight
from llamagpu.backends.recurrent import Activation, Group
from llamagpu.models.rwkv import RWKV, Loader
from llamagpu.rwkv_shapes import MIXES


@dataclass(frozen=True)
class TimeMix:
    mixes: Array
    rkv: Group
    decay: Weight
    bonus: Weight
    output: Weight


class RWKV4(RWKV):
    def load_time_mix(self, load: Loader, layer: int) -> TimeMix:
        names = MIXES[self.config.architecture]
        segments = [
            load.segment("receptance.weight", 0, Activation.SIGMOID),
            load.segment("key.weight", 1),
            load.segment("value.weight", 2),
        ]
        rkv = load.group(segments, [self.config.dim] * len(names))
        return TimeMix(load.mixes(names), rkv, load.vector("decay"), load.vector("bonus"), load.matrix("output.weight"))

    def time_mix(self, x: Array, layer: int, state: Any, carried: Any) -> tuple[Array, Any]:
        backend, mix = self.backend, self.layers[layer].time_mix
        rkv = backend.multiply(self.shifted(x, layer, mix.mixes, state), mix.rkv)
        return backend.add_product(x, backend.wkv4(rkv, mix.decay, mix.bonus, state, layer), mix.output), carried
