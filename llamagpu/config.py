"""ModelConfig: the shape of a model, under the field's standard names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from llamagpu.errors import ModelFormatError

RopeLayout = Literal["interleaved", "half_split"]

# No model comes near these. They keep a damaged header from asking for absurd amounts of work or memory.
LARGEST = {
    "dim": 1 << 20,
    "hidden_dim": 1 << 22,
    "n_layers": 1024,
    "n_heads": 4096,
    "n_kv_heads": 4096,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 22,
    "max_seq_len": 1 << 24,
}
# LLAMAS are models/llama.py: they differ in what the fields below say. The others are a file each.
MEMORY_LLAMA, MICRO_RWKV = "memory_llama", "micro_rwkv"
RWKV = ("rwkv4", "rwkv5.0", "rwkv5", "rwkv6", "rwkv7")
LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
ARCHITECTURES = (*LLAMAS, MEMORY_LLAMA, *RWKV, MICRO_RWKV)
# How many small matrices with a rank of their own an RWKV has: 6 for mixes, decay; 7 for decay, a, v, gate
N_RANKS = {"rwkv6": 2, "rwkv7": 4}
# Of a micro_rwkv and of an RWKV alone: no part of what ``to_dict`` gives of others, which fingerprints are made of.
OF_EXPERTS = {"n_experts": 64, "n_active_experts": 64, "expert_hidden_dim": 1 << 22}
OF_MICRO_RWKV = (*OF_EXPERTS, "linear_bias")
OF_RWKV = ("ranks", "group_norm_eps")
# Of a few Llamas alone, and so no part of what ``to_dict`` gives of others either.
OF_BIASED = ("out_bias", "ffn_bias")
LONGEST_MEMORY = 1 << 16
REMEDY = "the file is damaged or no model that llamagpu knows: download or export it again"


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of one model.

    dim: width of the residual stream. hidden_dim: width inside the feed-forward.
    max_seq_len: positions it was trained for. rope_layout: which two elements of a head turn together:
    2j and 2j+1 ("interleaved", Meta's and llama2.c's files) or j and j + head_dim/2 ("half_split", Hugging Face's).
    rope_factors: head_dim / 2 numbers, by which the frequencies of RoPE are divided (how models are stretched beyond
    the positions they began with); None for all 1. rope_attention_factor: cos and sin are multiplied by it (YaRN).
    tied_head: the embedding matrix is also the output head. qkv_bias: wq, wk, wv have one; out_bias: wo; ffn_bias: w1,
    w2, w3. qk_norm: queries and keys go through an RMSNorm of their head before RoPE. sliding_window: from layer
    first_window_layer on, a token sees itself and the sliding_window - 1 before it; 0: all. mem_len: of a memory_llama,
    tokens of a chunk and rows of its memory.
    ranks: of the pairs of thin matrices of an RWKV, in the order of its file in ``models/``. The heads of an RWKV are
    n_heads = n_kv_heads (one for RWKV-4, which has none); norm_eps is that of its LayerNorms, group_norm_eps that of
    the norm of each head.

    Of a micro_rwkv: n_experts that its gate weighs, of which the first n_active_experts are run, of width
    expert_hidden_dim each; linear_bias: the matrices of its time mix and channel mix, and its last norm, have one.
    """

    architecture: str
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_layout: RopeLayout = "interleaved"
    rope_factors: tuple[float, ...] | None = None
    rope_attention_factor: float = 1.0
    tied_head: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int = 0
    first_window_layer: int = 0
    mem_len: int = 0
    ranks: tuple[int, ...] = ()
    group_norm_eps: float = 64e-5
    n_experts: int = 0
    n_active_experts: int = 0
    expert_hidden_dim: int = 0
    linear_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False

    @classmethod
    def checked(cls, path: str | Path, values: dict[str, Any]) -> ModelConfig:
        """Build from a file's header values, whatever they are. Raises ModelFormatError naming the field."""

        def refuse(field: str, problem: str) -> ModelFormatError:
            return ModelFormatError(path, field, problem, REMEDY)

        known = {field.name: field for field in fields(cls)}
        for name in values:
            if name not in known:
                raise refuse("config", f"holds {str(name)[:40]!r}, which this version does not know")
        for name, field in known.items():
            if name not in values and field.default is MISSING:
                raise refuse(name, "is missing")
        values = {name: values.get(name, field.default) for name, field in known.items()}
        for name, largest in LARGEST.items():
            value = values[name]
            if type(value) is not int or not 1 <= value <= largest:
                raise refuse(name, f"is {str(value)[:40]}, must be a whole number from 1 to {largest}")
        for name in ("sliding_window", "first_window_layer", "mem_len"):
            value = values[name]
            if type(value) is not int or not 0 <= value <= LARGEST["max_seq_len"]:
                raise refuse(name, f"is {str(value)[:40]}, must be a whole number from 0 to {LARGEST['max_seq_len']}")
        for name, largest in OF_EXPERTS.items():
            value = values[name]
            if type(value) is not int or not 0 <= value <= largest:
                raise refuse(name, f"is {str(value)[:40]}, must be a whole number from 0 to {largest}")
        for name in ("norm_eps", "rope_theta", "rope_attention_factor", "group_norm_eps"):
            value = values[name]
            if type(value) not in (int, float) or not 0 < value < 1e30:  # also false for NaN
                raise refuse(name, f"is {str(value)[:40]}, must be a number above 0")
            values[name] = float(value)
        if values["architecture"] not in ARCHITECTURES:
            known_names = ", ".join(ARCHITECTURES)
            raise refuse("architecture", f"is {str(values['architecture'])[:40]!r}; this version runs {known_names}")
        if values["rope_layout"] not in ("interleaved", "half_split"):
            raise refuse("rope_layout", f"is {str(values['rope_layout'])[:40]!r}, must be interleaved or half_split")
        for name in ("tied_head", "qkv_bias", "qk_norm", "linear_bias", *OF_BIASED):
            if type(values[name]) is not bool:
                raise refuse(name, "must be true or false")
        factors = values["rope_factors"]
        if factors is not None:
            if not isinstance(factors, list | tuple) or len(factors) != values["head_dim"] // 2:
                raise refuse("rope_factors", f"must be {values['head_dim'] // 2} numbers, half of head_dim")
            if not all(type(factor) in (int, float) and 1e-10 < factor < 1e10 for factor in factors):
                raise refuse("rope_factors", "must be numbers above 0")
            values["rope_factors"] = tuple(float(factor) for factor in factors)
        ranks = values["ranks"]
        n_ranks = N_RANKS.get(values["architecture"], 0)
        if not isinstance(ranks, list | tuple) or len(ranks) != n_ranks:
            raise refuse("ranks", f"must be {n_ranks} whole numbers for this architecture")
        if not all(type(rank) is int and 1 <= rank <= LARGEST["dim"] for rank in ranks):
            raise refuse("ranks", f"must be whole numbers from 1 to {LARGEST['dim']}")
        values["ranks"] = tuple(ranks)
        config = cls(**values)
        if config.recurrent:
            config.check_rwkv(refuse)
        if config.n_heads % config.n_kv_heads:
            raise refuse("n_kv_heads", f"is {config.n_kv_heads}, must divide n_heads = {config.n_heads}")
        if config.head_dim % 2 and not config.recurrent:
            raise refuse("head_dim", f"is {config.head_dim}, must be even (RoPE turns pairs)")
        if (config.architecture == MEMORY_LLAMA) != (config.mem_len > 0):
            raise refuse("mem_len", f"is {config.mem_len}: a {MEMORY_LLAMA} has one, no other architecture does")
        if config.mem_len > LONGEST_MEMORY:
            raise refuse("mem_len", f"is {config.mem_len}, must be at most {LONGEST_MEMORY}")
        if config.mem_len and (config.q_dim != config.dim or config.sliding_window):
            problem = f"times n_heads is {config.q_dim}, must be dim = {config.dim}, without a sliding_window"
            raise refuse("head_dim", f"{problem}: rows of a memory go through layers of that width")
        for name in OF_BIASED:
            if getattr(config, name) and config.architecture not in LLAMAS:
                raise refuse(name, f"is true: a {config.architecture} has no such bias")
        config.check_micro_rwkv(refuse)
        return config

    def check_rwkv(self, refuse: Callable[[str, str], ModelFormatError]) -> None:
        """What an RWKV asks of the fields: heads that fill dim, and nothing that only attention or a Llama has."""
        if self.n_heads * self.head_dim != self.dim or self.n_kv_heads != self.n_heads:
            raise refuse("head_dim", f"is {self.head_dim}, must be dim = {self.dim} over n_heads = n_kv_heads")
        for name in ("tied_head", "qkv_bias", "qk_norm", "sliding_window", "mem_len"):
            if getattr(self, name):
                raise refuse(name, f"is {getattr(self, name)}: an RWKV has none")

    def check_micro_rwkv(self, refuse: Callable[[str, str], ModelFormatError]) -> None:
        """What a micro_rwkv asks of the fields, and that no other architecture has its own."""
        if self.architecture != MICRO_RWKV:
            for name in OF_MICRO_RWKV:
                if getattr(self, name):
                    raise refuse(name, f"is {getattr(self, name)}: only a {MICRO_RWKV} has it")
            return
        if self.q_dim != self.dim or self.n_kv_heads != self.n_heads or self.head_dim % 4:
            problem = f"is {self.head_dim}, must be a multiple of 4 and dim = {self.dim} over n_heads = n_kv_heads"
            raise refuse("head_dim", problem)
        if not 1 <= self.n_active_experts <= self.n_experts or not self.expert_hidden_dim:
            problem = f"is {self.n_active_experts}, of {self.n_experts} experts of width {self.expert_hidden_dim}"
            raise refuse("n_active_experts", problem)
        for name in ("sliding_window", "qkv_bias", "qk_norm"):
            if getattr(self, name):
                raise refuse(name, f"is {getattr(self, name)}: a {MICRO_RWKV} has none")
        if not self.tied_head:
            raise refuse("tied_head", f"is false: the head of a {MICRO_RWKV} is its embedding")

    @property
    def kv_dim(self) -> int:
        """Width of the keys of one token, and of the values: n_kv_heads * head_dim."""
        return self.n_kv_heads * self.head_dim

    @property
    def q_dim(self) -> int:
        """Width of the queries of one token: n_heads * head_dim."""
        return self.n_heads * self.head_dim

    @property
    def recurrent(self) -> bool:
        """Whether it is an RWKV: no keys and values, no positions."""
        return self.architecture in RWKV

    @property
    def endless(self) -> bool:
        """Whether max_seq_len is no limit: its state has one size, or it reads the last max_seq_len tokens alone."""
        return self.mem_len > 0 or self.recurrent or self.architecture == MICRO_RWKV

    @property
    def keeps_keys(self) -> bool:
        """Whether it has keys and values of tokens, as attention over what went before does."""
        return not self.recurrent and self.architecture != MICRO_RWKV

    def window_of(self, layer: int) -> int:
        """Positions that a token of this layer sees, itself included; 0 for all before it."""
        return self.sliding_window if layer >= self.first_window_layer else 0

    def kv_bytes_per_token(self, element_size: int = 4) -> int:
        """Bytes of keys and values that one position holds over all layers."""
        return 2 * self.n_layers * self.kv_dim * element_size

    def to_dict(self) -> dict[str, Any]:
        """All fields, but for those that no model of this architecture has."""
        left_out = (*(OF_MICRO_RWKV * (self.architecture != MICRO_RWKV)), *(OF_RWKV * (not self.recurrent)))
        left_out += tuple(name for name in OF_BIASED if not getattr(self, name))
        return {name: value for name, value in asdict(self).items() if name not in left_out}
