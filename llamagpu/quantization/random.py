"""A matrix of random weights that no file holds, made where it is needed: to measure speed, not to say anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.quantization.affine import AffineQuant, n_groups, tile_grid

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class RandomMatrix:
    """[out_features, in_features] of 4 or 8 bits in groups (scales float16, in kernel layout), or of float16 (16).

    Bytes are those of one random block of a megabyte, again and again from a place that ``seed`` gives; weights are
    about 1 / sqrt(in_features), so activations neither vanish nor overflow.
    """

    out_features: int
    in_features: int
    bits: int = 4
    group_size: int = 128
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def nbytes(self) -> int:
        if self.bits == 16:
            return 2 * self.out_features * self.in_features
        n_tiles, n_blocks = tile_grid(self.shape)
        return n_tiles * (n_blocks * 256 * self.bits + 64 * n_groups(self.in_features, self.group_size))

    def block(self) -> NDArray[np.uint8]:
        """The bytes that are repeated: of float16 weights, or of q."""
        random = np.random.default_rng(self.seed)
        if self.bits == 16:
            values = random.standard_normal(BLOCK_BYTES // 2, np.float32) / np.float32(self.in_features**0.5)
            return values.astype(np.float16).view(np.uint8)
        return random.integers(0, 256, BLOCK_BYTES, np.uint8)

    def params(self) -> NDArray[np.float16]:
        """Scale and zero of every group: all the same."""
        n_tiles, _ = tile_grid(self.shape)
        middle = 2 ** (self.bits - 1)
        pair = np.asarray([1 / (middle * self.in_features**0.5), middle], np.float16)
        return np.ascontiguousarray(
            np.broadcast_to(pair, (n_tiles, n_groups(self.in_features, self.group_size), 8, 2, 2))
        )

    def materialize(self) -> AffineQuant | NDArray[np.float16]:
        """The same matrix in host memory."""
        if self.bits == 16:
            values: NDArray[Any] = np.resize(self.block().view(np.float16), self.shape)
            return values
        n_tiles, n_blocks = tile_grid(self.shape)
        q = np.resize(self.block(), (n_tiles, n_blocks, 256 * self.bits))
        return AffineQuant(self.bits, min(self.group_size, self.in_features), self.shape, q, self.params())
