"""Architectures: one file each, written once over the operations of ``backends/protocol.py``."""

from __future__ import annotations

from collections.abc import Callable

from llamagpu.backends.protocol import Backend
from llamagpu.checkpoint import Checkpoint
from llamagpu.config import MEMORY_LLAMA
from llamagpu.models.base import Model, State, StateOptions
from llamagpu.models.llama import Llama
from llamagpu.models.memory_llama import MEMORY_UPDATES, MemoryLlama


def load_model(
    checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None] = lambda n: None
) -> Model:
    """The model of a checkpoint's architecture, its weights on the backend."""
    architecture = MemoryLlama if checkpoint.config.architecture == MEMORY_LLAMA else Llama
    return architecture(checkpoint, backend, on_loaded_bytes)


__all__ = ["MEMORY_UPDATES", "Model", "State", "StateOptions", "load_model"]
