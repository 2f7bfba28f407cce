"""RWKV-6 ("Finch"): RWKV-5 whose mixes and decay depend on the token, by thin matrices.

    mix_i = x_i + maa_w2_i @ tanh(maa_w1_i @ mixed_x), for i of w, k, v, r, g: shares of the token before, each its own
    decay = exp(-exp(w0 + w2 @ tanh(w1 @ mixed_w)))

ranks of its config: of the mixes, of the decay.
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
    """first, then second: what makes the mixes. rkvg: also the first half of the decay, decay the second."""

    first_mix: Array
    first: Group
    second: Group
    rkvg: Group
    decay: Group
    bonus: Weight
    norm: Norm
    output: Weight


class RWKV6(RWKV):
    def load_time_mix(self, load: Loader, layer: int) -> TimeMix:
        dim, names = self.config.dim, MIXES[self.config.architecture]
        mix_rank, decay_rank = self.config.ranks
        first = load.group([load.segment(f"maa_w1_{name}", 0, Activation.TANH) for name in names], [dim])
        biased = [load.segment(f"maa_w2_{name}", i, bias=f"x_{name}") for i, name in enumerate(names)]
        second = load.group(biased, [mix_rank] * len(names))
        segments = [
            load.segment("receptance.weight", names.index("r")),
            load.segment("key.weight", names.index("k")),
            load.segment("value.weight", names.index("v")),
            load.segment("gate.weight", names.index("g"), Activation.SILU),
            load.segment("w1", names.index("w"), Activation.TANH),
        ]
        rkvg = load.group(segments, [dim] * len(names))
        decay = load.group([load.segment("w2", 4, Activation.DECAY6, bias="w0")], [dim] * 4 + [decay_rank])
        return TimeMix(
            load.mixes("x"), first, second, rkvg, decay, load.vector("bonus"), load.norm("ln_x"),
            load.matrix("output.weight"),
        )  # fmt: skip

    def time_mix(self, x: Array, layer: int, state: Any, carried: Any) -> tuple[Array, Any]:
        backend, mix = self.backend, self.layers[layer].time_mix
        mixed_x = self.shifted(x, layer, mix.first_mix, state, keep=False)
        mixes = backend.multiply(backend.multiply(mixed_x, mix.first), mix.second)
        rkvg = backend.multiply(self.shifted(x, layer, mixes, state), mix.rkvg)
        decay = backend.multiply(rkvg, mix.decay)[0]
        y = backend.wkv5(rkvg, decay, mix.bonus, mix.norm, self.config, state, layer)
        return backend.add_product(x, y, mix.output), carried
