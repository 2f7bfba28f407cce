"""The operations of ``backends/recurrent.py`` as launches. Up to FEW_COLUMNS tokens take the fused kernels.

A layer of RWKV-7 is eight launches: shift and mix; products; thin products; wkv; output; shift and mix; key; value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.backends.cuda import launches, recurrent_launches, wkv_launches
from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.matrix import ROW_PADDING, DeviceMatrix, pad_rows, padded, stored, tiled, upload
from llamagpu.backends.cuda.matrix_group import MatrixGroup, upload_group
from llamagpu.backends.cuda.recurrent_launches import NormKind
from llamagpu.backends.cuda.recurrent_state import CUDARecurrentState
from llamagpu.backends.cuda.vectors import Coming, Target, Vectors
from llamagpu.backends.recurrent import Activation, Segment
from llamagpu.checkpoint import Tensor
from llamagpu.config import ModelConfig
from llamagpu.errors import UsageError
from llamagpu.option_names import option
from llamagpu.quantization import RandomMatrix

FEW_COLUMNS = 8  # up to here one pass over the weights does; above, tensor cores
Norm = tuple[DeviceArray, DeviceArray]


@dataclass(frozen=True)
class Bundle:
    """Arrays [n, padded(width)] one after the other in ``rows``; split: the same as uint16 [n, 2 * tiled(width)], for
    quantised weights, where somebody reads them so."""

    n: int
    widths: tuple[int, ...]
    rows: DeviceArray
    split: DeviceArray | None = None

    def __getitem__(self, i: int) -> DeviceArray:
        first, width = sum(map(padded, self.widths[:i])), padded(self.widths[i])
        return self.rows.reshape(-1)[self.n * first : self.n * (first + width)].reshape(self.n, width)

    def vectors(self, i: int, w: DeviceMatrix) -> Vectors:
        """One of them as the matrix reads it."""
        if not w.tiled:
            return Vectors(self[i])
        assert self.split is not None
        first, width = sum(2 * tiled(width) for width in self.widths[:i]), 2 * tiled(self.widths[i])
        split = self.split.reshape(-1)[self.n * first : self.n * (first + width)]
        return Vectors(split.reshape(self.n, width))


@dataclass(frozen=True)
class DownMatrix:
    """A matrix of floats, and the same transposed, of which ``linear_sparse`` reads a part."""

    dense: DeviceMatrix
    transposed: DeviceMatrix

    @property
    def nbytes(self) -> int:
        """Of one: a step reads no more."""
        return self.dense.nbytes


class CUDARecurrentOps:
    """To be inherited by the backend, which has what is declared here."""

    device: Device
    has_tiles: bool  # whether any matrix is quantised

    def weight(self, tensor: Tensor) -> DeviceMatrix | DeviceArray:
        raise NotImplementedError

    def scratch(self, name: str, n: int, width: int, dtype: DTypeLike = np.float32) -> DeviceArray:
        raise NotImplementedError

    def target(self, name: str, n: int, width: int, reader: DeviceMatrix | None) -> Target:
        raise NotImplementedError

    def read(self, name: str, x: Coming, reader: DeviceMatrix) -> Vectors:
        raise NotImplementedError

    def product(
        self, x: DeviceArray, n: int, w: DeviceMatrix, y: DeviceArray, y_width: int, first: int = 0, step: int = 1
    ) -> None:
        raise NotImplementedError

    def recurrent_state(self, config: ModelConfig) -> CUDARecurrentState:
        if config.architecture != "rwkv4" and config.head_dim > wkv_launches.WIDEST_WKV_HEAD:
            raise UsageError(
                f"heads of {config.head_dim} elements are too wide for the GPU kernels"
                f" (at most {wkv_launches.WIDEST_WKV_HEAD}): {option('device', 'cpu')} runs this model"
            )
        return CUDARecurrentState(self.device, config)

    def save_recurrent(self, state: CUDARecurrentState) -> dict[str, NDArray[np.float32]]:
        return state.save()

    def load_recurrent(self, state: CUDARecurrentState, arrays: Mapping[str, NDArray[Any]]) -> None:
        state.load(arrays)

    def mixes(self, vectors: Sequence[NDArray[np.float32]]) -> DeviceArray:
        return self.device.upload(pad_rows(np.stack(vectors)))

    def group(self, segments: Sequence[Segment], widths: Sequence[int]) -> MatrixGroup:
        group = upload_group(self.device, segments, widths)
        self.has_tiles |= any(launch.tiled for launch in group.launches)
        return group

    def down_matrix(self, tensor: Tensor) -> DeviceMatrix | DownMatrix:
        """LLAMAGPU_SPARSE_FFN=1 keeps matrices of floats twice, so that decode may skip rows that meet a zero."""
        held = stored(tensor)
        dense = upload(self.device, held)
        self.has_tiles |= dense.tiled
        if dense.tiled or os.environ.get("LLAMAGPU_SPARSE_FFN", "0") != "1":
            return dense
        rows = held.materialize() if isinstance(held, RandomMatrix) else held
        assert isinstance(rows, np.ndarray)
        return DownMatrix(dense, upload(self.device, np.ascontiguousarray(rows.T)))

    def embedding_layernorm(
        self, table: DeviceMatrix, tokens: Any, state: CUDARecurrentState, norm: Norm, eps: float
    ) -> DeviceArray:
        n, device, width = len(tokens), self.device, table.in_features
        if isinstance(tokens, Sequence):
            device.copy(state.tokens[:n], np.asarray(tokens, np.int32))
            device.copy(state.position, np.asarray([state.position_of(state.length)], np.int32))
        x = self.scratch("x", n, width)
        launches.embedding(device, table, state.tokens, n, x, Target())
        recurrent_launches.layernorm(device, x, *norm, width, eps, n, Target(rows=x))
        return x

    def shift_mix(
        self,
        x: DeviceArray,
        norm: Norm,
        eps: float,
        mixes: DeviceArray | Bundle,
        state: CUDARecurrentState,
        layer: int,
        place: int,
        keep: bool = True,
    ) -> Bundle:
        n, width = x.shape[0], state.config.dim
        by_token = isinstance(mixes, Bundle)
        of_mixes, n_mixes = (mixes.rows, len(mixes.widths)) if isinstance(mixes, Bundle) else (mixes, mixes.shape[0])
        rows = self.scratch(f"mixed {n_mixes}", n_mixes * n, width)
        split = None
        if self.has_tiles and n <= FEW_COLUMNS:
            split = self.scratch(f"mixed split {n_mixes}", n_mixes * n, 2 * tiled(width), np.uint16)
        layer_norm = recurrent_launches.Norm(NormKind.LAYER_NORM, *norm, eps)
        ring = recurrent_launches.ShiftRing(state.shifts[layer][place].reshape(-1), padded(width), state.position)
        recurrent_launches.norm_shift_mix(
            self.device, x, width, n, layer_norm, ring, of_mixes, n_mixes, rows, split,
            by_token, keep,
        )  # fmt: skip
        return Bundle(n, (width,) * n_mixes, rows, split)

    def multiply(self, bundle: Bundle, group: MatrixGroup) -> Bundle:
        n, widths = bundle.n, tuple(segment.matrix.out_features for segment in group.segments)
        # where there is padding, each number of tokens has a place of its own: else one's padding is another's data
        layout = f" of {n}" if any(width % ROW_PADDING for width in widths) else ""
        y = Bundle(n, widths, self.scratch(f"group {widths}{layout}", n, group.out_width))
        reads_split = any(launch.tiled for launch in group.launches)
        if n <= FEW_COLUMNS and (bundle.split is not None or not reads_split):
            recurrent_launches.linear_group(self.device, group, bundle.rows, bundle.split, n, y.rows)
            return y
        for i, segment in enumerate(group.segments):
            self.product(bundle[segment.source], n, segment.matrix, y[i], widths[i])
            if segment.bias is not None or segment.activation != Activation.NONE:
                recurrent_launches.activate(self.device, segment.bias, segment.activation, widths[i], n, y[i])
        return y

    def wkv4(
        self, bundle: Bundle, decay: DeviceArray, bonus: DeviceArray, state: CUDARecurrentState, layer: int
    ) -> Coming:
        n, dim, wkv = bundle.n, state.config.dim, state.wkv[layer]
        r, k, v = (bundle[i] for i in range(3))
        args = (r, k, v, decay, bonus, n, dim, wkv, wkv.shape[1], state.position)
        return Coming(n, dim, partial(wkv_launches.wkv4, self.device, *args))

    def wkv5(
        self,
        bundle: Bundle,
        decay: DeviceArray,
        bonus: DeviceArray,
        norm: Norm,
        config: ModelConfig,
        state: CUDARecurrentState,
        layer: int,
    ) -> Coming:
        n, wkv = bundle.n, state.wkv[layer]
        r, k, v = (bundle[i] for i in range(3))
        g = bundle[3] if state.ones is None else state.ones[:n]
        decay_step = decay.shape[1] if len(decay.shape) == 2 else 0
        sizes = (n, config.n_heads, config.head_dim, config.group_norm_eps)
        args = (r, k, v, g, decay, decay_step, bonus, norm, *sizes, wkv, wkv.shape[1], state.position)
        return Coming(n, config.dim, partial(wkv_launches.wkv5, self.device, *args))

    def wkv7(
        self,
        bundle: Bundle,
        thin: Bundle,
        v_first: DeviceArray | None,
        vectors: tuple[DeviceArray, DeviceArray, DeviceArray],
        norm: Norm,
        config: ModelConfig,
        state: CUDARecurrentState,
        layer: int,
    ) -> tuple[Coming, DeviceArray]:
        n, wkv = bundle.n, state.wkv[layer]
        r, k, v = (bundle[i] for i in range(3))
        w, a, g = (thin[i] for i in range(3))
        v_mix = None if v_first is None else thin[3]
        if v_first is None:
            v_first = self.scratch("v_first", n, config.dim)
        sizes = (n, config.n_heads, config.head_dim, config.group_norm_eps)
        vectors_of_token = (r, w, k, v, a, g, v_mix, v_first)
        args = (*vectors_of_token, *vectors, norm, *sizes, wkv, wkv.shape[1], state.position)
        return Coming(n, config.dim, partial(wkv_launches.wkv7, self.device, *args)), v_first

    def squared_relu(self, bundle: Bundle, source: int, w: DeviceMatrix) -> Coming:
        n, hidden = bundle.n, w.out_features

        def write(target: Target) -> None:
            if n <= FEW_COLUMNS:
                recurrent_launches.linear_squared_relu(self.device, w, bundle.vectors(source, w), n, target)
                return
            assert target.rows is not None
            self.product(bundle[source], n, w, target.rows, hidden)
            recurrent_launches.activate(self.device, None, Activation.SQUARED_RELU, hidden, n, target.rows)

        return Coming(n, hidden, write)

    def add_product(
        self, x: DeviceArray, h: Coming, w: DeviceMatrix | DownMatrix, gate: DeviceArray | None = None
    ) -> DeviceArray:
        if isinstance(w, DownMatrix):
            if h.n == 1 and gate is None:
                rows = self.read("hidden", h, w.dense).data
                wkv_launches.linear_sparse(self.device, w.transposed, rows, x)
                return x
            w = w.dense
        n, width = h.n, w.out_features
        if n <= FEW_COLUMNS:
            vectors = self.read("hidden", h, w)
            if gate is None:
                n_squares = launches.n_squares(w)
                squares = self.scratch(f"squares that nobody reads {n_squares}", FEW_COLUMNS, n_squares)
                launches.linear_add(self.device, w, vectors, n, x, Target(squares=squares))
                return x
            delta = self.scratch("delta", n, width)
            launches.linear(self.device, w, vectors, n, delta, width)
        else:
            target, delta = self.target("hidden", n, h.width, None), self.scratch("delta", n, width)
            h.write(target)
            self.product(target.rows, n, w, delta, width)
        recurrent_launches.gated_add(self.device, gate, delta, width, n, x)
        return x

    def layernorm_head(
        self, x: DeviceArray, norm: Norm, w: DeviceMatrix, eps: float, n_logits: int
    ) -> DeviceArray | None:
        if n_logits == 0:
            return None
        rows, width = x[x.shape[0] - n_logits :], w.in_features
        logits = self.scratch("logits", n_logits, w.out_features)
        target = self.target("head", n_logits, width, w if n_logits <= FEW_COLUMNS else None)
        recurrent_launches.layernorm(self.device, rows, *norm, width, eps, n_logits, target)
        if n_logits <= FEW_COLUMNS:
            vectors = Vectors(target.split if w.tiled else target.rows)
            launches.linear(self.device, w, vectors, n_logits, logits, w.out_features)
        else:
            self.product(target.rows, n_logits, w, logits, w.out_features)
        return logits
