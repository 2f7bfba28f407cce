"""The operations of backends/rows.py as launches, all tokens of a call at once.

A recurrence keeps its state in a ring of SLOTS copies (kernels/slots.cuh): a call reads one and writes the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamagpu.backends.cuda import launches, micro_rwkv_launches, recurrent_launches, wkv_launches
from llamagpu.backends.cuda.cache import MAX_PROMPT_CHUNK
from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.matrix import DeviceMatrix, pad_rows, padded, upload_vector
from llamagpu.backends.cuda.recurrent_launches import Norm, NormKind, ShiftRing
from llamagpu.backends.cuda.recurrent_state import SLOTS
from llamagpu.backends.cuda.vectors import Target
from llamagpu.backends.recurrent import Activation
from llamagpu.backends.rows import Linear, TimeMix
from llamagpu.checkpoint import Tensor
from llamagpu.errors import UsageError
from llamagpu.option_names import option

if TYPE_CHECKING:
    from llamagpu.backends.cuda import CUDABackend

FEWEST_ROWS = 16  # of a scratch array; from there on a power of two, since a text grows token by token


@dataclass(frozen=True)
class DeviceRows:
    """data: float32 [n, padded(width)]."""

    data: DeviceArray
    width: int

    @property
    def n(self) -> int:
        return int(self.data.shape[0])


class CUDARowState:
    """shifts float32 [SLOTS, n_layers, 2, padded(dim)], wkv float32 [SLOTS, n_layers, n_heads, head_dim, head_dim];
    position int32 [1], calls so far modulo SLOTS, as kernels see them; slot: the same on the host."""

    def __init__(self, device: Device, n_layers: int, config: TimeMix) -> None:
        self.dim = config.n_heads * config.head_dim
        self.shifts = device.zeros((SLOTS, n_layers, 2, padded(self.dim)), np.float32)
        self.wkv = device.zeros((SLOTS, n_layers, config.n_heads, config.head_dim, config.head_dim), np.float32)
        self.position, self.slot = device.zeros((1,), np.int32), 0

    def shift_ring(self, place: tuple[int, int]) -> ShiftRing:
        """Of the rows that a layer's time mix (0) or channel mix (1) has last read."""
        _, n_layers, n_places, width = self.shifts.shape
        first = (place[0] * n_places + place[1]) * width
        return ShiftRing(self.shifts.reshape(-1)[first:], n_layers * n_places * width, self.position)

    def wkv_ring(self, layer: int) -> tuple[DeviceArray, int, DeviceArray]:
        """From a layer's sums in slot 0 on; numbers from slot to slot; the position."""
        _, n_layers, n_heads, head_dim, _ = self.wkv.shape
        size = n_heads * head_dim * head_dim
        return self.wkv.reshape(-1)[layer * size :], n_layers * size, self.position


