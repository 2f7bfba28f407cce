"""A matrix that is put together from a file's pieces when it is asked for, so that opening a file stays instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization.affine import AffineQuant


@dataclass(frozen=True)
class Deferred:
    """[out_features, in_features]. nbytes: as the file holds it. kind: what people call its type, for `info`.

    held_nbytes: what it takes in memory once it is made, where that differs.
    make: reads and repacks; it raises ModelFormatError where what it reads makes no sense. Sizes and offsets have been
    checked before: only the contents are left.
    """

    shape: tuple[int, int]
    nbytes: int
    kind: str
    make: Callable[[], AffineQuant | NDArray[Any]]
    held_nbytes: int = 0

    def materialize(self) -> AffineQuant | NDArray[np.float32]:
        made = self.make()
        assert made.shape == self.shape
        return made
