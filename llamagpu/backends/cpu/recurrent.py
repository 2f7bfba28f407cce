"""The operations of ``backends/recurrent.py`` in NumPy. A bundle is a list of arrays, or one of an axis more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.activate import activate
from llamagpu.backends.cpu.gated_add import gated_add
from llamagpu.backends.cpu.layernorm import layernorm
from llamagpu.backends.cpu.linear import Matrix, embedding
from llamagpu.backends.cpu.linear_sparse import linear_sparse
from llamagpu.backends.cpu.token_shift import norm_shift_mix
from llamagpu.backends.cpu.wkv4 import wkv4
from llamagpu.backends.cpu.wkv5 import wkv5
from llamagpu.backends.cpu.wkv7 import wkv7
from llamagpu.backends.recurrent import Activation, Segment, empty_state
from llamagpu.config import ModelConfig
from llamagpu.quantization import Deferred

Floats = NDArray[np.float32]
Norm = tuple[Floats, Floats]
LEAST_ZEROS = 0.6  # from this share on skipping them is faster: scripts/measure_sparse


class CPURecurrentState:
    """now: the arrays of ``empty_state``, which a call reads; coming: as many, which its layers write.

    They are swapped when all layers have: a call that was broken off is made again from what it was.
    """

    room = None
    rewindable = False

    def __init__(self, config: ModelConfig) -> None:
        # length, now, coming: one value, so that an interruption finds all or none of them changed
        self._held = 0, empty_state(config), empty_state(config)

    @property
    def length(self) -> int:
        return self._held[0]

    @length.setter
    def length(self, n: int) -> None:
        self._held = (n, *self._held[1:])

    @property
    def now(self) -> dict[str, Floats]:
        return self._held[1]

    @property
    def coming(self) -> dict[str, Floats]:
        return self._held[2]

    def advance(self, n: int) -> None:
        """n tokens have gone through all layers."""
        length, now, coming = self._held
        self._held = length + n, coming, now


@dataclass(frozen=True)
class Transposed:
    """A matrix as float32 [in_features, out_features], so that ``linear_sparse`` can skip rows."""

    rows: Floats

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


class CPURecurrentOps:
    """To be inherited by the backend."""

    def weight(self, tensor: Any) -> Any:
        raise NotImplementedError

    def linear(self, x: Floats, w: Matrix) -> Floats:
        raise NotImplementedError

    def recurrent_state(self, config: ModelConfig) -> CPURecurrentState:
        return CPURecurrentState(config)

    def save_recurrent(self, state: CPURecurrentState) -> dict[str, Floats]:
        return {name: array.copy() for name, array in state.now.items()}

    def load_recurrent(self, state: CPURecurrentState, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, array in state.now.items():
            array[:] = arrays[name]

    def mixes(self, vectors: Sequence[Floats]) -> Floats:
        return np.stack(vectors)

    def group(self, segments: Sequence[Segment], widths: Sequence[int]) -> list[tuple[Matrix, Segment]]:
        return [(self.weight(segment.tensor), segment) for segment in segments]

    def down_matrix(self, tensor: Any) -> Any:
        """Weights of 16 bits are widened anyway, and so are turned round for nothing; float32 stays in its file."""
        if isinstance(tensor, Deferred):
            tensor = tensor.materialize()
        if isinstance(tensor, np.ndarray) and tensor.dtype != np.float32:
            return Transposed(np.ascontiguousarray(tensor.T).astype(np.float32))
        return self.weight(tensor)

    def embedding_layernorm(
        self, table: Matrix, tokens: Sequence[int], state: CPURecurrentState, norm: Norm, eps: float
    ) -> Floats:
        return layernorm(embedding(table, np.asarray(tokens, np.int64)), *norm, eps)

    def shift_mix(
        self,
        x: Floats,
        norm: Norm,
        eps: float,
        mixes: Floats | list[Floats],
        state: CPURecurrentState,
        layer: int,
        place: int,
        keep: bool = True,
    ) -> Floats:
        previous = state.now["shifts"][layer, place]
        mixed, last = norm_shift_mix(x, lambda rows: layernorm(rows, *norm, eps), previous, np.asarray(mixes))
        if keep:
            state.coming["shifts"][layer, place] = last
        return mixed

    def multiply(self, bundle: Sequence[Floats], group: list[tuple[Matrix, Segment]]) -> list[Floats]:
        return [
            activate(self.linear(bundle[segment.source], matrix), segment.activation, segment.bias)
            for matrix, segment in group
        ]

    def wkv4(
        self, bundle: Sequence[Floats], decay: Floats, bonus: Floats, state: CPURecurrentState, layer: int
    ) -> Floats:
        r, k, v = bundle
        y, state.coming["wkv"][layer] = wkv4(r, k, v, decay, bonus, state.now["wkv"][layer])
        return y

    def wkv5(
        self,
        bundle: Sequence[Floats],
        decay: Floats,
        bonus: Floats,
        norm: Norm,
        config: ModelConfig,
        state: CPURecurrentState,
        layer: int,
    ) -> Floats:
        r, k, v = bundle[:3]
        g = bundle[3] if len(bundle) > 3 else np.ones_like(r)
        before = state.now["wkv"][layer]
        y, state.coming["wkv"][layer] = wkv5(r, k, v, g, decay, bonus, *norm, config.group_norm_eps, before)
        return y

    def wkv7(
        self,
        bundle: Sequence[Floats],
        thin: Sequence[Floats],
        v_first: Floats | None,
        vectors: tuple[Floats, Floats, Floats],
        norm: Norm,
        config: ModelConfig,
        state: CPURecurrentState,
        layer: int,
    ) -> tuple[Floats, Floats]:
        r, k, v = bundle[:3]
        decay, a, g = thin[:3]
        v_mix = None if v_first is None else thin[3]
        before = state.now["wkv"][layer]
        y, state.coming["wkv"][layer], used = wkv7(
            r, decay, k, v, a, g, v_mix, v_first, *vectors, *norm, config.group_norm_eps, before
        )
        return y, used if v_first is None else v_first

    def squared_relu(self, bundle: Sequence[Floats], source: int, w: Matrix) -> Floats:
        return activate(self.linear(bundle[source], w), Activation.SQUARED_RELU)

    def add_product(self, x: Floats, h: Floats, w: Matrix | Transposed, gate: Floats | None = None) -> Floats:
        gated_add(x, sparse_product(h, w.rows) if isinstance(w, Transposed) else self.linear(h, w), gate)
        return x

    def layernorm_head(self, x: Floats, norm: Norm, w: Matrix, eps: float, n_logits: int) -> Floats:
        return self.linear(layernorm(x[len(x) - n_logits :], *norm, eps), w)


def sparse_product(h: Floats, w_t: Floats) -> Floats:
    """h @ w_t; of one token without the rows that are multiplied with zero, where these are many."""
    if len(h) == 1 and np.count_nonzero(h) <= (1 - LEAST_ZEROS) * h.size:
        return linear_sparse(h, w_t)
    return h @ w_t
