"""The forward pass that GPTQ learns from: layer after layer over a calibration text, each quantised as it is passed.

Within a layer the order is wq, wk and wv; wo; w1 and w3; w2. What each of them reads is computed with those before it
already quantised, so that later ones can make up for what earlier ones lost. Held at a time: one activation of every
token, what attention made of it, the matrices of one layer and the Hessian of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention import attention
from llamagpu.backends.cpu.linear import embedding
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.backends.cpu.swiglu import swiglu
from llamagpu.checkpoint import Tensor
from llamagpu.config import ModelConfig
from llamagpu.errors import UsageError
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.quantization.gptq_solver import Hessian
from llamagpu.tokenizers import Tokenizer

Floats = NDArray[np.float32]
Sequences = Sequence[NDArray[np.int64]]
# Quantises the matrix of this name for inputs of this Hessian.
Solve = Callable[[str, NDArray[Any], Any], AffineQuant]

SEQUENCE_TOKENS = 512  # at most; models of fewer positions take as many as they have
FEWEST_TOKENS = 128
CHARACTERS_PER_TOKEN = 8  # of text to begin with; more is taken where that is not enough


def calibration_sequences(text: str, tokenizer: Tokenizer, config: ModelConfig, n_tokens: int) -> list[NDArray[Any]]:
    """The first ``n_tokens`` of a text, in sequences that each begin with BOS, where the model has one.

    Raises UsageError where the text has too few tokens to learn from, or tokens that the model does not have.
    """
    n_characters = n_tokens * CHARACTERS_PER_TOKEN
    ids = tokenizer.encode(text[:n_characters], add_bos=False)
    while len(ids) < n_tokens and n_characters < len(text):
        n_characters *= 2
        ids = tokenizer.encode(text[:n_characters], add_bos=False)
    if len(ids) < FEWEST_TOKENS:
        raise UsageError(f"the calibration text has {len(ids)} tokens, too few to learn from: give {FEWEST_TOKENS}")
    if max(ids) >= config.vocab_size:
        raise UsageError(f"the calibration text has token {max(ids)}, and the model only {config.vocab_size}")
    start = [tokenizer.bos_id] if tokenizer.bos_id is not None else []
    length = max(1, min(SEQUENCE_TOKENS, config.max_seq_len) - len(start))
    ids = ids[:n_tokens]
    return [np.array(start + ids[at : at + length], np.int64) for at in range(0, len(ids), length)]


class CalibratedLayers:
    """Gives the quantised matrices of a model's layers, one layer after the other.

    tensors: the model's, matrices in floats. solve: quantises one. xp: numpy or cupy, for the Hessians.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        sequences: Sequences,
        solve: Solve,
        xp: ModuleType = np,
    ) -> None:
        self.config, self.tensors, self.sequences, self.solve, self.xp = config, tensors, sequences, solve, xp
        self.x: list[Floats] = []
        self.made: dict[str, AffineQuant] = {}
        self.next_layer = 0

    def embed(self, table: AffineQuant | NDArray[Any]) -> None:
        """Begin: x are the rows of the embedding, as the quantised model has it."""
        tokens, places = np.unique(np.concatenate(self.sequences), return_inverse=True)
        rows = embedding(table, tokens).astype(np.float32)
        ends = np.cumsum([len(sequence) for sequence in self.sequences])
        self.x = [rows[of_one] for of_one in np.split(places, ends[:-1])]

    def take(self, name: str) -> AffineQuant:
        """A matrix of the layer in hand, or of the next one, which is then worked through. Each is given once."""
        if name not in self.made:
            assert name.startswith(f"layers.{self.next_layer}."), "layers are taken in order"
            with np.errstate(all="ignore"):  # damaged weights overflow: the solver says so
                self.run_layer(self.next_layer)
            self.next_layer += 1
        return self.made.pop(name)

    def run_layer(self, layer: int) -> None:
        """Quantise the layer's matrices and put x through it."""
        config, prefix = self.config, f"layers.{layer}"
        norms = [self.vector(f"{prefix}.{name}.weight") for name in ("attention_norm", "ffn_norm")]
        qkv = self.quantise([f"{prefix}.attention.{name}" for name in ("wq", "wk", "wv")], norms[0])
        mixed = [self.attend(rmsnorm(x, norms[0], config.norm_eps), layer, qkv) for x in self.x]
        (wo,) = self.quantise_for([f"{prefix}.attention.wo"], lambda i: mixed[i])
        for x in self.x:
            x += mixed.pop(0) @ wo.T + self.bias(f"{prefix}.attention.wo", config.out_bias)
        gate, up = self.quantise([f"{prefix}.feed_forward.{name}" for name in ("w1", "w3")], norms[1])

        names = [f"{prefix}.feed_forward.{name}" for name in ("w1", "w3")]
        biases = [self.bias(name, config.ffn_bias) for name in names]

        def hidden(i: int) -> Floats:
            h = rmsnorm(self.x[i], norms[1], config.norm_eps)
            return swiglu(h @ gate.T, h @ up.T, biases)

        (down,) = self.quantise_for([f"{prefix}.feed_forward.w2"], hidden)
        for i, x in enumerate(self.x):
            x += hidden(i) @ down.T + self.bias(f"{prefix}.feed_forward.w2", config.ffn_bias)

    def quantise(self, names: Sequence[str], norm: Floats) -> list[Floats]:
        """Matrices that read rmsnorm(x)."""
        return self.quantise_for(names, lambda i: rmsnorm(self.x[i], norm, self.config.norm_eps))

    def quantise_for(self, names: Sequence[str], inputs: Callable[[int], Floats]) -> list[Floats]:
        """Matrices that all read ``inputs(i)`` for sequence i; what they mean once quantised: [out, in] float32."""
        hessian = Hessian(self.tensors[f"{names[0]}.weight"].shape[1], self.xp)
        for i in range(len(self.x)):
            hessian.add(inputs(i))
        meant = []
        for name in names:
            tensor = self.tensors[f"{name}.weight"]
            weights = tensor.materialize() if isinstance(tensor, Deferred) else tensor
            assert isinstance(weights, np.ndarray)
            made = self.made[f"{name}.weight"] = self.solve(f"{name}.weight", weights, hessian.sum)
            values = made.dequantize()
            if made.perm is not None:
                values[:, made.perm] = values.copy()
            meant.append(values)
        return meant

    def attend(self, h: Floats, layer: int, qkv: Sequence[Floats]) -> Floats:
        """What attention makes of the normed h [n, dim] of one sequence: [n, q_dim]."""
        config, n, prefix = self.config, len(h), f"layers.{layer}.attention"
        parts = [h @ matrix.T for matrix in qkv]
        if config.qkv_bias:
            for part, name in zip(parts, ("wq", "wk", "wv"), strict=True):
                part += self.vector(f"{prefix}.{name}.bias")
        q, k, v = (part.reshape(n, -1, config.head_dim) for part in parts)
        if config.qk_norm:
            q, k = (
                rmsnorm(part, self.vector(f"{prefix}.{name}.weight"), config.norm_eps)
                for part, name in ((q, "q_norm"), (k, "k_norm"))
            )
        cos, sin = rope_angles(0, n, config)
        q, k = rope(q, cos, sin, config.rope_layout), rope(k, cos, sin, config.rope_layout)
        return attention(q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), 0, config.window_of(layer))

    def bias(self, module: str, is_there: bool) -> Floats:
        """Of a module, or one 0."""
        return self.vector(f"{module}.bias") if is_there else np.zeros(1, np.float32)

    def vector(self, name: str) -> Floats:
        tensor = self.tensors[name]
        assert isinstance(tensor, np.ndarray)
        return tensor.astype(np.float32)
