"""Architectures: one file each, written once over the operations of ``backends/protocol.py``."""

from __future__ import annotations

from collections.abc import Callable

from llamagpu.backends.protocol import Backend
from llamagpu.checkpoint import Checkpoint
from llamagpu.config import MEMORY_LLAMA, MICRO_RWKV, ModelConfig
from llamagpu.errors import UsageError
from llamagpu.models import micro_rwkv, micro_rwkv_recurrent
from llamagpu.models.base import Model, State, StateOptions
from llamagpu.models.llama import Llama
from llamagpu.models.memory_llama import MEMORY_UPDATES, MemoryLlama
from llamagpu.models.micro_rwkv import MicroRWKV
from llamagpu.models.micro_rwkv_recurrent import RecurrentMicroRWKV
from llamagpu.models.rwkv4 import RWKV4
from llamagpu.models.rwkv5 import RWKV5
from llamagpu.models.rwkv6 import RWKV6
from llamagpu.models.rwkv7 import RWKV7
from llamagpu.option_names import option

# The others are Llamas.
ARCHITECTURES: dict[str, Callable[[Checkpoint, Backend, Callable[[int], None]], Model]] = {
    MEMORY_LLAMA: MemoryLlama,
    MICRO_RWKV: MicroRWKV,
    "rwkv4": RWKV4,
    "rwkv5.0": RWKV5,
    "rwkv5": RWKV5,
    "rwkv6": RWKV6,
    "rwkv7": RWKV7,
}


def load_model(
    checkpoint: Checkpoint,
    backend: Backend,
    on_loaded_bytes: Callable[[int], None] = lambda n: None,
    recurrent: bool = False,
) -> Model:
    """The model of a checkpoint's architecture, its weights on the backend. recurrent: see ``check_recurrent``."""
    name = checkpoint.config.architecture
    architecture = RecurrentMicroRWKV if recurrent and name == MICRO_RWKV else ARCHITECTURES.get(name, Llama)
    return architecture(checkpoint, backend, on_loaded_bytes)


def check_recurrent(config: ModelConfig, recurrent: bool) -> None:
    """Whether a model can be run by its recurrent part alone. Raises UsageError."""
    if recurrent and config.architecture != MICRO_RWKV:
        what = f"runs the recurrent part of a {MICRO_RWKV}, and this is a {config.architecture}"
        raise UsageError(f"{option('recurrent')} {what}")


def notes_of(config: ModelConfig, recurrent: bool) -> tuple[str, ...]:
    """What a user should be told of how a model is run, one line each."""
    if config.architecture != MICRO_RWKV:
        return ()
    return (micro_rwkv_recurrent.NOTE,) if recurrent else (micro_rwkv.NOTE,)


__all__ = ["MEMORY_UPDATES", "Model", "State", "StateOptions", "check_recurrent", "load_model", "notes_of"]
