"""Architectures: one file each, written once over the operations of ``backends/protocol.py``."""

from __future__ import annotations

from collections.abc import Callable

from llamagpu.backends.protocol import Backend
from llamagpu.checkpoint import Checkpoint
from llamagpu.config import MEMORY_LLAMA
from llamagpu.models.base import Model, State, StateOptions
from llamagpu.models.llama import Llama
from llamagpu.models.memory_llama import MEMORY_UPDATES, MemoryLlama
from llamagpu.models.rwkv4 import RWKV4
from llamagpu.models.rwkv5 import RWKV5
from llamagpu.models.rwkv6 import RWKV6
from llamagpu.models.rwkv7 import RWKV7

# The others are Llamas.
ARCHITECTURES: dict[str, Callable[[Checkpoint, Backend, Callable[[int], None]], Model]] = {
    MEMORY_LLAMA: MemoryLlama,
    "rwkv4": RWKV4,
    "rwkv5": RWKV5,
    "rwkv6": RWKV6,
    "rwkv7": RWKV7,
}


def load_model(
    checkpoint: Checkpoint, backend: Backend, on_loaded_bytes: Callable[[int], None] = lambda n: None
) -> Model:
    """The model of a checkpoint's architecture, its weights on the backend."""
    architecture = ARCHITECTURES.get(checkpoint.config.architecture, Llama)
    return architecture(checkpoint, backend, on_loaded_bytes)


__all__ = ["MEMORY_UPDATES", "Model", "State", "StateOptions", "load_model"]
