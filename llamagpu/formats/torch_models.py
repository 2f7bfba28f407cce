"""Files that torch.save wrote, opened once and given to the reader that knows what was saved, by its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from llamagpu.checkpoint import Checkpoint
from llamagpu.formats import meta, micro_rwkv, rwkv_pth
from llamagpu.formats.torch_zip import LEGACY_MAGIC, ZIP_MAGIC, TorchFile


class TorchReader(Protocol):
    """What a reader of such files offers. Adding one is adding a file, and its name below."""

    def knows(self, root: Any) -> bool:
        """Whether the object that was saved is of this reader's kind, whatever else may be wrong with it."""
        ...

    def read(self, file: TorchFile) -> Checkpoint:
        """The model, its tensors views of the file. Raises ModelFormatError."""
        ...


# meta takes the rest, and says why it is no model of Meta's
READERS: tuple[TorchReader, ...] = (micro_rwkv, rwkv_pth, meta)


def sniff(head: bytes, size: int) -> bool:
    """Whether the first bytes are those of a zip, or of torch's old format, which is refused by name."""
    return head.startswith((ZIP_MAGIC, LEGACY_MAGIC))


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a file of any of these kinds. Raises ModelFormatError."""
    if meta.is_shard(path):
        return meta.open_checkpoint(path)  # with those beside it
    file = TorchFile(path)
    return next(reader for reader in READERS if reader.knows(file.root)).read(file)
