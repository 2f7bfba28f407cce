"""The operations that recurrent models are written in, beside those of ``protocol.py``. A backend provides them.

x is the residual stream of n tokens. A bundle is several arrays [n, width] that one operation made, told by number:
``bundle[i]``. Vectors and norms (weight and bias) are of the model; n may be 1, or a chunk of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llamagpu.config import ModelConfig

Array = Any  # of the backend
Bundle = Any
Group = Any  # several matrices, as the backend keeps them
Norm = tuple[Any, Any]  # weight and bias of a LayerNorm or a GroupNorm

FIRST_EXPONENT = -1e30  # of RWKV-4, before the first token: less than any key, and finite


class Activation(IntEnum):
    """What a product goes through; the numbers are those of kernels/activated.cuh."""

    NONE = 0
    TANH = 1
    SIGMOID = 2
    SILU = 3
    SQUARED_RELU = 4  # relu(x)^2
    DECAY6 = 5  # exp(-exp(x)): the decay of RWKV-6
    DECAY7 = 6  # exp(-exp(-0.5) * sigmoid(x)): that of RWKV-7


@dataclass(frozen=True)
class Segment:
    """One product of a group: activation(bundle[source] @ tensor.T + bias)."""

    tensor: Any
    source: int
    activation: Activation = Activation.NONE
    bias: NDArray[np.float32] | None = None


def wkv_shape(config: ModelConfig) -> tuple[int, ...]:
    """Of what a layer remembers beside two vectors: RWKV-4 two sums and their exponent, the others a matrix a head."""
    if config.architecture == "rwkv4":
        return (3, config.dim)
    return (config.n_heads, config.head_dim, config.head_dim)


def empty_state(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Before the first token: shifts [n_layers, 2, dim], wkv [n_layers, ...]."""
    wkv = np.zeros((config.n_layers, *wkv_shape(config)), np.float32)
    if config.architecture == "rwkv4":
        wkv[:, 2] = FIRST_EXPONENT
    return {"shifts": np.zeros((config.n_layers, 2, config.dim), np.float32), "wkv": wkv}


class RecurrentOps(Protocol):
    """What a backend offers recurrent models."""

    def recurrent_state(self, config: ModelConfig) -> Any:
        """A state before the first token; its ``length`` counts tokens, it has no end."""

    def save_recurrent(self, state: Any) -> dict[str, NDArray[np.float32]]:
        """The arrays of ``empty_state``, as they are now."""
        ...

    def load_recurrent(self, state: Any, arrays: Mapping[str, NDArray[Any]]) -> None: ...

    def mixes(self, vectors: Sequence[NDArray[np.float32]]) -> Array:
        """Vectors [dim] as ``shift_mix`` takes them."""

    def group(self, segments: Sequence[Segment], widths: Sequence[int]) -> Group:
        """Matrices that are multiplied in one step. widths: of the bundle that they read."""

    def down_matrix(self, tensor: Any) -> Any:
        """A matrix for ``add_product`` that is multiplied with squared ReLUs, most of which are zero."""

    def embedding_layernorm(self, table: Any, tokens: Any, state: Any, norm: Norm, eps: float) -> Array:
        """LayerNorm of rows ``tokens`` of the table: x. The first operation of a call."""

    def shift_mix(
        self, x: Array, norm: Norm, eps: float, mixes: Array, state: Any, layer: int, place: int, keep: bool = True
    ) -> Bundle:
        """h = LayerNorm(x); of each token h + (h of the token before - h) * mix, for each of the mixes.

        The state has h of the token before the first, for ``place`` 0 or 1 of each layer, and keeps the last where
        ``keep`` says so. mixes: of ``mixes``, or a bundle of one row for each token.
        """

    def multiply(self, bundle: Bundle, group: Group) -> Bundle:
        """As many arrays as the group has segments."""

    def wkv4(self, bundle: Bundle, decay: Any, bonus: Any, state: Any, layer: int) -> Any:
        """bundle: r, k, v. The result is for ``add_product``, as that of the others."""

    def wkv5(
        self, bundle: Bundle, decay: Any, bonus: Any, norm: Norm, config: ModelConfig, state: Any, layer: int
    ) -> Any:
        """bundle: r, k, v, g. decay: a vector, or an array [n, dim] of a bundle (RWKV-6)."""

    def wkv7(
        self,
        bundle: Bundle,
        thin: Bundle,
        v_first: Array | None,
        vectors: tuple[Any, Any, Any],
        norm: Norm,
        config: ModelConfig,
        state: Any,
        layer: int,
    ) -> tuple[Any, Array]:
        """bundle: r, k, v, ...; thin: decay, a, g and, but in the first layer, by how much v is that of the first.

        vectors: k_k, k_a, r_k. Returns also v_first for the next layers; None is for the first.
        """
        ...

    def squared_relu(self, bundle: Bundle, source: int, w: Any) -> Any:
        """relu(bundle[source] @ w.T)^2, for ``add_product``."""

    def add_product(self, x: Array, h: Any, w: Any, gate: Array | None = None) -> Array:
        """x + gate * (h @ w.T); may reuse the memory of x."""

    def layernorm_head(self, x: Array, norm: Norm, w: Any, eps: float, n_logits: int) -> Array:
        """Logits of the last ``n_logits`` rows of x."""
