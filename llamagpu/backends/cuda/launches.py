"""One function per kernel family: launch shape and argument list. n is the number of tokens, as everywhere.

Arrays are device arrays laid out as the head comment of the kernel's file says: float32 [n, padded(width)], unless said
otherwise. Results are written into the array that is named last.
"""

from __future__ import annotations

from llamagpu.backends.cuda.device import Device, DeviceArray, f32, i32
from llamagpu.backends.cuda.kernels import MAX_COLUMNS, ROWS
from llamagpu.backends.cuda.matrix import DeviceMatrix, padded
from llamagpu.config import ModelConfig

WARPS_PER_BLOCK = 4  # kernels/dot.cuh
EMBEDDING_THREADS = 128
RMSNORM_THREADS = 256
ATTENTION_THREADS = 128
ATTENTION_TILE = 64
MERGE_THREADS = 64
SPLIT_THREADS = 256
PROMPT_THREADS, PROMPT_TILE = 128, 64
ROPE_THREADS = 128
SWIGLU_THREADS = 128
KV_NAMES = {"float32": "float", "float16": "__half"}  # in C++


def embedding(device: Device, table: DeviceMatrix, tokens: DeviceArray, n: int, x: DeviceArray) -> None:
    """x = rows ``tokens`` (int32 [n]) of the table."""
    launch = device.kernel("embedding", f"embedding<{table.kind}>")
    args = (table.data, table.scales, i32(table.group_size), tokens, x, i32(table.in_features))
    launch((n,), (EMBEDDING_THREADS,), args, 0)


def add_rmsnorm(
    device: Device,
    x: DeviceArray,
    delta: DeviceArray | None,
    weight: DeviceArray,
    dim: int,
    eps: float,
    n: int,
    y: DeviceArray,
) -> None:
    """x += delta where there is one; y = rmsnorm(x) * weight."""
    launch = device.kernel("rmsnorm", "add_rmsnorm")
    launch((n,), (RMSNORM_THREADS,), (x, delta, weight, y, i32(dim), f32(eps)), 0)


