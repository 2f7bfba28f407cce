"""Vectors on their way from one kernel to the next, in the form that the next one reads (kernels/activations.cuh).

A kernel of a decode step writes for its reader: float32 rows, or halves in bfloat16 for quantised weights, permuted for
act-order, with the weight of the RMSNorm between them multiplied in. So a producer is launched once its reader is
known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamagpu.backends.cuda.device import DeviceArray


@dataclass(frozen=True)
class Target:
    """Where a kernel writes: rows float32 [n, padded(width)] or split uint16 [n, 2 * tiled(width)], the other null.

    place: int32 [width], null for order. norm: float32 [width], multiplied in, null for none. squares: float32
    [n * blocks], sums of squares before that, null for none.
    """

    rows: DeviceArray | None = None
    split: DeviceArray | None = None
    place: DeviceArray | None = None
    norm: DeviceArray | None = None
    squares: DeviceArray | None = None


@dataclass(frozen=True)
class Vectors:
    """n vectors as a kernel reads them. n_squares per vector, null where there is no norm before the product."""

    data: DeviceArray
    squares: DeviceArray | None = None
    n_squares: int = 0
    eps: float = 0.0

    def last(self, n: int) -> Vectors:
        """The last n of them."""
        first = self.data.shape[0] - n
        squares = self.squares[first * self.n_squares :] if self.squares is not None else None
        return Vectors(self.data[first:], squares, self.n_squares, self.eps)


@dataclass(frozen=True)
class Coming:
    """n vectors [n, width] that ``write`` will put where their reader wants them."""

    n: int
    width: int
    write: Callable[[Target], None]


class Residual:
    """The residual stream x [n, padded(width)], and what is yet to be launched to complete it.

    write: launches that, for a reader behind a norm; n_squares: how many sums of squares it leaves per vector. plain:
    launches it, for anybody: returns what is still to be added to x (or None), and ``bias`` with it where there is one.
    """

    def __init__(
        self,
        x: DeviceArray,
        n: int,
        width: int,
        n_squares: int,
        write: Callable[[Target], None],
        plain: Callable[[], DeviceArray | None],
        bias: DeviceArray | None = None,
    ) -> None:
        self.x, self.n, self.width = x, n, width
        self.n_squares, self.write, self.plain, self.bias = n_squares, write, plain, bias
