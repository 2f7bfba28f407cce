"""RWKV's own checkpoints (.pth), as BlinkDL publishes them: a dict of tensors by name, saved by torch.save.

There is no config: names and shapes say what it is (``rwkv_names.py``).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.errors import ModelFormatError, printable
from llamagpu.formats.rwkv_names import RwkvFile, rwkv_checkpoint
from llamagpu.formats.torch_zip import TensorRef, TorchFile

FLOATS = (np.dtype("<f4"), np.dtype("<f2"), np.dtype(ml_dtypes.bfloat16))
EMBEDDING, FIRST_NORM = "emb.weight", "blocks.0.ln1.weight"
FETCH = "fetch the checkpoint again, as RWKV publishes it"


def knows(root: Any) -> bool:
    """Whether names are those of an RWKV."""
    return isinstance(root, dict) and EMBEDDING in root and FIRST_NORM in root


def read(file: TorchFile) -> Checkpoint:
    """The model, its tensors views of the file. Raises ModelFormatError."""
    tensors: dict[str, Tensor] = {}
    bytes_left = file.members.total_bytes()
    for key, tensor in file.root.items():
        name = printable(str(key)[:80])
        if not isinstance(key, str) or not isinstance(tensor, TensorRef):
            raise ModelFormatError(file.path, name, "is no tensor with a name", FETCH)
        if tensor.storage.dtype not in FLOATS or not all(tensor.shape):
            problem = f"is of {tensor.storage.dtype} and shape {list(tensor.shape)}, as no weight is"
            raise ModelFormatError(file.path, name, problem, FETCH)
        tensors[key] = file.array(tensor, name)
        bytes_left -= tensors[key].nbytes
        if bytes_left < 0:  # of what is small copies are made, which should not be more than there is
            raise ModelFormatError(file.path, name, "shares its numbers with another tensor", FETCH)
    return rwkv_checkpoint(RwkvFile(file.path, tensors, processed=False), "RWKV checkpoint")
