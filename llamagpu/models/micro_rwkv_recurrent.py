"""What of MicroRWKV is recurrent, as a model of its own: an approximation of the whole, and not what was trained.

Of a layer (models/micro_rwkv.py) time mix, channel mix and experts see a token and those before it alone; both kinds
of attention see what comes after, and with them the second call of the time mix falls away. What is left has a state of
one size, so a token costs the same however long the text. Past max_seq_len every token has the last position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.protocol import Array
from llamagpu.models.base import StateOptions
from llamagpu.models.micro_rwkv import MicroRWKV

NOTE = "--recurrent: an approximation that is not the model. MicroRWKV's attention, which looks ahead, is left out"
MOST_ROWS = 512  # tokens that go through the layers at once


class RecurrentState:
    """rows: what the layers remember, on the backend."""

    room = None
    rewindable = False  # a sum cannot be taken back

    def __init__(self, rows: Any) -> None:
        self.rows, self.length = rows, 0


class RecurrentMicroRWKV(MicroRWKV):
    """Time mix, channel mix and experts, with what they carry from token to token."""

    def new_state(self, options: StateOptions) -> Any:
        """The state before the first token; ``options`` do not matter."""
        return RecurrentState(self.rows.state(self.config.n_layers, self.layers[0].time_mix))

    def forward(self, tokens: Any, state: Any, n_logits: int = 1) -> Array:
        """Run tokens after those of the state; logits after the last ``n_logits`` of them, [n_logits, vocab_size]."""
        logits = self.backend.logits(n_logits, self.config)
        n, at = len(tokens), 0
        with np.errstate(all="ignore"):  # damaged weights overflow: the sampler says so, in one line
            while at < n:
                end = min(at + MOST_ROWS, n)
                wanted = min(end - at, max(0, end - (n - n_logits)))  # of this piece
                last = n_logits - (n - end)
                self._run([int(token) for token in tokens[at:end]], state, logits[max(0, last - wanted) : max(0, last)])
                at = end
        return logits

    def _run(self, tokens: list[int], state: Any, logits: Array) -> None:
        rows, config, length = self.rows, self.config, state.length
        places = [min(place, config.max_seq_len - 1) for place in range(length, length + len(tokens))]
        x = rows.embedding(self.embedding, tokens, self.positions, places)
        for i, layer in enumerate(self.layers):
            rows.add(x, self._time_mix(x, layer, True, state.rows, i))
            self._channel_mix(x, layer, state.rows, i)
            self._experts(x, layer)
        rows.advance(state.rows)
        state.length += len(tokens)
        if len(logits):
            rows.head(x, self.norm, config.norm_eps, self.embedding, logits)

    def save_state(self, state: Any) -> dict[str, NDArray[Any]]:
        """shifts [n_layers, 2, dim], wkv [n_layers, n_heads, head_dim (value), head_dim (key)], both float32."""
        return dict(self.rows.save_state(state.rows))

    def load_state(self, state: Any, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        config = self.config
        wkv = (config.n_layers, config.n_heads, config.head_dim, config.head_dim)
        expected = {"shifts": (config.n_layers, 2, config.dim), "wkv": wkv}
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected or not all(array.dtype == np.float32 for array in arrays.values()):
            raise ValueError(f"holds arrays of {found}, this model has {expected} of float32")
        self.rows.load_state(state.rows, arrays, length)
        state.length = length
