"""The operations that models are written in whose tokens all read one another: see models/micro_rwkv.py.

Rows are [n, width] of the backend's own, n the tokens of one call, any number of them. What an operation returns is
good until one of the same ``name`` is called again, or until the next forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.recurrent import Activation
from llamagpu.checkpoint import Tensor

Rows = Any  # of the backend
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """A matrix [out_features, in_features] and its bias, as the backend keeps them; None: no bias."""

    matrix: Any
    bias: Any


@dataclass(frozen=True)
class TimeMix:
    """Vectors of the backend of one time mix: decay (the factor itself, in 0 ... 1), bonus, norm_weight, norm_bias
    [dim]. Its heads have a GroupNorm of ``eps``."""

    vectors: Any
    n_heads: int
    head_dim: int
    eps: float


class RowOperations(Protocol):
    """What a backend offers as ``rows()``."""

    def check(self, n_heads: int, head_dim: int) -> None:
        """Raises UsageError for heads that there is no room for."""

    def linear_of(self, matrix: Tensor, bias: NDArray[Any] | None = None) -> Linear: ...

    def vectors_of(self, vectors: Sequence[NDArray[Any]]) -> Any:
        """Vectors of one width together, float32: the mixes of ``shift_mix``, or weight and bias of a norm."""

    def state(self, n_layers: int, config: TimeMix) -> Any:
        """What a recurrence remembers, of nothing yet: of each layer the rows before the next token that ``shift_mix``
        mixes with, float32 [2, dim], and the sums of ``wkv``, float32 [n_heads, head_dim (value), head_dim (key)]."""

    def save_state(self, state: Any) -> dict[str, Floats]:
        """shifts [n_layers, 2, dim], wkv [n_layers, n_heads, head_dim, head_dim]."""
        ...

    def load_state(self, state: Any, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        """The inverse, after ``length`` tokens."""

    def advance(self, state: Any) -> None:
        """The tokens of this call are part of the state: after all layers. One that is broken off before leaves it."""

    def embedding(self, table: Linear, tokens: Sequence[int], positions: Linear, rows: Sequence[int]) -> Rows:
        """x [n, dim]: rows ``tokens`` of the table, and on each a row of the positions: ``rows``. It is a forward
        pass's own, to be added to."""

    def shift_mix(
        self, name: str, x: Rows, mixes: Any, normed: bool, state: Any = None, place: tuple[int, int] = (0, 0)
    ) -> Sequence[Rows]:
        """Of each mix h[t] + (h[t - 1] - h[t]) * mix with h = x, or unit_rms(x) where normed.

        h[-1] is 0, or row ``place`` = (layer, 0 or 1) of the state, which then becomes h[n - 1].
        """
        ...

    def linear(self, name: str, x: Rows, w: Linear, activation: Activation | None = None) -> Rows:
        """activation(x @ matrix.T + bias)."""

    def wkv(self, name: str, r: Rows, k: Rows, v: Rows, g: Rows, w: TimeMix, state: Any = None, layer: int = 0) -> Rows:
        """The sums over the tokens before each, normed, times g: see backends/cpu/wkv5.py. They begin with nothing, or
        with those of a layer of the state, which then has the last."""

    def add(self, x: Rows, delta: Rows, gate: Rows | None = None) -> None:
        """x += delta, or gate * delta, in place."""

    def sliding_attention(self, name: str, qkv: Rows, n_heads: int) -> Rows:
        """[n, 3 * dim] to [n, dim]: see backends/cpu/sliding_attention.py."""

    def grouped_attention(self, name: str, qkvw: Rows, n_heads: int) -> Rows:
        """[n, 4 * dim] to [n, dim]: see backends/cpu/grouped_attention.py."""

    def mix_experts(self, name: str, outputs: Rows, n_active: int, n_experts: int) -> Rows:
        """[n, n_active * width + n_experts] to [n, width]: see backends/cpu/mix_experts.py."""

    def head(self, x: Rows, norm: Any, eps: float, table: Linear, out: Any) -> None:
        """Logits after the last rows of x into ``out``, [n_logits, vocab_size] of ``Backend.logits``: a LayerNorm, of
        which norm is weight and bias, and the product with the table."""
