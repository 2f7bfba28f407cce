"""MicroRWKV as it is: time mix and channel mix of an RWKV, and beside them attention that looks ahead.

With x the residual stream [T, dim] of all T tokens, and norm(x) = x / (sqrt(mean x^2) + 1e-8), a layer is

    x += time_mix(norm(x));  x += channel_mix(norm(x));  x += sliding(x)
    x += grouped(time_mix(x));  x += experts(x)          the same time mix again, of x without a norm

Sliding attention sees all tokens, and grouped attention mixes tokens by their number T (backends/cpu/ has both): a new
token changes every row of every layer, so there is nothing to keep but the tokens themselves, and each new token costs
a forward pass over the last max_seq_len of them. models/micro_rwkv_recurrent.py has the part that is recurrent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.protocol import Array, Backend
from llamagpu.backends.recurrent import Activation
from llamagpu.backends.rows import Linear, Rows, TimeMix
from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.micro_rwkv_shapes import CHANNEL_MIXED, TIME_MIXED
from llamagpu.models.base import StateOptions

HEAD_NORM_EPS = 6.4e-4
NOTE = "MicroRWKV is not causal: each new token costs a forward pass over all the text that it sees"


@dataclass(frozen=True)
class Layer:
    """time_mixes, channel_mixes: of a token with the one before. experts: those that are run, then the gate."""

    time_mixes: Any
    receptance: Linear
    key: Linear
    value: Linear
    gate: Linear
    time_mix: TimeMix
    time_output: Linear
    channel_mixes: Any
    channel_key: Linear
    channel_value: Linear
    channel_receptance: Linear
    sliding_qkv: Linear
    sliding_output: Linear
    grouped_qkvw: Linear
    grouped_output: Linear
    experts: Linear
    experts_output: Linear


class TextState:
    """The tokens that were read: all that such a model remembers. Setting ``length`` to less forgets the last."""

    room = None
    rewindable = True

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    @length.setter
    def length(self, n: int) -> None:
        del self.tokens[n:]


class Loader:
    """Puts the weights of a layer on a backend. on_loaded_bytes: called with the size of each once it is there."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None]) -> None:
        self.config, self.tensors = checkpoint.config, checkpoint.tensors
        self.rows, self.on_loaded_bytes = backend.rows(), on_loaded_bytes

    def array(self, name: str) -> NDArray[Any]:
        tensor = self.tensors[name]
        assert isinstance(tensor, np.ndarray), "no such model is quantised"
        return tensor

    def linear(self, name: str) -> Linear:
        bias = self.array(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        return self.made(self.array(f"{name}.weight"), bias)

    def made(self, matrix: Tensor, bias: NDArray[Any] | None) -> Linear:
        linear = self.rows.linear_of(matrix, bias)
        self.on_loaded_bytes(matrix.nbytes + (0 if bias is None else bias.nbytes))
        return linear

    def vectors(self, *names: str) -> Any:
        arrays = [self.array(name) for name in names]
        self.on_loaded_bytes(sum(array.nbytes for array in arrays))
        return self.rows.vectors_of(arrays)

    def time_mix(self, name: str) -> TimeMix:
        config = self.config
        decay = np.exp(-np.exp(self.array(f"{name}.decay").astype(np.float32)))
        bonus = self.array(f"{name}.bonus").astype(np.float32)
        by_channel = [np.repeat(of_heads, config.head_dim) for of_heads in (decay, bonus)]
        norm = [self.array(f"{name}.norm.{part}") for part in ("weight", "bias")]
        self.on_loaded_bytes(decay.nbytes + bonus.nbytes + sum(part.nbytes for part in norm))
        vectors = self.rows.vectors_of([*by_channel, *norm])
        return TimeMix(vectors, config.n_heads, config.head_dim, HEAD_NORM_EPS)

    def experts(self, name: str) -> Linear:
        """Those that are run and the gate as one matrix: they read the same rows."""
        parts = [*(f"{name}.experts.{a}" for a in range(self.config.n_active_experts)), f"{name}.gate"]
        matrix = np.concatenate([self.array(f"{part}.weight") for part in parts])
        return self.made(matrix, np.concatenate([self.array(f"{part}.bias") for part in parts]))

    def layer(self, i: int) -> Layer:
        time_mix, channel_mix, layer = f"layers.{i}.time_mix", f"layers.{i}.channel_mix", f"layers.{i}"
        return Layer(
            time_mixes=self.vectors(*(f"{time_mix}.mix_{name}" for name in TIME_MIXED)),
            receptance=self.linear(f"{time_mix}.receptance"),
            key=self.linear(f"{time_mix}.key"),
            value=self.linear(f"{time_mix}.value"),
            gate=self.linear(f"{time_mix}.gate"),
            time_mix=self.time_mix(time_mix),
            time_output=self.linear(f"{time_mix}.output"),
            channel_mixes=self.vectors(*(f"{channel_mix}.mix_{name}" for name in CHANNEL_MIXED)),
            channel_key=self.linear(f"{channel_mix}.key"),
            channel_value=self.linear(f"{channel_mix}.value"),
            channel_receptance=self.linear(f"{channel_mix}.receptance"),
            sliding_qkv=self.linear(f"{layer}.sliding_attention.qkv"),
            sliding_output=self.linear(f"{layer}.sliding_attention.output"),
            grouped_qkvw=self.linear(f"{layer}.grouped_attention.qkvw"),
            grouped_output=self.linear(f"{layer}.grouped_attention.output"),
            experts=self.experts(f"{layer}.moe"),
            experts_output=self.linear(f"{layer}.moe.output"),
        )


class MicroRWKV:
    """The whole model. Its only state is the text."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None] = lambda n: None
    ) -> None:
        """on_loaded_bytes: called with the size of each weight once the backend has it."""
        self.config, self.backend, self.rows = checkpoint.config, backend, backend.rows()
        self.rows.check(self.config.n_heads, self.config.head_dim)
        load = Loader(checkpoint, backend, on_loaded_bytes)
        self.embedding, self.positions = load.linear("tok_embeddings"), load.linear("position_embeddings")
        self.layers = [load.layer(i) for i in range(self.config.n_layers)]
        norm = load.array("norm.weight")
        bias = load.array("norm.bias") if self.config.linear_bias else np.zeros(self.config.dim, np.float32)
        self.norm = self.rows.vectors_of([norm, bias])

    def new_state(self, options: StateOptions) -> TextState:
        """An empty text; ``options`` do not matter."""
        return TextState()

    def forward(self, tokens: Any, state: TextState, n_logits: int = 1) -> Array:
        """Read tokens; logits after each of the last ``n_logits``, [n_logits, vocab_size].

        What comes after a token would change its logits: so those after the token t are of a forward pass over the
        text up to t alone, and each row is such a pass. Without logits nothing is computed.
        """
        state.tokens += [int(token) for token in tokens]
        logits = self.backend.logits(n_logits, self.config)
        first = state.length - n_logits
        with np.errstate(all="ignore"):  # damaged weights overflow: the sampler says so, in one line
            for i in range(n_logits):
                end = first + i + 1
                self._read(state.tokens[max(0, end - self.config.max_seq_len) : end], logits[i : i + 1])
        return logits

    def _read(self, tokens: Sequence[int], logits: Array) -> None:
        """A forward pass over a text; the logits after it."""
        rows, config = self.rows, self.config
        x = rows.embedding(self.embedding, tokens, self.positions, range(len(tokens)))
        for layer in self.layers:
            rows.add(x, self._time_mix(x, layer, normed=True))
            self._channel_mix(x, layer)
            qkv = rows.linear("qkv", x, layer.sliding_qkv)
            seen = rows.sliding_attention("attention", qkv, config.n_heads)
            rows.add(x, rows.linear("delta", seen, layer.sliding_output))
            qkvw = rows.linear("qkvw", self._time_mix(x, layer, normed=False), layer.grouped_qkvw)
            seen = rows.grouped_attention("attention", qkvw, config.n_heads)
            rows.add(x, rows.linear("delta", seen, layer.grouped_output))
            self._experts(x, layer)
        rows.head(x, self.norm, config.norm_eps, self.embedding, logits)

    def _time_mix(self, x: Rows, layer: Layer, normed: bool, state: Any = None, i: int = 0) -> Rows:
        """state: of a recurrence, where this is layer i of it."""
        rows = self.rows
        of_k, of_v, of_r, of_g = rows.shift_mix("time mix", x, layer.time_mixes, normed, state, (i, 0))
        r = rows.linear("r", of_r, layer.receptance)
        k = rows.linear("k", of_k, layer.key)
        v = rows.linear("v", of_v, layer.value)
        g = rows.linear("g", of_g, layer.gate, Activation.SILU)
        return rows.linear("delta", rows.wkv("wkv", r, k, v, g, layer.time_mix, state, i), layer.time_output)

    def _channel_mix(self, x: Rows, layer: Layer, state: Any = None, i: int = 0) -> None:
        rows = self.rows
        of_k, of_r = rows.shift_mix("channel mix", x, layer.channel_mixes, True, state, (i, 1))
        r = rows.linear("r", of_r, layer.channel_receptance, Activation.SIGMOID)
        k = rows.linear("hidden", of_k, layer.channel_key, Activation.SQUARED_RELU)
        rows.add(x, rows.linear("delta", k, layer.channel_value), r)

    def _experts(self, x: Rows, layer: Layer) -> None:
        rows, config = self.rows, self.config
        outputs = rows.linear("experts", x, layer.experts)
        mixed = rows.mix_experts("mixed", outputs, config.n_active_experts, config.n_experts)
        rows.add(x, rows.linear("delta", mixed, layer.experts_output))

    def decode(self, state: Any, sampler: Any, logits: Array, n_tokens: int) -> Iterator[int]:
        return self.backend.decode_each(self.forward, state, sampler, logits, n_tokens)

    def save_state(self, state: Any) -> dict[str, NDArray[Any]]:
        """text: int32 [length], the ids."""
        return {"text": np.asarray(state.tokens, np.int32)}

    def load_state(self, state: Any, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        text = arrays.get("text")
        if list(arrays) != ["text"] or text is None or text.shape != (length,) or text.dtype != np.int32:
            found = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"holds arrays of {found}, this model has {{'text': ({length},)}}")
        if not ((text >= 0) & (text < self.config.vocab_size)).all():
            raise ValueError("holds ids that this model does not have")
        state.tokens = text.tolist()
