"""rope_scaling and rope_parameters of a config.json, to the numbers of ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamagpu.errors import ModelFormatError
from llamagpu.rope_scaling import linear_factors, llama3_factors, yarn_attention_factor, yarn_factors

DEFAULT_THETA = 10000.0
ORIGINAL = "original_max_position_embeddings"
# What each kind may hold beside its name. What is not here might change the model and is refused by name.
KNOWN_KEYS = {
    "default": {"factor"},  # which it does not look at
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
             "mscale_all_dim", "truncate"},
}  # fmt: skip
COMMON_KEYS = {"type", "rope_type", "rope_theta", "partial_rotary_factor", "finetuned"}


def read_rope(path: Path, config: dict[str, Any], head_dim: int) -> tuple[dict[str, Any], list[str]]:
    """rope_theta, rope_factors and rope_attention_factor of ModelConfig, max_seq_len where this kind changes it, and
    what a user should know, a line each. config: with max_position_embeddings. Raises ModelFormatError.

    Files of transformers 5 hold rope_parameters, theta inside; earlier ones rope_theta and rope_scaling.
    """
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    parameters = config.get(field)
    if parameters is None:
        parameters = {}

    def refuse(name: str, problem: str) -> ModelFormatError:
        return ModelFormatError(
            path, f"{field}.{name}"[:80], problem, "this version cannot run the model as it is meant"
        )

    if not isinstance(parameters, dict):
        raise ModelFormatError(path, field, "is no object of names and values", "download config.json again")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in KNOWN_KEYS:
        raise refuse("rope_type", f"is {str(kind)[:40]!r}; this version knows {', '.join(KNOWN_KEYS)}")
    given = {name: value for name, value in parameters.items() if value is not None}
    for name in given:
        if name not in KNOWN_KEYS[kind] | COMMON_KEYS:
            raise refuse(name, f"is a setting that this version does not know for the kind {kind!r}")
    for place, values in (("config", config), (field, given)):
        share = values.get("partial_rotary_factor")
        if share is not None and not (type(share) in (int, float) and share == 1):
            problem = f"is {str(share)[:40]}; this version turns whole heads"
            raise ModelFormatError(path, f"{place}.partial_rotary_factor", problem, "it cannot run this model")

    theta = given.get("rope_theta", config.get("rope_theta"))
    theta = DEFAULT_THETA if theta is None else theta
    out: dict[str, Any] = {"rope_theta": theta}
    if kind == "default":
        return out, []
    positions, notes = config["max_position_embeddings"], []
    stated = next(filter(None, (config.get(ORIGINAL), given.get(ORIGINAL))), None)
    original = given[ORIGINAL] = positions if stated is None else stated
    if kind == "yarn" and "factor" not in given and type(stated) is int and stated > 0:
        given["factor"] = positions / stated
    if "factor" not in given:
        raise refuse("factor", "is missing")
    if stated is None and kind != "linear":
        notes.append(f"config.json has no {ORIGINAL}: max_position_embeddings = {positions} is taken for it")
    try:
        out["rope_factors"] = FACTORS[kind](head_dim, theta, given)
        if kind == "yarn":
            settings = {name: given[name] for name in ("mscale", "mscale_all_dim") if name in given}
            factor = given.get("attention_factor", yarn_attention_factor(given["factor"], **settings))
            out["rope_attention_factor"] = factor
            # what it is stretched to, whether or not max_position_embeddings was changed with it
            out["max_seq_len"] = math.floor(given["factor"] * original)
            if out["max_seq_len"] < positions:
                notes.append(
                    f"YaRN stretches {original} positions to {out['max_seq_len']}: max_position_embeddings is"
                    f" {positions}, which is more than it was made for"
                )
    except KeyError as error:
        raise refuse(str(error.args[0]), "is missing") from None
    except ValueError as error:
        name, _, problem = str(error).partition(" ")
        raise refuse(name, problem) from None
    return out, notes


def linear(head_dim: int, theta: float, given: dict[str, Any]) -> tuple[float, ...]:
    return linear_factors(head_dim, given["factor"])


def llama3(head_dim: int, theta: float, given: dict[str, Any]) -> tuple[float, ...]:
    return llama3_factors(
        head_dim, theta, given["factor"], given["low_freq_factor"], given["high_freq_factor"],
        given["original_max_position_embeddings"],
    )  # fmt: skip


def yarn(head_dim: int, theta: float, given: dict[str, Any]) -> tuple[float, ...]:
    truncate = given.get("truncate", True)
    if type(truncate) is not bool:
        raise ValueError("truncate must be true or false")
    # 0 means the default, as it does in transformers
    return yarn_factors(
        head_dim, theta, given["factor"], given["original_max_position_embeddings"],
        given.get("beta_fast") or 32, given.get("beta_slow") or 1, truncate,
    )  # fmt: skip


FACTORS: dict[str, Callable[[int, float, dict[str, Any]], tuple[float, ...]]] = {
    "linear": linear,
    "llama3": llama3,
    "yarn": yarn,
}
