"""What every architecture offers: a state that remembers a sequence, tokens through it, and the state as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from llamagpu.backends.protocol import Array, Backend
from llamagpu.config import ModelConfig


@dataclass(frozen=True)
class StateOptions:
    """n_positions: to make room for, where a model has a place for each. kv_bits: 16 or 8, of keys and values.

    window: keep the first ``sinks`` and the last ``window`` tokens alone, for ever; 0: keep all.
    memory_update: when a model with a memory renews its keys and values, after each "chunk" or after each "token".
    """

    n_positions: int
    kv_bits: int = 16
    window: int = 0
    sinks: int = 0
    memory_update: str = "chunk"


class State(Protocol):
    """What a model remembers of one sequence. length: tokens that went through it.

    rewindable: whether setting ``length`` to less makes it the state after as many tokens, as it does for keys and
    values: what lies beyond is not read and is written over. Where it is not, ``decode`` must leave the state after the
    tokens that were taken all the same, wherever an answer ends (``DecodeState`` says how).
    """

    length: int
    rewindable: bool

    @property
    def room(self) -> int | None:
        """How many more tokens fit; None where there is no end."""


class Model(Protocol):
    """A loaded model. Tokens are ids of the host, or the backend's own array of them."""

    config: ModelConfig
    backend: Backend

    def new_state(self, options: StateOptions) -> State:
        """A state that remembers nothing. Raises UsageError where memory is too small."""
        ...

    def forward(self, tokens: Any, state: Any, n_logits: int = 1) -> Array:
        """Run tokens after those of the state; logits after the last ``n_logits`` of them."""
        ...

    def decode(self, state: Any, sampler: Any, logits: Array, n_tokens: int) -> Iterator[int]:
        """Sample a token from the last row of ``logits``, run it, sample the next: see ``Backend.decode``."""
        ...

    def save_state(self, state: Any) -> dict[str, NDArray[Any]]:
        """The state as arrays of the host, from which ``load_state`` makes it again."""
        ...

    def load_state(self, state: Any, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        """Make a new state what was saved after ``length`` tokens. Raises ValueError where it does not fit."""
        ...
