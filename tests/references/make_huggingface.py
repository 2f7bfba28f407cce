"""Small random Hugging Face models, and the logits that transformers computes for them.

    PYTHONPATH=. python tests/references/make_huggingface.py      # where torch and transformers are installed

writes huggingface.npz, which the tests compare with. ``build`` makes the folder of a case from its seed, anywhere, with
code of its own; ``expected`` gives the stored logits, ``computed`` asks transformers anew.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORED = Path(__file__).with_name("huggingface.npz")
Arrays = dict[str, NDArray[Any]]
DTYPE_NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int32": "I32"}  # NumPy has no bfloat16
TOKENS = [int(token) for token in np.random.default_rng(7).integers(0, 80, 48)]  # what every case is asked
KEPT = slice(1, None, 2)  # the rows of logits that are stored

BASE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 80, "max_position_embeddings": 128, "rms_norm_eps": 1e-3,
    "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 500.0,
}  # fmt: skip
LLAMA = BASE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
MISTRAL = BASE | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = BASE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = BASE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 12}
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8, "beta_slow": 1}
WITH_BIASES = {"output_bias": True}  # of this file: o_proj's bias is not zeros
OMITTED = ("max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings")  # which have defaults
OLD_LLAMA = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "rope_theta")}

# name: config.json, type of the tensors, number of shards
CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "llama mha": (OLD_LLAMA, "F32", 1),
    "llama gqa tied": (LLAMA | {"tie_word_embeddings": True}, "F32", 3),
    "llama float16": (LLAMA, "F16", 1),
    "llama bfloat16": (LLAMA | {"num_key_value_heads": 1}, "BF16", 2),
    "llama wide heads": (LLAMA | {"head_dim": 24}, "F32", 1),
    "llama attention bias": (LLAMA | {"attention_bias": True}, "F32", 1),
    "llama linear": (LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, "F32", 1),
    "llama llama3": (LLAMA | {"rope_scaling": LLAMA3_ROPE}, "F32", 1),
    "llama yarn": (LLAMA | {"rope_scaling": YARN}, "F32", 1),
    "llama yarn factor": (
        LLAMA | {"rope_scaling": YARN | {"attention_factor": 0.75, "truncate": False}}, "F32", 1,
    ),
    "llama yarn mscale": (LLAMA | {"rope_scaling": YARN | {"mscale": 2.0, "mscale_all_dim": 0.5}}, "F32", 1),
    "llama transformers 5": (
        {key: value for key, value in LLAMA.items() if key != "rope_theta"}
        | {"rope_parameters": {"rope_theta": 700.0} | LLAMA3_ROPE, "dtype": "float32"}, "F32", 1,
    ),
    "mistral window": (MISTRAL | {"sliding_window": 9}, "F32", 1),
    "mistral": (MISTRAL | {"sliding_window": None, "head_dim": 16}, "BF16", 1),
    "qwen2": (QWEN2, "F32", 1),
    "qwen2 window": (
        QWEN2 | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
                 "tie_word_embeddings": True}, "BF16", 1,
    ),
    "qwen2 layer types": (
        QWEN2 | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3,
                 "layer_types": ["full_attention", "full_attention", "sliding_attention"]}, "F32", 1,
    ),
    "qwen3": (QWEN3 | {"tie_word_embeddings": True}, "F32", 1),
    "qwen3 bfloat16": (QWEN3 | {"rope_theta": 1000000.0}, "BF16", 2),
    "llama all biases": (LLAMA | {"attention_bias": True, "mlp_bias": True} | WITH_BIASES, "F32", 2),
    "llama mlp bias": (LLAMA | {"mlp_bias": True, "tie_word_embeddings": True}, "BF16", 1),
    "llama output bias": (LLAMA | {"attention_bias": True, "architectures": []} | WITH_BIASES, "F16", 1),
    "qwen3 bias": (QWEN3 | {"attention_bias": True, "architectures": None} | WITH_BIASES, "F32", 1),
    "llama only lm_head": (
        LLAMA | {"tie_word_embeddings": True, "architectures": ["LLaMAForCausalLM"], "saved_head": True}, "F32", 2,
    ),
    "qwen2 yarn": (QWEN2 | {"max_position_embeddings": 16, "rope_scaling": YARN}, "F32", 1),
    "qwen2 yarn without original": (
        QWEN2 | {"max_position_embeddings": 16, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "F32", 1,
    ),
    "llama yarn without factor": (
        LLAMA | {"max_position_embeddings": 64, "rope_scaling": YARN | {"factor": None}}, "F32", 1,
    ),
    "llama defaults": ({key: value for key, value in LLAMA.items() if key not in OMITTED}, "F32", 1),
    "mistral defaults": (
        {key: value for key, value in MISTRAL.items() if key not in (*OMITTED, "num_key_value_heads")}
        | {"num_attention_heads": 8}, "F32", 1,
    ),
}  # fmt: skip


def random_tensors(config: dict[str, Any], seed: int) -> Arrays:
    """Every tensor of a model by its Hugging Face name, float32. Biases are as large as what they are added to."""
    rng = np.random.default_rng(seed)
    dim, hidden, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    n_heads = config["num_attention_heads"]
    n_kv_heads = config.get("num_key_value_heads", 8 if config["model_type"] == "mistral" else n_heads)
    is_tied = config.get("tie_word_embeddings", False)
    head_dim = config.get("head_dim", dim // n_heads)

    def matrix(out_features: int, in_features: int, size: float = 1.0) -> NDArray[np.float32]:
        return np.asarray(size * rng.standard_normal((out_features, in_features)) / in_features**0.5, np.float32)

    def vector(n: int, middle: float, spread: float) -> NDArray[np.float32]:
        return (middle + spread * rng.standard_normal(n)).astype(np.float32)

    tensors: Arrays = {"model.embed_tokens.weight": matrix(vocab, dim, 1 if is_tied else dim**0.5)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.input_layernorm.weight"] = vector(dim, 1, 0.1)
        for name, heads, size in (("q", n_heads, 2.0), ("k", n_kv_heads, 2.0), ("v", n_kv_heads, 1.0)):
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = matrix(heads * head_dim, dim, size)
            if config["model_type"] == "qwen2" or config.get("attention_bias"):
                tensors[f"{layer}.self_attn.{name}_proj.bias"] = vector(heads * head_dim, 0, 1)
        if config.get("attention_bias"):
            is_there = config.get("output_bias", False)  # zeros change nothing
            tensors[f"{layer}.self_attn.o_proj.bias"] = vector(dim, 0, 0.5) if is_there else np.zeros(dim, np.float32)
        if config["model_type"] == "qwen3":
            tensors[f"{layer}.self_attn.q_norm.weight"] = vector(head_dim, 1.5, 0.5)
            tensors[f"{layer}.self_attn.k_norm.weight"] = vector(head_dim, 1.5, 0.5)
        tensors[f"{layer}.self_attn.o_proj.weight"] = matrix(dim, n_heads * head_dim)
        tensors[f"{layer}.post_attention_layernorm.weight"] = vector(dim, 1, 0.1)
        tensors[f"{layer}.mlp.gate_proj.weight"] = matrix(hidden, dim)
        tensors[f"{layer}.mlp.up_proj.weight"] = matrix(hidden, dim)
        tensors[f"{layer}.mlp.down_proj.weight"] = matrix(dim, hidden)
        for name, width in (("gate", hidden), ("up", hidden), ("down", dim)) if config.get("mlp_bias") else ():
            tensors[f"{layer}.mlp.{name}_proj.bias"] = vector(width, 0, 0.5)
    tensors["model.norm.weight"] = vector(dim, 1, 0.1)
    if config.get("saved_head"):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    elif not is_tied:
        tensors["lm_head.weight"] = matrix(vocab, dim)
    return tensors


def safetensors_bytes(tensors: Arrays) -> bytes:
    """A safetensors file: header length, JSON, tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in tensors.values())


