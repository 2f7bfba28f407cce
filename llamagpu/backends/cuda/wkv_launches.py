"""Launches of the recurrent models, as in launches.py: time mixes over a ring of states, and the sparse product.

state: float32 [SLOTS, slot_step], the ring of one layer (kernels/wkv.cuh): of wkv4 3 * dim numbers a slot, of the
others n_heads * head_dim * head_dim. position: int32 [1], tokens before this call: slot position % SLOTS is read,
slot (position + n) % SLOTS is written.
"""

from __future__ import annotations

from llamagpu.backends.cuda.device import Device, DeviceArray, f32, i32
from llamagpu.backends.cuda.kernels import WKV_HEADS
from llamagpu.backends.cuda.matrix import DeviceMatrix
from llamagpu.backends.cuda.vectors import Target

WIDEST_WKV_HEAD = WKV_HEADS[-1]  # the caller looks at it
WKV4_THREADS = 64
SPARSE_THREADS, SPARSE_SLICE = 512, 64  # kernels/linear_sparse.cu; bytes of a row that a block takes


def wkv4(
    device: Device,
    r: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    decay: DeviceArray,
    bonus: DeviceArray,
    n: int,
    dim: int,
    state: DeviceArray,
    slot_step: int,
    position: DeviceArray,
    target: Target,
) -> None:
    """The time mix of RWKV-4: [n, dim] to the target. r: a sigmoid already; decay: below zero."""
    args = (r, k, v, decay, bonus, state, i32(slot_step), position, target.rows, target.split, target.place)
    launch = device.kernel("wkv4", "wkv4")
    launch((-(-dim // WKV4_THREADS),), (WKV4_THREADS,), (*args, i32(n), i32(dim)), 0, True)


def head_instance(head_dim: int) -> tuple[int, tuple[int]]:
    """The size of head that a block has room for; its threads."""
    head = next(head for head in WKV_HEADS if head >= head_dim)
    return head, (head * (2 if head <= 32 else 4),)


def wkv5(
    device: Device,
    r: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    g: DeviceArray,
    decay: DeviceArray,
    decay_step: int,
    bonus: DeviceArray,
    norm: tuple[DeviceArray, DeviceArray],
    n: int,
    n_heads: int,
    head_dim: int,
    eps: float,
    state: DeviceArray,
    slot_step: int,
    position: DeviceArray,
    target: Target,
) -> None:
    """The time mix of RWKV-5 and RWKV-6: [n, n_heads * head_dim] to the target.

    decay_step: from the decays of a token to those of the next, 0 where all have the same. norm: weight and bias.
    """
    head, block = head_instance(head_dim)
    of_state = (f32(eps), state, i32(slot_step), position)
    out = (target.rows, target.split, target.place)
    args = (r, k, v, g, decay, i32(decay_step), bonus, *norm, *of_state, *out, i32(n), i32(head_dim))
    device.kernel("wkv5", f"wkv5<{head}>")((n_heads,), block, args, 0, True)


def wkv7(
    device: Device,
    r: DeviceArray,
    w: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    a: DeviceArray,
    g: DeviceArray,
    v_mix: DeviceArray | None,
    v_first: DeviceArray,
    k_k: DeviceArray,
    k_a: DeviceArray,
    r_k: DeviceArray,
    norm: tuple[DeviceArray, DeviceArray],
    n: int,
    n_heads: int,
    head_dim: int,
    eps: float,
    state: DeviceArray,
    slot_step: int,
    position: DeviceArray,
    target: Target,
) -> None:
    """The time mix of RWKV-7: [n, n_heads * head_dim] to the target.

    v_mix: null in the first layer, which writes its values to v_first; the others read them there. norm: weight and
    bias.
    """
    head, block = head_instance(head_dim)
    vectors = (r, w, k, v, a, g, v_mix, v_first)
    of_state = (f32(eps), state, i32(slot_step), position)
    out = (target.rows, target.split, target.place)
    args = (*vectors, k_k, k_a, r_k, *norm, *of_state, *out, i32(n), i32(head_dim))
    device.kernel("wkv7", f"wkv7<{head}>")((n_heads,), block, args, 0, True)


def linear_sparse(device: Device, w_t: DeviceMatrix, h: DeviceArray, residual: DeviceArray) -> None:
    """residual += h @ w_t of one token, reading the rows of w_t where h is not zero.

    w_t: the matrix transposed, of floats; h: float32 [padded(hidden)].
    """
    hidden, dim = w_t.out_features, w_t.in_features
    columns = SPARSE_SLICE // w_t.data.dtype.itemsize
    launch = device.kernel("linear_sparse", f"linear_sparse<{w_t.kind}>")
    launch((-(-dim // columns),), (SPARSE_THREADS,), (w_t.data, h, residual, i32(hidden), i32(dim)), 0, True)
