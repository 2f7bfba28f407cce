"""As launches.py, for the kernels around the WKV of recurrent models."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from llamagpu.backends.cuda.device import Device, DeviceArray, f32, i32
from llamagpu.backends.cuda.launches import TILE_WARPS, WARPS_PER_BLOCK, columns_of, shape_of, weights
from llamagpu.backends.cuda.matrix import DeviceMatrix
from llamagpu.backends.cuda.matrix_group import MatrixGroup
from llamagpu.backends.cuda.vectors import Target, Vectors
from llamagpu.backends.recurrent import Activation

SHIFT_THREADS, MOST_MIXES = 256, 6  # kernels/token_shift.cu
LAYERNORM_THREADS = 256
ACTIVATE_THREADS = 128
GATED_ADD_THREADS = 128


class NormKind(IntEnum):
    """The codes of kernels/token_shift.cu. UNIT_RMS: MicroRWKV's, which has no weights."""

    LAYER_NORM = 0
    UNIT_RMS = 1
    NO_NORM = 2


@dataclass(frozen=True)
class Norm:
    """weight, bias: float32 [dim], of LAYER_NORM only, as is eps."""

    kind: NormKind
    weight: DeviceArray | None = None
    bias: DeviceArray | None = None
    eps: float = 0.0


@dataclass(frozen=True)
class ShiftRing:
    """What a token shift remembers, in SLOTS copies: slot s at shifts[s * slot_step], float32 [dim].

    shifts: one axis, from the layer's own numbers in slot 0 on. position: int32 [1], tokens before this call: slot
    position % SLOTS is read, slot (position + n) % SLOTS is written.
    """

    shifts: DeviceArray
    slot_step: int
    position: DeviceArray


def norm_shift_mix(
    device: Device,
    x: DeviceArray,
    dim: int,
    n: int,
    norm: Norm,
    ring: ShiftRing | None,
    mixes: DeviceArray,
    n_mixes: int,
    rows: DeviceArray | None,
    split: DeviceArray | None,
    mix_per_token: bool = False,
    keep: bool = True,
) -> None:
    """mixed[m, t] = h[t] + (h[t - 1] - h[t]) * mixes[m], h = norm(x), to rows and split, where these are not null.

    mixes: float32 [n_mixes, padded(dim)], or, of mix_per_token, [n_mixes, n, padded(dim)]. rows: float32
    [n_mixes, n, padded(dim)]; split: uint16 [n_mixes, n, 2 * tiled(dim)]. ring: null for zeros before the first token;
    keep: h of the last token is written to it.
    """
    assert 1 <= n_mixes <= MOST_MIXES
    # one token: a block for each slice, since nothing else is there to do; a prompt: fewer, each finds the norms anew
    slices = min(-(-dim // SHIFT_THREADS), max(1, -(-4 * device.n_multiprocessors // n)))
    of_state = (ring.shifts, i32(ring.slot_step), ring.position) if ring else (None, i32(0), None)
    of_mixes = (mixes, i32(n_mixes), i32(mix_per_token))
    of_norm = (i32(norm.kind), norm.weight, norm.bias, f32(norm.eps))
    args = (x, *of_norm, *of_mixes, *of_state, i32(keep), rows, split, i32(dim), i32(n))
    device.kernel("token_shift", "norm_shift_mix")((slices, n), (SHIFT_THREADS,), args, 0, True)


def layernorm(
    device: Device,
    x: DeviceArray,
    weight: DeviceArray,
    bias: DeviceArray,
    dim: int,
    eps: float,
    n: int,
    target: Target,
) -> None:
    """LayerNorm(x) to the target's rows, which may be x itself, and split, where these are not null."""
    out = (target.rows, target.split, target.place)
    args = (x, weight, bias, f32(eps), *out, i32(dim))
    device.kernel("layernorm", "layernorm")((n,), (LAYERNORM_THREADS,), args, 0, True)


def linear_group(
    device: Device, group: MatrixGroup, rows: DeviceArray | None, split: DeviceArray | None, n: int, y: DeviceArray
) -> None:
    """activation(x @ w.T + bias) of all segments, a launch for each kind of weights.

    rows, split: the bundle of vectors, each as wide as group.source_widths says and contiguous for all n tokens, in the
    form that floating and quantised weights read; null where there are none of these. y: float32 [n * group.out_width];
    the outputs of a segment begin at n * out_prefix, [n, padded(out_features)].
    """
    for launch in group.launches:
        columns = columns_of(launch.kind, n)
        n_warps = TILE_WARPS if launch.tiled else WARPS_PER_BLOCK
        grid = (launch.table.shape[0], -(-n // columns))
        x = split if launch.tiled else rows
        args = (launch.data, launch.params, launch.table, x, group.bias, y, i32(n))
        device.kernel("linear_group", f"linear_group<{launch.kind}, {columns}>")(grid, (n_warps * 32,), args, 0, True)


def linear_squared_relu(device: Device, w: DeviceMatrix, x: Vectors, n: int, target: Target) -> None:
    """relu(x @ w.T)^2 to the target."""
    columns, grid, block = shape_of(w, n)
    out = (target.rows, target.split, target.place)
    launch = device.kernel("squared_relu", f"linear_squared_relu<{w.kind}, {columns}>")
    launch(grid, block, (*weights(w), x.data, *out, *map(i32, (w.in_features, w.out_features, n))), 0, True)


def activate(
    device: Device, bias: DeviceArray | None, activation: Activation, width: int, n: int, y: DeviceArray
) -> None:
    """y = activation(y + bias), in place."""
    grid = (-(-width // ACTIVATE_THREADS), n)
    device.kernel("activate", "activate")(grid, (ACTIVATE_THREADS,), (y, bias, i32(activation), i32(width)), 0)


def gated_add(device: Device, gate: DeviceArray | None, delta: DeviceArray, width: int, n: int, x: DeviceArray) -> None:
    """x += gate * delta; without a gate x += delta."""
    grid = (-(-width // GATED_ADD_THREADS), n)
    device.kernel("gated_add", "gated_add")(grid, (GATED_ADD_THREADS,), (x, gate, delta, i32(width)), 0, True)