def write_folder(folder: Path, config: dict[str, Any], tensors: Arrays, n_shards: int = 1) -> Path:
    """config.json and the tensors, as transformers would save them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if n_shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    weight_map: dict[str, str] = {}
    for i, names in enumerate(np.array_split(np.asarray(list(tensors)), n_shards)):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        (folder / file).write_bytes(safetensors_bytes({str(name): tensors[str(name)] for name in names}))
        weight_map |= {str(name): file for name in names}
    size = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def build(name: str, folder: Path) -> Path:
    """The model of case ``name`` in ``folder``, which is made where it is not there."""
    config, dtype, n_shards = CASES[name]
    tensors = random_tensors(config, seed=list(CASES).index(name))
    return write_folder(folder, config, {key: rounded(array, dtype) for key, array in tensors.items()}, n_shards)


def rounded(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """As a file holds it; bfloat16 is the upper half of a float32, rounded to the nearest, to the even one of two."""
    if dtype == "BF16":
        bits = array.view(np.uint32)
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    return array.astype(np.float16) if dtype == "F16" else array


def expected(name: str) -> NDArray[np.float32]:
    """transformers' logits of case ``name`` for TOKENS, rows KEPT, as they are stored."""
    with np.load(STORED) as stored:
        logits: NDArray[np.float32] = stored[name]
    return logits


def computed(name: str) -> NDArray[np.float32]:
    """The same, computed now, in float32 from the same rounded weights. Needs torch and transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(
            build(name, Path(folder)), dtype=torch.float32, attn_implementation="eager"
        )
        logits: NDArray[np.float32] = model(torch.tensor([TOKENS])).logits[0].numpy()
    return logits[KEPT].copy()


def main() -> None:
    import torch
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, NumPy {np.__version__}"
    results: dict[str, Any] = {name: computed(name) for name in CASES}
    np.savez_compressed(STORED, versions=np.asarray(versions), **results)
    print(f"{len(results)} cases with {versions}: {STORED.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
