"""What all RWKVs share: an embedding with a norm, layers that mix over time and over channels, a state of one size.

    x = LayerNorm(embedding)
    each layer: x += time_mix(LayerNorm(x)); x += channel_mix(LayerNorm(x))
    logits = head @ LayerNorm(x)

Where attention looks at all tokens before, a layer of an RWKV looks at the one before (mixed into each channel by a
learnt share) and at its state. The versions differ in their time mix: a file each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.protocol import Array, Backend, Weight
from llamagpu.backends.recurrent import Activation, Bundle, Group, Norm, Segment, empty_state
from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.models.base import StateOptions

MOST_TOKENS = 512  # of one call of the backend
TIME, CHANNEL = 0, 1  # places of a layer in a state's shifts


@dataclass(frozen=True)
class ChannelMix:
    """k = relu(key @ mixed_k)^2; value @ k, in RWKV-4 to 6 times sigmoid(receptance @ mixed_r)."""

    mixes: Array
    key: Weight
    value: Weight
    receptance: Group | None


@dataclass(frozen=True)
class Layer:
    """time_mix: what the version has."""

    attention_norm: Norm
    time_mix: Any
    ffn_norm: Norm
    channel_mix: ChannelMix


class Loader:
    """Takes tensors of a checkpoint for a backend, and counts their bytes."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None], prefix: str = ""
    ) -> None:
        self.checkpoint, self.backend, self.on_loaded_bytes, self.prefix = checkpoint, backend, on_loaded_bytes, prefix

    def inside(self, prefix: str) -> Loader:
        return Loader(self.checkpoint, self.backend, self.on_loaded_bytes, f"{self.prefix}{prefix}.")

    def tensor(self, name: str) -> Tensor:
        tensor = self.checkpoint.tensors[self.prefix + name]
        self.on_loaded_bytes(tensor.nbytes)
        return tensor

    def floats(self, name: str) -> NDArray[np.float32]:
        """A vector of the host."""
        vector = self.tensor(name)
        assert isinstance(vector, np.ndarray)
        return vector.astype(np.float32)

    def vector(self, name: str) -> Weight:
        return self.backend.weight(self.floats(name))

    def matrix(self, name: str) -> Weight:
        return self.backend.weight(self.tensor(name))

    def norm(self, name: str) -> Norm:
        return self.vector(f"{name}.weight"), self.vector(f"{name}.bias")

    def segment(self, name: str, source: int, activation: Activation = Activation.NONE, bias: str = "") -> Segment:
        return Segment(self.tensor(name), source, activation, self.floats(bias) if bias else None)

    def group(self, segments: Sequence[Segment], widths: Sequence[int]) -> Group:
        return self.backend.group(segments, widths)

    def mixes(self, names: Sequence[str]) -> Array:
        return self.backend.mixes([self.floats(f"x_{name}") for name in names])


class RWKV(ABC):
    """A recurrent model: a token costs the same wherever it stands."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None] = lambda n: None
    ) -> None:
        """on_loaded_bytes: called with the size of each weight once the backend has it."""
        self.config, self.backend = checkpoint.config, backend
        load = Loader(checkpoint, backend, on_loaded_bytes)
        self.embedding = load.matrix("tok_embeddings.weight")
        self.embedding_norm = load.norm("embedding_norm")
        self.layers = []
        for i in range(self.config.n_layers):
            of_layer = load.inside(f"layers.{i}")
            self.layers.append(
                Layer(
                    attention_norm=of_layer.norm("attention_norm"),
                    time_mix=self.load_time_mix(of_layer.inside("att"), i),
                    ffn_norm=of_layer.norm("ffn_norm"),
                    channel_mix=self.load_channel_mix(of_layer.inside("ffn")),
                )
            )
        self.norm = load.norm("norm")
        self.head = load.matrix("output.weight")

    @abstractmethod
    def load_time_mix(self, load: Loader, layer: int) -> Any:
        """The weights that ``time_mix`` needs of a layer."""

    @abstractmethod
    def time_mix(self, x: Array, layer: int, state: Any, carried: Any) -> tuple[Array, Any]:
        """x + the time mix of a layer. carried: what the layers before hand on, None to the first."""

    def load_channel_mix(self, load: Loader) -> ChannelMix:
        dim, key = self.config.dim, load.matrix("key.weight")
        value, receptance = self.backend.down_matrix(load.tensor("value.weight")), None
        if self.config.architecture != "rwkv7":
            receptance = load.group([load.segment("receptance.weight", 1, Activation.SIGMOID)], (dim, dim))
        names = "k" if receptance is None else "kr"
        return ChannelMix(load.mixes(names), key, value, receptance)

    def channel_mix(self, x: Array, layer: int, state: Any) -> Array:
        backend, mix, norm = self.backend, self.layers[layer].channel_mix, self.layers[layer].ffn_norm
        mixed = backend.shift_mix(x, norm, self.config.norm_eps, mix.mixes, state, layer, CHANNEL)
        gate = None if mix.receptance is None else backend.multiply(mixed, mix.receptance)[0]
        return backend.add_product(x, backend.squared_relu(mixed, 0, mix.key), mix.value, gate)

    def shifted(self, x: Array, layer: int, mixes: Array, state: Any, keep: bool = True) -> Bundle:
        """What the time mix of a layer reads."""
        norm = self.layers[layer].attention_norm
        return self.backend.shift_mix(x, norm, self.config.norm_eps, mixes, state, layer, TIME, keep)

    def forward(self, tokens: Any, state: Any, n_logits: int = 1) -> Array:
        """Run n tokens after those of the state; logits after the last ``n_logits`` of them, [n_logits, vocab_size]."""
        assert len(tokens) <= MOST_TOKENS, "the caller cuts prompts into chunks"
        backend, eps, carried = self.backend, self.config.norm_eps, None
        with np.errstate(all="ignore"):  # damaged weights overflow: the sampler says so, in one line
            x = backend.embedding_layernorm(self.embedding, tokens, state, self.embedding_norm, eps)
            for i in range(self.config.n_layers):
                x, carried = self.time_mix(x, i, state, carried)
                x = self.channel_mix(x, i, state)
            state.advance(len(tokens))
            return backend.layernorm_head(x, self.norm, self.head, eps, n_logits)

    def new_state(self, options: StateOptions) -> Any:
        """The state before the first token; how many there will be does not matter."""
        return self.backend.recurrent_state(self.config)

    def decode(self, state: Any, sampler: Any, logits: Array, n_tokens: int) -> Iterator[int]:
        return self.backend.decode(self.forward, state, sampler, logits, n_tokens)

    def save_state(self, state: Any) -> dict[str, NDArray[Any]]:
        """shifts float32 [n_layers, 2, dim], of the time mix and the channel mix; wkv float32 [n_layers, ...], see
        ``backends/recurrent.py``."""
        return self.backend.save_recurrent(state)

    def load_state(self, state: Any, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        expected = {name: array.shape for name, array in empty_state(self.config).items()}
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected:
            raise ValueError(f"holds arrays of {found}, this model has {expected}")
        state.length = length
        self.backend.load_recurrent(state, arrays)