class CUDARows:
    def __init__(self, backend: CUDABackend) -> None:
        self.backend, self.device = backend, backend.device
        self.at_start = self.device.zeros((1,), np.int32)

    def scratch(self, name: str, n: int, width: int, dtype: DTypeLike = np.float32) -> DeviceArray:
        capacity = max(FEWEST_ROWS, 1 << (n - 1).bit_length())
        return self.backend.scratch(f"{name} of rows", capacity, width, dtype)[:n]

    def check(self, n_heads: int, head_dim: int) -> None:
        shared = micro_rwkv_launches.grouped_bytes(n_heads * head_dim, n_heads)
        if head_dim > wkv_launches.WIDEST_WKV_HEAD or shared > micro_rwkv_launches.MOST_SHARED_BYTES:
            raise UsageError(
                f"{n_heads} heads of {head_dim} elements are too many or too wide for the GPU kernels:"
                f" {option('device', 'cpu')} runs this model"
            )

    def linear_of(self, matrix: Tensor, bias: NDArray[Any] | None = None) -> Linear:
        return Linear(self.backend.weight(matrix), None if bias is None else upload_vector(self.device, bias))

    def vectors_of(self, vectors: Sequence[NDArray[Any]]) -> DeviceArray:
        return self.device.upload(pad_rows(np.stack([vector.astype(np.float32) for vector in vectors])))

    def state(self, n_layers: int, config: TimeMix) -> CUDARowState:
        return CUDARowState(self.device, n_layers, config)

    def save_state(self, state: CUDARowState) -> dict[str, NDArray[np.float32]]:
        shifts, wkv = (self.device.download(array)[state.slot] for array in (state.shifts, state.wkv))
        return {"shifts": np.ascontiguousarray(shifts[..., : state.dim]), "wkv": wkv.copy()}

    def load_state(self, state: CUDARowState, arrays: Mapping[str, NDArray[Any]], length: int) -> None:
        for target, array in ((state.shifts, arrays["shifts"]), (state.wkv, arrays["wkv"])):
            whole = np.zeros(target.shape, np.float32)
            whole[state.slot, ..., : array.shape[-1]] = array
            self.device.copy(target, whole)

    def advance(self, state: CUDARowState) -> None:
        state.slot = (state.slot + 1) % SLOTS
        self.device.copy(state.position, np.asarray([state.slot], np.int32))

    def embedding(self, table: Linear, tokens: Sequence[int], positions: Linear, rows: Sequence[int]) -> DeviceRows:
        x = self.rows_of("x", table.matrix, tokens)
        self.add(x, self.rows_of("positions", positions.matrix, rows))
        return x

    def rows_of(self, name: str, table: DeviceMatrix, numbers: Sequence[int]) -> DeviceRows:
        n, width = len(numbers), table.in_features
        ids = self.scratch(f"numbers of {name}", n, 1, np.int32).reshape(-1)[:n]
        self.device.copy(ids, np.asarray(numbers, np.int32))
        x = self.scratch(name, n, width)
        launches.embedding(self.device, table, ids, n, x, Target())
        return DeviceRows(x, width)

    def shift_mix(
        self,
        name: str,
        x: DeviceRows,
        mixes: DeviceArray,
        normed: bool,
        state: CUDARowState | None = None,
        place: tuple[int, int] = (0, 0),
    ) -> Sequence[DeviceRows]:
        n, n_mixes = x.n, mixes.shape[0]
        mixed = self.scratch(name, n_mixes * n, x.width)
        norm = Norm(NormKind.UNIT_RMS if normed else NormKind.NO_NORM)
        ring = None if state is None else state.shift_ring(place)
        recurrent_launches.norm_shift_mix(
            self.device, x.data, x.width, n, norm, ring, mixes, n_mixes, mixed, None, keep=ring is not None
        )
        return [DeviceRows(mixed[m * n : (m + 1) * n], x.width) for m in range(n_mixes)]

    def linear(self, name: str, x: DeviceRows, w: Linear, activation: Activation | None = None) -> DeviceRows:
        width = w.matrix.out_features
        y = self.scratch(name, x.n, width)
        self.product(x.data, w.matrix, y)
        if activation is not None or w.bias is not None:
            recurrent_launches.activate(self.device, w.bias, activation or Activation.NONE, width, x.n, y)
        return DeviceRows(y, width)

    def product(self, x: DeviceArray, matrix: DeviceMatrix, y: DeviceArray) -> None:
        """y = x @ matrix.T, as many rows at once as the kernels take."""
        for at in range(0, x.shape[0], MAX_PROMPT_CHUNK):
            piece = x[at : at + MAX_PROMPT_CHUNK]
            n = piece.shape[0]
            self.backend.product(piece, n, matrix, y[at : at + n], matrix.out_features)

    def wkv(
        self,
        name: str,
        r: DeviceRows,
        k: DeviceRows,
        v: DeviceRows,
        g: DeviceRows,
        w: TimeMix,
        state: CUDARowState | None = None,
        layer: int = 0,
    ) -> DeviceRows:
        y = self.scratch(name, r.n, r.width)
        size = w.n_heads * w.head_dim * w.head_dim
        ring = self.backend.scratch(f"no sums of {size}", SLOTS, size)  # of which slot 0 stays zero, and is read
        if state is None:
            sums, slot_step, position = ring.reshape(-1), ring.shape[1], self.at_start
        else:
            sums, slot_step, position = state.wkv_ring(layer)
        decay, bonus, weight, bias = (w.vectors[i] for i in range(4))
        wkv_launches.wkv5(
            self.device, r.data, k.data, v.data, g.data, decay, 0, bonus, (weight, bias), r.n, w.n_heads, w.head_dim,
            w.eps, sums, slot_step, position, Target(rows=y),
        )  # fmt: skip
        return DeviceRows(y, r.width)

    def add(self, x: DeviceRows, delta: DeviceRows, gate: DeviceRows | None = None) -> None:
        recurrent_launches.gated_add(self.device, gate.data if gate else None, delta.data, x.width, x.n, x.data)

    def sliding_attention(self, name: str, qkv: DeviceRows, n_heads: int) -> DeviceRows:
        dim = qkv.width // 3
        y = self.scratch(name, qkv.n, dim)
        micro_rwkv_launches.sliding_attention(self.device, qkv.data, dim, n_heads, qkv.n, y)
        return DeviceRows(y, dim)

    def grouped_attention(self, name: str, qkvw: DeviceRows, n_heads: int) -> DeviceRows:
        dim = qkvw.width // 4
        y = self.scratch(name, qkvw.n, dim)
        micro_rwkv_launches.grouped_attention(self.device, qkvw.data, dim, n_heads, qkvw.n, y)
        return DeviceRows(y, dim)

    def mix_experts(self, name: str, outputs: DeviceRows, n_active: int, n_experts: int) -> DeviceRows:
        width = (outputs.width - n_experts) // n_active
        y = self.scratch(name, outputs.n, width)
        micro_rwkv_launches.mix_experts(self.device, outputs.data, width, n_active, n_experts, outputs.n, y)
        return DeviceRows(y, width)

    def head(self, x: DeviceRows, norm: DeviceArray, eps: float, table: Linear, out: DeviceArray) -> None:
        n = out.shape[0]
        h = self.scratch("head", n, x.width)
        last = x.data[x.n - n :]
        recurrent_launches.layernorm(self.device, last, norm[0], norm[1], x.width, eps, n, Target(rows=h))
        self.product(h, table.matrix, out)