def columns_of(n: int, kind: str) -> tuple[int, int]:
    """Columns of one pass over the weights, and the number of passes."""
    columns = min(n, MAX_COLUMNS[kind])
    return columns, -(-n // columns)


def linear(device: Device, w: DeviceMatrix, x: DeviceArray, n: int, y: DeviceArray) -> None:
    """y = x @ w.T"""
    columns, passes = columns_of(n, w.kind)
    launch = device.kernel("linear", f"linear<{w.kind}, {columns}>")
    grid = (-(-w.out_features // (2 * WARPS_PER_BLOCK)), passes)
    sizes = (i32(w.in_features), i32(w.out_features), i32(n))
    launch(grid, (WARPS_PER_BLOCK * 32,), (w.data, w.scales, i32(w.group_size), x, y, *sizes), 0)


def gate_up(device: Device, gate: DeviceMatrix, up: DeviceMatrix, x: DeviceArray, n: int, y: DeviceArray) -> None:
    """y = silu(x @ gate.T) * (x @ up.T)"""
    columns, passes = columns_of(n, gate.kind)
    launch = device.kernel("gate_up", f"gate_up<{gate.kind}, {columns}>")
    grid = (-(-gate.out_features // WARPS_PER_BLOCK), passes)
    weights = (gate.data, gate.scales, up.data, up.scales, i32(gate.group_size))
    sizes = (i32(gate.in_features), i32(gate.out_features), i32(n))
    launch(grid, (WARPS_PER_BLOCK * 32,), (*weights, x, y, *sizes), 0)


def qkv_rope(
    device: Device,
    wq: DeviceMatrix,
    wk: DeviceMatrix,
    wv: DeviceMatrix,
    x: DeviceArray,
    angles: DeviceArray,
    position: DeviceArray,
    n: int,
    config: ModelConfig,
    keys: DeviceArray,
    values: DeviceArray,
    q: DeviceArray,
) -> None:
    """q = rope(x @ wq.T); k and v go to keys, values [n_kv_heads, capacity, padded(head_dim)] at *position."""
    columns, passes = columns_of(n, wq.kind)
    kv_type = KV_NAMES[keys.dtype.name]
    launch = device.kernel("qkv_rope", f"qkv_rope<{wq.kind}, {kv_type}, {columns}>")
    n_pairs = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim // 2
    weights = (wq.data, wq.scales, wk.data, wk.scales, wv.data, wv.scales, i32(wq.group_size))
    sizes = (wq.in_features, n, config.n_heads, config.n_kv_heads, config.head_dim, keys.shape[1])
    half_split = config.rope_layout == "half_split"
    args = (*weights, x, angles, position, q, keys, values, *map(i32, sizes), i32(half_split))
    launch((-(-n_pairs // WARPS_PER_BLOCK), passes), (WARPS_PER_BLOCK * 32,), args, 0)


def split_halves(
    device: Device, x: DeviceArray, dim: int, n: int, high: DeviceArray, low: DeviceArray, inverse_scales: DeviceArray
) -> None:
    """(high + low) * inverse_scales = x, to about 22 bits. high, low: float16, as x; inverse_scales: float32 [n]."""
    args = (x, high, low, inverse_scales, i32(dim))
    device.kernel("split_halves", "split_halves")((n,), (SPLIT_THREADS,), args, 0)


def linear_prompt(
    device: Device,
    w: DeviceMatrix,
    high: DeviceArray,
    low: DeviceArray,
    inverse_scales: DeviceArray,
    n: int,
    y: DeviceArray,
) -> None:
    """y = x @ w.T with x as split_halves gives it, on tensor cores."""
    launch = device.kernel("linear_prompt", f"linear_prompt<{w.kind}>")
    grid = (-(-w.out_features // PROMPT_TILE), -(-n // PROMPT_TILE))
    sizes = (i32(w.in_features), i32(w.out_features), i32(n))
    args = (w.data, w.scales, i32(w.group_size), high, low, inverse_scales, y, *sizes)
    launch(grid, (PROMPT_THREADS,), args, 0)


def rope_append(
    device: Device,
    k: DeviceArray,
    v: DeviceArray,
    angles: DeviceArray,
    position: DeviceArray,
    n: int,
    config: ModelConfig,
    keys: DeviceArray,
    values: DeviceArray,
    q: DeviceArray,
) -> None:
    """Turn q, in place, and k; k and v go to keys, values [n_kv_heads, capacity, padded(head_dim)] at *position."""
    launch = device.kernel("rope", f"rope_append<{KV_NAMES[keys.dtype.name]}>")
    n_pairs = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim // 2
    sizes = (config.n_heads, config.n_kv_heads, config.head_dim, keys.shape[1], config.rope_layout == "half_split")
    args = (q, k, v, angles, position, keys, values, *map(i32, sizes))
    launch((-(-n_pairs // ROPE_THREADS), n), (ROPE_THREADS,), args, 0)


def swiglu(device: Device, gate: DeviceArray, up: DeviceArray, width: int, n: int, y: DeviceArray) -> None:
    """y = silu(gate) * up; y may be gate."""
    grid = (-(-padded(width) // (4 * SWIGLU_THREADS)), n)
    device.kernel("swiglu", "swiglu")(grid, (SWIGLU_THREADS,), (gate, up, y, i32(width)), 0)


def attention_rows(n: int, config: ModelConfig) -> int:
    """Queries that one block serves: as many as share a key head, up to the most there is a kernel for."""
    n_rows = n * config.n_heads // config.n_kv_heads
    return next((rows for rows in ROWS if rows >= n_rows), ROWS[-1])


def attention_splits(device: Device, n: int, capacity: int, config: ModelConfig) -> int:
    """Blocks that share the keys of one row: enough to fill the GPU twice, none without a tile in a full cache."""
    n_blocks = -(-n * config.n_heads // config.n_kv_heads // attention_rows(n, config)) * config.n_kv_heads
    wanted = -(-2 * device.n_multiprocessors // n_blocks)
    return max(1, min(wanted, -(-capacity // ATTENTION_TILE)))


def attention(
    device: Device,
    q: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    position: DeviceArray,
    n: int,
    n_splits: int,
    config: ModelConfig,
    partial: DeviceArray,
    stats: DeviceArray,
    out: DeviceArray,
) -> None:
    """Causal attention of the n tokens at *position over the cache, which already holds theirs.

    Scratch: partial float32 [n_splits, n, n_heads, padded(head_dim)]; stats float32 [n_splits, n, n_heads, 2].
    """
    rows = attention_rows(n, config)
    kv_type = KV_NAMES[keys.dtype.name]
    n_heads, n_kv_heads, head_dim = config.n_heads, config.n_kv_heads, config.head_dim
    stride = padded(head_dim)
    n_key_lanes = ATTENTION_THREADS // (stride // 8)
    shared_floats = rows * stride * n_key_lanes + rows * ATTENTION_TILE
    grid = (-(-n * n_heads // n_kv_heads // rows), n_kv_heads, n_splits)
    lanes_per_key = 2  # enough for a key's 16-byte pieces where a warp has them
    while lanes_per_key < min(stride // 8, 32):
        lanes_per_key *= 2
    sizes = map(i32, (n, n_heads, n_kv_heads, head_dim, keys.shape[1], lanes_per_key))
    args = (q, keys, values, position, partial, stats, *sizes, f32(head_dim**-0.5))
    launch = device.kernel("attention", f"attention_split<{kv_type}, {rows}>")
    launch(grid, (ATTENTION_THREADS,), args, 4 * shared_floats)
    launch = device.kernel("attention", "attention_merge")
    args = (partial, stats, out, i32(n_splits), i32(n), i32(n_heads), i32(head_dim))
    launch((n * n_heads,), (MERGE_THREADS,), args, 0)
