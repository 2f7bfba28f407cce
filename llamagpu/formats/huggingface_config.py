"""config.json of a Hugging Face model, to ModelConfig: four architectures, and whatever they cannot do refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamagpu.config import LARGEST, ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats.huggingface_rope import read_rope

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
SIZES = {  # of ModelConfig: of config.json
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
}
MISTRAL_WINDOW = 4096  # where a config.json of that architecture does not say
QWEN3_HEAD_DIM = 128  # the same
QWEN_WINDOW, QWEN_WINDOW_LAYERS = 4096, 28
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
DAMAGED = "config.json is damaged: download or export it again"
UNKNOWN = "this version cannot run the model as it is meant"
FULL, SLIDING = "full_attention", "sliding_attention"


def read_config(path: Path, config: dict[str, Any]) -> ModelConfig:
    """``config``: what config.json at ``path`` holds. Raises ModelFormatError naming the setting."""
    architecture = read_architecture(path, config)
    refuse_what_is_not_here(path, config)
    values: dict[str, Any] = {name: whole(path, config, key, LARGEST[name]) for name, key in SIZES.items()}
    if config.get("num_key_value_heads") is None and (architecture == "llama" or "num_key_value_heads" in config):
        values["n_kv_heads"] = values["n_heads"]  # as Llama 1 has it
    else:
        values["n_kv_heads"] = whole(path, config, "num_key_value_heads", LARGEST["n_kv_heads"])
    if config.get("head_dim") is not None:
        values["head_dim"] = whole(path, config, "head_dim", LARGEST["head_dim"])
    elif architecture == "qwen3" and "head_dim" not in config:
        values["head_dim"] = QWEN3_HEAD_DIM
    elif values["dim"] % values["n_heads"]:
        problem = f"is {values['n_heads']}, must divide hidden_size = {values['dim']}"
        raise ModelFormatError(path, "num_attention_heads", problem, DAMAGED)
    else:
        values["head_dim"] = values["dim"] // values["n_heads"]
    if values["head_dim"] % 2:
        raise ModelFormatError(path, "head_dim", f"is {values['head_dim']}, must be even (RoPE turns pairs)", DAMAGED)
    if "rms_norm_eps" not in config:
        raise ModelFormatError(path, "rms_norm_eps", "is missing", DAMAGED)
    window, first_window_layer = read_window(path, config, architecture, values["n_layers"])
    bias = flag(path, config, "attention_bias")
    return ModelConfig.checked(
        path,
        values
        | read_rope(path, config, values["head_dim"])
        | {
            "architecture": architecture,
            "norm_eps": config["rms_norm_eps"],
            "rope_layout": "half_split",
            "tied_head": flag(path, config, "tie_word_embeddings"),
            "qkv_bias": architecture == "qwen2" or (architecture in ("llama", "qwen3") and bias),
            "qk_norm": architecture == "qwen3",
            "sliding_window": window,
            "first_window_layer": first_window_layer,
        },
    )


def read_architecture(path: Path, config: dict[str, Any]) -> str:
    named = config.get("architectures")
    if named is None and isinstance(config.get("model_type"), str):
        known = {value: name for name, value in ARCHITECTURES.items()}
        named = [known.get(config["model_type"], config["model_type"])]
    name = named[0] if isinstance(named, list) and len(named) == 1 else named
    if not isinstance(name, str) or name not in ARCHITECTURES:
        problem = f"is {str(name)[:80]!r}; this version runs {', '.join(ARCHITECTURES)}"
        raise ModelFormatError(path, "architectures", problem, "it cannot run this model")
    return ARCHITECTURES[name]


def refuse_what_is_not_here(path: Path, config: dict[str, Any]) -> None:
    """What would change every number of the model, and models/llama.py does not do."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):  # two names of one function
        problem = f"is {str(activation)[:40]!r}; this version has silu only"
        raise ModelFormatError(path, "hidden_act", problem, UNKNOWN)
    if flag(path, config, "mlp_bias"):
        raise ModelFormatError(path, "mlp_bias", "is true; this version has no bias there", UNKNOWN)
    for name in EXPERTS:
        if config.get(name):
            problem = f"is {str(config[name])[:40]}: a mixture of experts, which this version does not run"
            raise ModelFormatError(path, name, problem, UNKNOWN)


def read_window(path: Path, config: dict[str, Any], architecture: str, n_layers: int) -> tuple[int, int]:
    """sliding_window and first_window_layer of ModelConfig; layer_types, where it is given, must say the same."""
    window, first = 0, 0
    if architecture == "mistral":
        window = read_sliding_window(path, config, MISTRAL_WINDOW)
    elif architecture.startswith("qwen") and flag(path, config, "use_sliding_window"):
        window = read_sliding_window(path, config, QWEN_WINDOW)
        layers = {"max_window_layers": QWEN_WINDOW_LAYERS} | config
        first = whole(path, layers, "max_window_layers", LARGEST["max_seq_len"], smallest=0)
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != n_layers or not set(map(str, types)) <= {FULL, SLIDING}:
            problem = f"must be {n_layers} of {FULL} and {SLIDING}, one for each layer"
            raise ModelFormatError(path, "layer_types", problem, UNKNOWN)
        n_full = types.index(SLIDING) if SLIDING in types else n_layers
        if architecture.startswith("qwen"):
            first = n_full
        expected_full = min(first, n_layers) if window else n_layers
        if types != [FULL] * expected_full + [SLIDING] * (n_layers - expected_full):
            problem = f"does not fit a window of {window} from layer {first} on, the only kind that this version has"
            raise ModelFormatError(path, "layer_types", problem, UNKNOWN)
    return (window, first) if first < n_layers else (0, 0)


def read_sliding_window(path: Path, config: dict[str, Any], default: int) -> int:
    """null says 0, all of the context, as does a window that never closes; no word says ``default``."""
    if "sliding_window" in config and config["sliding_window"] is None:
        return 0
    window = whole(path, {"sliding_window": default} | config, "sliding_window", 1 << 62)
    positions = config.get("max_position_embeddings")
    return 0 if type(positions) is int and window >= positions else window


def whole(path: Path, config: dict[str, Any], key: str, largest: int, smallest: int = 1) -> int:
    """Raises ModelFormatError for what is no whole number, or none that a model has."""
    value = config.get(key)
    if value is None:
        raise ModelFormatError(path, key, "is missing", DAMAGED)
    if type(value) is not int or not smallest <= value <= largest:
        problem = f"is {str(value)[:40]}, must be a whole number from {smallest} to {largest}"
        raise ModelFormatError(path, key, problem, DAMAGED)
    return value


def flag(path: Path, config: dict[str, Any], key: str) -> bool:
    """true or false; no word and null say false. Raises ModelFormatError."""
    value = config.get(key)
    if value is not None and type(value) is not bool:
        raise ModelFormatError(path, key, f"is {str(value)[:40]}, must be true or false", DAMAGED)
    return bool(value)
