"""How the next token is chosen: the parameters, and the random numbers behind them. Algorithm: docs/sampling.md."""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass, replace
from typing import Any

from llamagpu.errors import UsageError

MASK64 = (1 << 64) - 1
WEIGHT_BITS = 40  # the weight of the most likely token is 2^40; one of 2^-40 its probability gets 0
LARGEST_INVERSE_TEMPERATURE = 1e30
STEPS = ("top_k", "top_p", "min_p", "temperature")
DEFAULT_ORDER = ",".join(STEPS)  # llama.cpp's
TEMPERATURE_FIRST = "temperature,top_k,top_p,min_p"
UNREACHED = 1 << 24
LONGEST_SHOWN = 80
DAMAGED_LOGITS = "the model computed logits that are not numbers: its weights are damaged"


@dataclass(frozen=True)
class SamplingParams:
    """Order of work: repetition penalty, then what ``sampler_order`` names (as in llama.cpp), then the draw.

    temperature: 0 is greedy; the filters before it see the distribution at temperature 1, those after it at this one.
    top_k: keep the k most likely tokens; 0 keeps all. top_p: keep the fewest most likely tokens that together have
    this probability; 1 keeps all. min_p: drop tokens below this fraction of the best one's probability; 0 keeps all.
    repetition_penalty: logits of tokens already in the context are divided by it where positive and multiplied
    where negative; 1 changes nothing, above 1 discourages.
    seed: same seed and logits, same tokens, on every machine; None draws a fresh one.
    sampler_order: the four steps, each once, with commas between them (or semicolons, as llama.cpp has them).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    seed: int | None = None
    sampler_order: str = DEFAULT_ORDER

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 1e6)
        check_whole("top_k", self.top_k, 0, 1 << 31)
        check_number("top_p", self.top_p, 0, 1)
        check_number("min_p", self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, MASK64)
        steps = re.split(r"\s*[,;]\s*", self.sampler_order.strip()) if isinstance(self.sampler_order, str) else []
        if sorted(steps) != sorted(STEPS):
            named = f"{', '.join(STEPS[:-1])} and {STEPS[-1]}"
            raise UsageError(f"sampler_order must name {named}, each once, not {shown(self.sampler_order)}")
        object.__setattr__(self, "sampler_order", ",".join(steps))

    @property
    def order(self) -> tuple[str, ...]:
        """The steps, the first one first."""
        return tuple(self.sampler_order.split(","))

    def with_seed(self) -> SamplingParams:
        """The same with a fresh 32-bit seed where there was none, so that it can be told to the user."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(32))


def asked_for(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    seed: int | None,
    sampler_order: str | None = None,
) -> dict[str, Any]:
    """Those that are given, by name, for ``dataclasses.replace``. Raises UsageError for values out of range."""
    named: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    named |= {"sampler_order": sampler_order}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    given["repetition_penalty"] = repetition_penalty
    SamplingParams(**given)
    return given


def check_number(name: str, value: object, smallest: float, largest: float) -> None:
    """Raises UsageError unless ``value`` is a finite number in [smallest, largest]."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not smallest <= value <= largest:  # type: ignore[operator]
        raise UsageError(f"{name} must be a number from {smallest:g} to {largest:g}, not {shown(value)}")


def check_whole(name: str, value: object, smallest: int, largest: int | None = None) -> None:
    """Raises UsageError unless ``value`` is a whole number in [smallest, largest]."""
    ok = isinstance(value, int) and not isinstance(value, bool)
    if not ok or value < smallest or (largest is not None and value > largest):  # type: ignore[operator]
        # a limit that nobody reaches explains nothing, unless it is the limit that was passed
        told = largest is not None and (largest < UNREACHED or (ok and value > largest))  # type: ignore[operator]
        limits = f"from {smallest} to {largest}" if told else f"from {smallest}"
        raise UsageError(f"{name} must be a whole number {limits}, not {shown(value)}")


def check_switch(name: str, value: object) -> None:
    """Raises UsageError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False, not {shown(value)}")


def check_function(name: str, value: object) -> None:
    """Raises UsageError unless ``value`` can be called."""
    if not callable(value):
        raise UsageError(f"{name} must be a function, not {shown(value)}")


def shown(value: object) -> str:
    """A wrong value as Python writes it, not too long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def random_u64(seed: int, step: int) -> int:
    """Uniform 64-bit number of draw ``step`` (from 0): SplitMix64 (Steele, Lea, Flood 2014), entered at any step.

    A counter instead of a hidden state, so that a draw can be repeated, resumed, or made by any thread of a GPU.
    """
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)
