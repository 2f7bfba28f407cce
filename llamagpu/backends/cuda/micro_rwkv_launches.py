"""As launches.py, for the kernels that MicroRWKV alone has."""

from __future__ import annotations

from llamagpu.backends.cpu.sliding_attention import WINDOW
from llamagpu.backends.cuda.device import Device, DeviceArray, i32

MIX_THREADS = 128
GROUPED_THREADS, GROUPS = 128, 4
SLIDING_THREADS, SLIDING_QUERIES = 256, 8
MOST_SHARED_BYTES = 48 << 10  # that every GPU has without being asked for more


def mix_experts(
    device: Device, outputs: DeviceArray, width: int, n_active: int, n_experts: int, n: int, y: DeviceArray
) -> None:
    """y [n, width] = the experts' outputs [n, n_active * width + n_experts], weighed by the softmax of the last."""
    args = (outputs, y, i32(width), i32(n_active), i32(n_experts))
    device.kernel("mix_experts", "mix_experts")((-(-width // MIX_THREADS), n), (MIX_THREADS,), args, 0, True)


def grouped_bytes(dim: int, n_heads: int) -> int:
    """Of shared memory, which ``grouped_attention`` takes: at most MOST_SHARED_BYTES, the caller looks at it."""
    return 4 * (3 * dim // GROUPS + n_heads * n_heads)


def grouped_attention(device: Device, qkvw: DeviceArray, dim: int, n_heads: int, n: int, y: DeviceArray) -> None:
    """y [n, dim] of qkvw [n, 4 * dim]."""
    args = (qkvw, y, i32(n), i32(n_heads), i32(dim // GROUPS // n_heads))
    launch = device.kernel("grouped_attention", "grouped_attention")
    launch((n, GROUPS), (GROUPED_THREADS,), args, grouped_bytes(dim, n_heads), True)


def sliding_attention(device: Device, qkv: DeviceArray, dim: int, n_heads: int, n: int, y: DeviceArray) -> None:
    """y [n, dim] of qkv [n, 3 * dim]."""
    width = -(-n // WINDOW)
    n_rows = -(-n // width)
    args = (qkv, y, i32(n), i32(width), i32(n_heads), i32(dim // n_heads))
    launch = device.kernel("sliding_attention", "sliding_attention")
    launch((-(-n_rows // SLIDING_QUERIES), n_heads), (SLIDING_THREADS,), args, 0, True)
