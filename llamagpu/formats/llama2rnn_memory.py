"""llama2Rnn's memory files (its -o), to and from the arrays of a memory_llama's state. Layout: docs/formats.md.

The file has no magic and no sizes: its length must be the one that this model implies. llama2Rnn takes keys and values
of dim numbers a position even where the model has fewer key heads, and reads past its own cache there; here they have
kv_dim. Where all heads have keys of their own, as in every model that llama2Rnn can train, that is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.config import ModelConfig
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats.atomic import atomic_write
from llamagpu.formats.mapped_file import MappedFile

REMEDY = "give the memory file of this model, or leave it out to begin anew"
PRIVATE = 0o600  # of a new file
LARGEST = np.float32(1e18)  # of any number in it: beyond, products overflow


@dataclass(frozen=True)
class Layout:
    """Shapes of the blocks, all float32. n_positions: of keys and values; the first 2M of them are used."""

    memory: tuple[int, int, int]
    cache: tuple[int, int, int]

    @classmethod
    def of(cls, config: ModelConfig) -> Layout:
        # the original needs seq_len >= 2M; a model with fewer positions still has 2M slots
        n_positions = max(config.max_seq_len, 2 * config.mem_len)
        layers = config.n_layers
        return cls((layers, config.mem_len, config.dim), (layers, n_positions, config.kv_dim))

    @property
    def memory_bytes(self) -> int:
        return 4 * self.memory[0] * self.memory[1] * self.memory[2]

    @property
    def cache_bytes(self) -> int:
        return 4 * self.cache[0] * self.cache[1] * self.cache[2]

    @property
    def file_bytes(self) -> int:
        return self.memory_bytes + 2 * self.cache_bytes + 4


def fits(path: str | Path, config: ModelConfig) -> bool:
    """Whether a file has a length that such a file of this model has, in either form."""
    return MappedFile(Path(path)).size in (Layout.of(config).file_bytes, Layout.of(config).memory_bytes)


def read_memory(path: str | Path, config: ModelConfig) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Arrays for ``load_state`` of a memory_llama, and its length: the file's position within a chunk.

    The older form of the file has the memory alone: then only "memory" is there, the length is 0, and ``load_state``
    makes keys and values from it, as at the beginning of a chunk. Raises ModelFormatError, UsageError.
    """
    path = Path(path)
    check_is_memory_model(config)
    file, layout = MappedFile(path), Layout.of(config)
    if file.size not in (layout.file_bytes, layout.memory_bytes):
        problem = f"is {file.size} bytes; for this model it is {layout.file_bytes} (or {layout.memory_bytes})"
        raise ModelFormatError(path, "length", problem, REMEDY)
    memory = checked(path, "memory", file.array(0, "<f4", layout.memory, "memory"))
    if file.size == layout.memory_bytes:
        return {"memory": memory}, 0
    position = int(file.array(file.size - 4, "<i4", (1,), "pos")[0])
    if not 0 <= position <= config.mem_len:
        raise ModelFormatError(path, "pos", f"is {position}, must be from 0 to {config.mem_len}", REMEDY)
    length = position % config.mem_len
    arrays = {"memory": memory}
    for i, name in enumerate(("keys", "values")):
        stored = file.array(layout.memory_bytes + i * layout.cache_bytes, "<f4", layout.cache, name)
        slots = checked(path, name, stored[:, : config.mem_len + length])
        by_head = slots.reshape(*slots.shape[:2], config.n_kv_heads, config.head_dim)
        arrays[name] = np.ascontiguousarray(by_head.transpose(0, 2, 1, 3))
    return arrays, length


def write_memory(path: str | Path, config: ModelConfig, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
    """Write what ``save_state`` of a memory_llama gave after ``length`` tokens, under a temporary name, then renamed.

    Position is ``length`` within its chunk, and M at a chunk's end: 0 is that of a memory that has seen nothing, where
    llama2Rnn begins anew (with a system prompt, and with a prompt from its first token on). Slots that hold nothing yet
    are zeros. Raises UsageError for a state that the format has no place for: keys and values of 8 bits.
    """
    check_is_memory_model(config)
    place = length % config.mem_len
    layout, n_slots = Layout.of(config), config.mem_len + place
    if "scales" in arrays:
        raise UsageError("llama2Rnn's memory files hold no keys and values of 8 bits: leave out --kv_bits 8")
    shape = (config.n_layers, config.n_kv_heads, n_slots, config.head_dim)
    found = {name: array.shape for name, array in arrays.items()}
    if found != {"memory": layout.memory, "keys": shape, "values": shape}:
        raise ValueError(f"arrays of {found} are no state of this model after {length} tokens")
    position = place or (config.mem_len if length else 0)
    path = Path(path).resolve()  # behind a link, the file that it names
    with atomic_write(path, PRIVATE) as file:
        file.write(np.ascontiguousarray(arrays["memory"], "<f4").data)
        for name in ("keys", "values"):
            slots = np.zeros(layout.cache, "<f4")
            slots[:, :n_slots] = arrays[name].transpose(0, 2, 1, 3).reshape(config.n_layers, n_slots, config.kv_dim)
            file.write(slots.data)
        file.write(np.int32(position).astype("<i4").tobytes())
        file.flush()
        try:
            back, place_back = read_memory(file.name, config)
        except ModelFormatError as error:
            raise UsageError(f"cannot write {path}: read back, its {error.field} {error.problem}") from None
        if place_back != place or not all(np.array_equal(back[name], array) for name, array in arrays.items()):
            raise UsageError(f"cannot write {path}: what was read back is not what was written")


def check_is_memory_model(config: ModelConfig) -> None:
    if not config.mem_len:
        raise UsageError(f"this model is a {config.architecture}: only a model with a memory has llama2Rnn's files")


def checked(path: Path, field: str, stored: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy in memory, of numbers."""
    array = np.asarray(stored, np.float32).copy()
    if not (np.abs(array) < LARGEST).all():  # false for NaN, too
        raise ModelFormatError(path, field, "holds what is no number, or vast", REMEDY)
    return array
