"""llamagpu: run open language models on your own GPU, fast, with no PyTorch and no compiler.

    import llamagpu
    llm = llamagpu.load("demo")
    for piece in llm.generate("Once upon a time", max_tokens=64, temperature=0):
        print(piece, end="", flush=True)

The names below are imported when first used, so that ``import llamagpu`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llamagpu.privacy import turn_off_usage_reports

if TYPE_CHECKING:
    from llamagpu.chat import Chat
    from llamagpu.errors import (
        ContextFullError,
        DeviceError,
        HubError,
        LlamaGPUError,
        ModelFormatError,
        OutOfMemoryError,
        TemplateError,
        UsageError,
    )
    from llamagpu.generation import Answer
    from llamagpu.llm import LLM, load
    from llamagpu.load_options import LoadOptions
    from llamagpu.sampling import SamplingParams
    from llamagpu.session import Session
    from llamagpu.watched_file import ModelChangedError

turn_off_usage_reports()  # before any library is imported that might read the settings

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Answer",
    "Chat",
    "ContextFullError",
    "DeviceError",
    "HubError",
    "LlamaGPUError",
    "LoadOptions",
    "ModelChangedError",
    "ModelFormatError",
    "OutOfMemoryError",
    "SamplingParams",
    "Session",
    "TemplateError",
    "UsageError",
    "load",
]

_HOME = {
    "LLM": "llm",
    "load": "llm",
    "LoadOptions": "load_options",
    "SamplingParams": "sampling",
    "Session": "session",
    "Chat": "chat",
    "Answer": "generation",
    "ContextFullError": "errors",
    "DeviceError": "errors",
    "HubError": "errors",
    "LlamaGPUError": "errors",
    "ModelChangedError": "watched_file",
    "OutOfMemoryError": "errors",
    "ModelFormatError": "errors",
    "TemplateError": "errors",
    "UsageError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names, those that are not imported yet too."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
