"""Which models can forget: a window with sinks (backends/cpu/attention_window.py) in place of a cache that fills."""

from __future__ import annotations

from llamagpu.config import MICRO_RWKV, ModelConfig
from llamagpu.errors import UsageError
from llamagpu.option_names import option

ORDINARY = ("llama", "mistral", "qwen2", "qwen3")
DEFAULT_SINKS = 4  # what StreamingLLM found to be enough
MOST = 1 << 24


def keeps_every_token(config: ModelConfig) -> bool:
    """Whether it is an ordinary model, that ends with its context unless it has a window."""
    return config.architecture in ORDINARY


def check_window(config: ModelConfig, window: int, sinks: int, kv_bits: int = 16) -> None:
    """Whether this model can run in a window of so many tokens behind so many sinks. Raises UsageError."""
    for name, value, smallest in (("window", window, 1), ("sinks", sinks, 0)):
        if type(value) is not int or not smallest <= value <= MOST:
            raise UsageError(f"{name} must be a whole number from {smallest}, not {value}")
    if not keeps_every_token(config):
        what = "reads its text anew for each" if config.architecture == MICRO_RWKV else "has a memory of its own"
        raise UsageError(f"{option('window')} is for models that keep every token: {config.architecture} {what}")
    if config.sliding_window:
        raise UsageError(
            f"{option('window')} does not go with this model's own sliding windows of {config.sliding_window} tokens"
            " (some layers would forget twice): run it without"
        )
    if kv_bits != 16:
        raise UsageError(
            f"{option('kv_bits', kv_bits)} does not go with {option('window')}: its keys are turned anew at every token"
        )
    if window + sinks > config.max_seq_len:
        raise UsageError(
            f"a window of {window} and {sinks} sinks are {window + sinks} positions, the model was trained for"
            f" {config.max_seq_len}: give a smaller {option('window')}"
        )


def window_and_sinks(window: int | None, sinks: int | None) -> tuple[int, int]:
    """What ``load`` takes, of flags that may not be given. Raises UsageError."""
    if window is None:
        if sinks is not None:
            raise UsageError("--sinks is for --window, which is not given")
        return 0, DEFAULT_SINKS
    if window < 1:
        raise UsageError(f"window must be a whole number from 1, not {window}")
    return window, DEFAULT_SINKS if sinks is None else sinks
