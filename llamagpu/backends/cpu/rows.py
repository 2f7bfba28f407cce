"""The operations of backends/rows.py in NumPy, float32 throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.activate import activate
from llamagpu.backends.cpu.gated_add import gated_add
from llamagpu.backends.cpu.grouped_attention import grouped_attention
from llamagpu.backends.cpu.layernorm import layernorm
from llamagpu.backends.cpu.linear import embedding
from llamagpu.backends.cpu.mix_experts import mix_experts
from llamagpu.backends.cpu.sliding_attention import sliding_attention
from llamagpu.backends.cpu.token_shift import norm_shift_mix, unit_rms
from llamagpu.backends.cpu.wkv5 import wkv5
from llamagpu.backends.recurrent import Activation
from llamagpu.backends.rows import Linear, TimeMix
from llamagpu.checkpoint import Tensor

if TYPE_CHECKING:
    from llamagpu.backends.cpu import CPUBackend

Floats = NDArray[np.float32]


@dataclass
class CPURowState:
    """now: shifts [n_layers, 2, dim], wkv [n_layers, n_heads, head_dim, head_dim], which a call reads; coming: as many,
    which its layers write."""

    now: tuple[Floats, Floats]
    coming: tuple[Floats, Floats]


class CPURows:
    def __init__(self, backend: CPUBackend) -> None:
        self.backend = backend

    def check(self, n_heads: int, head_dim: int) -> None:
        """Any are welcome."""

    def linear_of(self, matrix: Tensor, bias: NDArray[Any] | None = None) -> Linear:
        return Linear(self.backend.weight(matrix), None if bias is None else bias.astype(np.float32))

    def vectors_of(self, vectors: Sequence[NDArray[Any]]) -> Floats:
        return np.stack([vector.astype(np.float32) for vector in vectors])

    def state(self, n_layers: int, config: TimeMix) -> CPURowState:
        shifts = (n_layers, 2, config.n_heads * config.head_dim)
        wkv = (n_layers, config.n_heads, config.head_dim, config.head_dim)
        now, coming = ((np.zeros(shifts, np.float32), np.zeros(wkv, np.float32)) for _ in range(2))
        return CPURowState(now, coming)

    def save_state(self, state: CPURowState) -> dict[str, Floats]:
        return {"shifts": state.now[0].copy(), "wkv": state.now[1].copy()}

    def load_state(self, state: CPURowState, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        state.now[0][:], state.now[1][:] = arrays["shifts"], arrays["wkv"]

    def advance(self, state: CPURowState) -> None:
        state.now, state.coming = state.coming, state.now

    def embedding(self, table: Linear, tokens: Sequence[int], positions: Linear, rows: Sequence[int]) -> Floats:
        x = embedding(table.matrix, np.asarray(tokens, np.int64))
        return x + embedding(positions.matrix, np.asarray(rows, np.int64))

    def shift_mix(
        self,
        name: str,
        x: Floats,
        mixes: Floats,
        normed: bool,
        state: CPURowState | None = None,
        place: tuple[int, int] = (0, 0),
    ) -> Sequence[Floats]:
        previous = np.zeros(x.shape[1], np.float32) if state is None else state.now[0][place]
        mixed, last = norm_shift_mix(x, unit_rms if normed else lambda rows: rows, previous, mixes)
        if state is not None:
            state.coming[0][place] = last
        return list(mixed)

    def linear(self, name: str, x: Floats, w: Linear, activation: Activation | None = None) -> Floats:
        return activate(self.backend.linear(x, w.matrix), activation or Activation.NONE, w.bias)

    def wkv(
        self,
        name: str,
        r: Floats,
        k: Floats,
        v: Floats,
        g: Floats,
        w: TimeMix,
        state: CPURowState | None = None,
        layer: int = 0,
    ) -> Floats:
        nothing = np.zeros((w.n_heads, w.head_dim, w.head_dim), np.float32)
        decay, bonus, norm_weight, norm_bias = w.vectors
        before = nothing if state is None else state.now[1][layer]
        y, last = wkv5(r, k, v, g, decay, bonus, norm_weight, norm_bias, w.eps, before)
        if state is not None:
            state.coming[1][layer] = last
        return y

    def add(self, x: Floats, delta: Floats, gate: Floats | None = None) -> None:
        gated_add(x, delta, gate)

    def sliding_attention(self, name: str, qkv: Floats, n_heads: int) -> Floats:
        return sliding_attention(qkv, n_heads)

    def grouped_attention(self, name: str, qkvw: Floats, n_heads: int) -> Floats:
        return grouped_attention(qkvw, n_heads)

    def mix_experts(self, name: str, outputs: Floats, n_active: int, n_experts: int) -> Floats:
        return mix_experts(outputs, n_active, n_experts)

    def head(self, x: Floats, norm: Floats, eps: float, table: Linear, out: Floats) -> None:
        weight, bias = norm
        out[:] = self.backend.linear(layernorm(x[len(x) - len(out) :], weight, bias, eps), table.matrix)
