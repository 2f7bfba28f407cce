"""How a model is opened and where it runs: what ``load`` takes beside the model, in one value that can be kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llamagpu.devices import OnWork
from llamagpu.errors import UsageError
from llamagpu.models.window import DEFAULT_SINKS, MOST
from llamagpu.sampling import check_function, check_switch, check_whole, shown


def say_nothing(title: str, n: int, total: int) -> None:
    """What is told of work where nobody asked."""


@dataclass(frozen=True)
class LoadOptions:
    """What ``load`` takes beside the model. Raises UsageError for a value that fits no model.

    device: "auto", "cuda", "cuda:N" or "cpu". tokenizer: a tokenizer file, where the model's own is not wanted or not
    found. context: positions to keep, at most and by default what the model was trained for. on_work: called as weights
    are loaded (in bytes) and kernels compiled. faithful: do as the program that the file comes from does where that
    differs (see Checkpoint.quirks), which only the CPU can. kv_bits: 8 keeps keys and values as whole numbers with a
    scale per head and position, half the memory of 16. window: keep the first ``sinks`` and the last ``window`` tokens
    alone, so that a text has no end (docs/endless.md); 0: keep all. memory_update: whether a model with a memory renews
    it after each "chunk", as it was trained, or after each "token". recurrent: run the recurrent part of a micro_rwkv
    alone (docs/recurrent.md).
    """

    device: str = "auto"
    tokenizer: str | Path | None = None
    context: int | None = None
    on_work: OnWork = field(default=say_nothing, repr=False)
    faithful: bool = False
    kv_bits: int = 16
    window: int = 0
    sinks: int = DEFAULT_SINKS
    memory_update: str = "chunk"
    recurrent: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.device, str):
            raise UsageError(f"device must be auto, cuda, cuda:N or cpu, not {shown(self.device)}")
        if self.tokenizer is not None:
            check_path("tokenizer", self.tokenizer)
        if self.context is not None:
            check_whole("context", self.context, 1)
        check_function("on_work", self.on_work)
        check_switch("faithful", self.faithful)
        if type(self.kv_bits) is not int or self.kv_bits not in (8, 16):
            raise UsageError(f"kv_bits must be 8 or 16, not {shown(self.kv_bits)}")
        if type(self.window) is not int or self.window != 0:
            check_whole("window", self.window, 1, MOST)
        check_whole("sinks", self.sinks, 0, MOST)
        if not isinstance(self.memory_update, str):
            raise UsageError(f"memory_update must be chunk or token, not {shown(self.memory_update)}")
        check_switch("recurrent", self.recurrent)

    def replaced_by(self, options: LoadOptions | None) -> LoadOptions:
        """``options`` where they are given. Raises UsageError where some of these are given too."""
        if options is None:
            return self
        if not isinstance(options, LoadOptions):
            raise UsageError(f"options must be LoadOptions, not {shown(options)}")
        both = [name for name, value in self.given().items() if value != getattr(options, name)]
        if both:
            raise UsageError(f"{both[0]} is given beside options: put it into them (dataclasses.replace)")
        return options

    def given(self) -> dict[str, Any]:
        """Those that differ from the default, by name."""
        named = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: value for name, value in named.items() if value != getattr(DEFAULTS, name)}


def check_path(name: str, value: object) -> None:
    """Raises UsageError unless ``value`` can be the path of a file."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise UsageError(f"{name} must be a path or a name, not {shown(value)}")


DEFAULTS = LoadOptions()
