"""What a model is, in rows of text: shape, types of its weights, bytes that a token reads, memory at a context."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llamagpu.backends.cuda.recurrent_state import SLOTS
from llamagpu.backends.recurrent import wkv_shape
from llamagpu.checkpoint import Checkpoint, Tensor, memory_shapes
from llamagpu.config import ModelConfig
from llamagpu.errors import printable
from llamagpu.models import notes_of
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.terminal import human_bytes


def rows_of(checkpoint: Checkpoint, about_tokenizer: str, positions: int) -> list[tuple[str, str]]:
    """Name and value of each row; positions: how many to state memory for."""
    config, weights = checkpoint.config, checkpoint.nbytes
    positions = 2 * config.mem_len or positions  # with a memory: of any text
    kv_bytes, on_cpu, on_gpu = memory_bytes(checkpoint, positions)
    rows = [
        ("file", f"{printable(str(checkpoint.path))} ({human_bytes(bytes_of(checkpoint.path))})"),
        ("format", checkpoint.format),
        ("architecture", config.architecture),
        ("parameters", f"{checkpoint.n_parameters:,} in {len(checkpoint.tensors)} tensors"),
        ("weights", f"{weight_types(checkpoint)}; {human_bytes(weights)}"),
        ("bits", f"{8 * weights / checkpoint.n_parameters:.2f} per parameter, as stored"),
        ("layers", str(config.n_layers)),
        ("dim", f"{config.dim} (feed-forward {config.hidden_dim}{', with biases' * config.ffn_bias})"),
        ("heads", heads(config)),
        ("vocabulary", f"{config.vocab_size} ({'tied head' if config.tied_head else 'separate head'})"),
        ("ranks", ranks(config)),
        ("positions", "any number: texts have no end" if config.recurrent else f"{config.max_seq_len}{window(config)}"),
        ("memory rows", memory(config)),
        ("experts", experts(config)),
        ("RoPE", rope(config) if config.keeps_keys else ""),
        ("norm eps", norm_eps(config)),
        ("tokenizer", about_tokenizer),
        ("ends at", f"tokens {', '.join(map(str, checkpoint.stop_tokens))}" if checkpoint.stop_tokens else ""),
        ("chat template", "yes" if checkpoint.chat_template is not None else ""),
        ("suggested", ", ".join(f"--{name} {value:g}" for name, value in checkpoint.sampling.items())),
        (
            "KV cache",
            f"{human_bytes(kv_bytes)} at {positions} positions ({kv_type(config)})" if kv_bytes else "",
        ),
        ("state", f"{human_bytes(state_bytes(config))} of a text of any length (float32)" if config.recurrent else ""),
        ("a token reads", f"{human_bytes(bytes_per_token(checkpoint))} of weights, and {what_else(config)}"),
        (
            "memory",
            f"about {human_bytes(on_cpu)} on the CPU, {human_bytes(on_gpu)} on a GPU"
            f"{'' if config.recurrent else f', at {positions} positions'}",
        ),
        *(("note", printable(note)) for note in (*checkpoint.notes, *notes_of(config, recurrent=False))),
    ]
    return [(name, value) for name, value in rows if value]


def facts_of(checkpoint: Checkpoint, positions: int) -> dict[str, Any]:
    """The same as numbers, for ``info --json``. Sizes are in bytes."""
    config = checkpoint.config
    positions = 2 * config.mem_len or positions
    kv_bytes, on_cpu, on_gpu = memory_bytes(checkpoint, positions)
    return {
        "file": str(checkpoint.path), "file_bytes": bytes_of(checkpoint.path), "format": checkpoint.format,
        "n_parameters": checkpoint.n_parameters, "n_tensors": len(checkpoint.tensors),
        "weights": weight_types(checkpoint), "weight_bytes": checkpoint.nbytes,
        "bits_per_parameter": 8 * checkpoint.nbytes / checkpoint.n_parameters,
        "config": {name: value for name, value in asdict(config).items() if not isinstance(value, np.ndarray)},
        "stop_tokens": list(checkpoint.stop_tokens), "has_chat_template": checkpoint.chat_template is not None,
        "suggested": dict(checkpoint.sampling), "positions": None if config.recurrent else positions,
        "kv_cache_bytes": kv_bytes, "state_bytes": state_bytes(config),
        "bytes_per_token": bytes_per_token(checkpoint), "memory_bytes": {"cpu": on_cpu, "gpu": on_gpu},
        "notes": [*checkpoint.notes, *notes_of(config, recurrent=False)],
    }  # fmt: skip


def memory_bytes(checkpoint: Checkpoint, positions: int) -> tuple[int, int, int]:
    """Of keys and values as float32, and of all that is held on the CPU and on a GPU."""
    config = checkpoint.config
    held = sum(held_bytes(tensor) for tensor in checkpoint.tensors.values())
    kv_bytes = positions * config.kv_bytes_per_token() if config.keeps_keys else 0
    on_cpu = cpu_weight_bytes(checkpoint) + kv_bytes + state_bytes(config)
    on_gpu = held + kv_bytes // (1 if config.mem_len or not kv_bytes or is_float32(checkpoint) else 2)
    return kv_bytes, on_cpu, on_gpu + state_bytes(config) * (SLOTS if config.recurrent else 1)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def heads(config: ModelConfig) -> str:
    if config.recurrent:
        return f"{config.n_heads} of {config.head_dim}" if config.architecture != "rwkv4" else ""
    extras = (
        ["bias"] * config.qkv_bias
        + ["bias of the output"] * config.out_bias
        + ["queries and keys normed"] * config.qk_norm
    )
    return ", ".join([f"{config.n_heads} of {config.head_dim}, {config.n_kv_heads} for keys and values", *extras])


def kv_type(config: ModelConfig) -> str:
    return "float32" if config.mem_len else "float32; on a GPU float16 unless weights are float32"


def window(config: ModelConfig) -> str:
    if not config.sliding_window:
        return ""
    first = config.first_window_layer
    return f", a token sees the last {config.sliding_window}" + (f" in layers {first} and above" if first else "")


def memory(config: ModelConfig) -> str:
    if not config.mem_len:
        return ""
    return f"{config.mem_len} per layer, renewed every {config.mem_len} tokens: texts have no end, the state one size"


def experts(config: ModelConfig) -> str:
    return f"{config.n_experts}, of which the first {config.n_active_experts} are run" if config.n_experts else ""


def ranks(config: ModelConfig) -> str:
    names = {"rwkv6": ("mixes", "decay"), "rwkv7": ("decay", "a", "v", "gate")}.get(config.architecture, ())
    return ", ".join(f"{name} {rank}" for name, rank in zip(names, config.ranks, strict=True))


def norm_eps(config: ModelConfig) -> str:
    of_heads = f", of heads {config.group_norm_eps:g}" if config.recurrent and config.architecture != "rwkv4" else ""
    return f"{config.norm_eps:g}{of_heads}"


def state_bytes(config: ModelConfig) -> int:
    """Of what an RWKV remembers of a text."""
    if not config.recurrent:
        return 0
    return 4 * config.n_layers * (2 * config.dim + math.prod(wkv_shape(config)))


def what_else(config: ModelConfig) -> str:
    """What a token reads beside the weights."""
    if config.recurrent:
        return "the state, which it writes anew"
    return "the KV cache so far" if config.keeps_keys else f"the last {config.max_seq_len} tokens anew"


def rope(config: ModelConfig) -> str:
    scaled = ""
    if config.rope_factors is not None:
        scaled = f", frequencies divided by {min(config.rope_factors):g} to {max(config.rope_factors):g}"
    if config.rope_attention_factor != 1:
        scaled += f", cos and sin times {config.rope_attention_factor:.4g}"
    return f"theta {config.rope_theta:g}, {config.rope_layout}{scaled}"


def weight_types(checkpoint: Checkpoint) -> str:
    """Such as "int8 x 36 tensors, float32 x 11"."""
    counts: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        kind = type_name(tensor)
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{kind} x {n}" for kind, n in sorted(counts.items(), key=lambda item: -item[1]))


def type_name(tensor: Tensor) -> str:
    """What people call the type of a weight."""
    if isinstance(tensor, Deferred):
        return tensor.kind
    if isinstance(tensor, AffineQuant):
        group = "row" if tensor.group_size == tensor.shape[1] else str(tensor.group_size)
        return f"{tensor.bits}-bit (group {group})"
    return str(tensor.dtype) if isinstance(tensor, np.ndarray) else "int8"


def is_float32(checkpoint: Checkpoint) -> bool:
    """Whether the GPU would keep keys and values as float32, too."""
    matrices = [checkpoint.tensors[f"layers.{i}.attention.wq.weight"] for i in range(checkpoint.config.n_layers)]
    return all(type_name(matrix) == "float32" for matrix in matrices)


def held_bytes(tensor: Tensor) -> int:
    """Of a weight in memory."""
    return tensor.held_nbytes or tensor.nbytes if isinstance(tensor, Deferred) else tensor.nbytes


def bytes_per_token(checkpoint: Checkpoint) -> int:
    """Of weights, as they are held: all, but of the embedding one row, unless it is the head too.

    What a memory is renewed with, once in a chunk, is left out.
    """
    once_a_chunk = memory_shapes(checkpoint.config) if checkpoint.config.mem_len else {}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in once_a_chunk}
    embedding = 0 if checkpoint.config.tied_head else held_bytes(tensors["tok_embeddings.weight"])
    return sum(map(held_bytes, tensors.values())) - embedding + embedding // checkpoint.config.vocab_size


def cpu_weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the weights on the CPU backend, which widens 16-bit floats."""
    return sum(held_bytes(t) * (2 if is_16_bit_float(t) else 1) for t in checkpoint.tensors.values())


def is_16_bit_float(tensor: Tensor) -> bool:
    return type_name(tensor) in ("float16", "bfloat16")
