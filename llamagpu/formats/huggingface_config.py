"""config.json of a Hugging Face model, to ModelConfig: four architectures, and whatever they cannot do refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamagpu.config import LARGEST, ModelConfig
from llamagpu.errors import ModelFormatError, printable
from llamagpu.formats.huggingface_rope import read_rope

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# What transformers takes where a config.json does not say. Widths and numbers of layers and heads are not here: a file
# without them is damaged. num_key_value_heads of a Llama is the number of heads, as Llama 1 has it.
DEFAULTS: dict[str, dict[str, int | float]] = {
    "llama": {"max_position_embeddings": 2048, "vocab_size": 32000, "rms_norm_eps": 1e-6},
    "mistral": {
        "max_position_embeddings": 131072, "vocab_size": 32000, "rms_norm_eps": 1e-6, "num_key_value_heads": 8,
    },
    "qwen2": {
        "max_position_embeddings": 32768, "vocab_size": 151936, "rms_norm_eps": 1e-6, "num_key_value_heads": 32,
    },
}  # fmt: skip
DEFAULTS["qwen3"] = DEFAULTS["qwen2"]
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


def read_config(path: Path, config: dict[str, Any]) -> tuple[ModelConfig, tuple[str, ...]]:
    """``config``: what config.json at ``path`` holds. Beside its meaning, one line each of what a user should know.

    out_bias and ffn_bias are what it says; whether the file has them, its tensors say. Raises ModelFormatError naming
    the setting.
    """
    architecture, notes = read_architecture(path, config)
    missing = {key: value for key, value in DEFAULTS[architecture].items() if key not in config}
    notes += [f"config.json has no {key}: {value} is taken, as transformers does" for key, value in missing.items()]
    config = config | missing
    refuse_what_is_not_here(path, config)
    values: dict[str, Any] = {name: whole(path, config, key, LARGEST[name]) for name, key in SIZES.items()}
    if config.get("num_key_value_heads") is None:
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
    rope, rope_notes = read_rope(path, config, values["head_dim"])
    values |= rope
    window, first_window_layer = read_window(path, config, architecture, values["n_layers"], values["max_seq_len"])
    bias = architecture in ("llama", "qwen3") and flag(path, config, "attention_bias")
    checked = ModelConfig.checked(
        path,
        values
        | {
            "architecture": architecture,
            "norm_eps": config["rms_norm_eps"],
            "rope_layout": "half_split",
            "tied_head": flag(path, config, "tie_word_embeddings"),
            "qkv_bias": architecture == "qwen2" or bias,
            "out_bias": bias,
            "ffn_bias": architecture == "llama" and flag(path, config, "mlp_bias"),
            "qk_norm": architecture == "qwen3",
            "sliding_window": window,
            "first_window_layer": first_window_layer,
        },
    )
    return checked, (*notes, *rope_notes)


def read_architecture(path: Path, config: dict[str, Any]) -> tuple[str, list[str]]:
    """That of ``model_type``, as transformers goes by it, and a note where ``architectures`` names another class; by
    ``architectures`` where model_type is none that is known. Raises ModelFormatError."""
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise ModelFormatError(path, "architectures", f"is {str(named)[:80]!r}, must be a list of names", DAMAGED)
    names, model_type = named or [], config.get("model_type")
    classes = {name.casefold(): architecture for name, architecture in ARCHITECTURES.items()}
    if isinstance(model_type, str) and model_type in ARCHITECTURES.values():
        if not names or any(classes.get(name.casefold()) == model_type for name in names):
            return model_type, []
        return model_type, [f"config.json names {printable(names[0][:80])}: it is read by its model_type {model_type}"]
    if len(names) == 1 and names[0].casefold() in classes:
        return classes[names[0].casefold()], []
    found = names[0] if len(names) == 1 else names or model_type
    problem = f"is {str(found)[:80]!r}; this version runs {', '.join(ARCHITECTURES)}"
    raise ModelFormatError(path, "architectures", problem, "it cannot run this model")


def refuse_what_is_not_here(path: Path, config: dict[str, Any]) -> None:
    """What would change every number of the model, and models/llama.py does not do."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):  # two names of one function
        problem = f"is {str(activation)[:40]!r}; this version has silu only"
        raise ModelFormatError(path, "hidden_act", problem, UNKNOWN)
    for name in EXPERTS:
        if config.get(name):
            problem = f"is {str(config[name])[:40]}: a mixture of experts, which this version does not run"
            raise ModelFormatError(path, name, problem, UNKNOWN)


def read_window(
    path: Path, config: dict[str, Any], architecture: str, n_layers: int, max_seq_len: int
) -> tuple[int, int]:
    """sliding_window and first_window_layer of ModelConfig; layer_types, where it is given, must say the same."""
    window, first = 0, 0
    if architecture == "mistral":
        window = read_sliding_window(path, config, MISTRAL_WINDOW, max_seq_len)
    elif architecture.startswith("qwen") and flag(path, config, "use_sliding_window"):
        window = read_sliding_window(path, config, QWEN_WINDOW, max_seq_len)
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


def read_sliding_window(path: Path, config: dict[str, Any], default: int, max_seq_len: int) -> int:
    """null says 0, all of the context, as does a window that never closes; no word says ``default``."""
    if "sliding_window" in config and config["sliding_window"] is None:
        return 0
    window = whole(path, {"sliding_window": default} | config, "sliding_window", 1 << 62)
    return 0 if window >= max_seq_len else window


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
