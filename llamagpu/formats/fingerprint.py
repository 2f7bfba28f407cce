"""By what a model is known again, whatever its file is called: a hash over its config and samples of its weights.

A file of 40 GB is mapped and not read, so of each array are taken its type, its shape, and three pieces of at most
4096 bytes, of its beginning, middle and end; vectors are taken whole. Matrices that are repacked when they are used
(``Deferred``) count with name, shape and kind alone: the norms, which are of no two trained models alike, tell those.
A model and what ``convert`` made of it may have different fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix

SAMPLE_BYTES = 4096


def fingerprint(checkpoint: Checkpoint) -> str:
    """64 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(checkpoint.config.to_dict(), sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        kind = tensor.kind if isinstance(tensor, Deferred) else type(tensor).__name__
        digest.update(f"\n{name} {kind} {tuple(tensor.shape)}".encode())
        for array in arrays_of(tensor):
            digest.update(f" {array.dtype} {array.shape}".encode())
            for sample in samples(array):
                digest.update(sample)
    return digest.hexdigest()


def arrays_of(tensor: Tensor) -> list[NDArray[Any]]:
    if isinstance(tensor, np.ndarray):
        return [tensor]
    if isinstance(tensor, Int8Matrix):
        return [tensor.q, tensor.scales]
    if isinstance(tensor, AffineQuant):
        return [tensor.q, tensor.params]
    return []  # to be made, or random and told by its shape


def samples(array: NDArray[Any]) -> Iterator[bytes]:
    n = array.size if array.ndim == 1 else SAMPLE_BYTES // array.dtype.itemsize
    for start in (0,) if array.size <= n else (0, (array.size - n) // 2, array.size - n):
        yield array.flat[start : start + n].tobytes()
