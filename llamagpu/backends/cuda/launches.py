"""One function per kernel family: launch shape and argument list. n is the number of tokens, as everywhere.

Arrays are device arrays laid out as the head comment of the kernel's file says: float32 [n, padded(width)], unless said
otherwise. Results are written into the array that is named last.
"""

from __future__ import annotations

from llamagpu.backends.cpu.attention_window import Ring
from llamagpu.backends.cuda.device import Device, DeviceArray, f32, i32
from llamagpu.backends.cuda.kernels import COLUMNS, INSTANCES, ROWS
from llamagpu.backends.cuda.matrix import DeviceMatrix, padded
from llamagpu.backends.cuda.vectors import Target, Vectors
from llamagpu.config import ModelConfig

WARPS_PER_BLOCK = 4  # kernels/dot.cuh
TILE_WARPS, TILE_ROWS = 8, 16  # kernels/tiles.cuh
EMBEDDING_THREADS = 128
RMSNORM_THREADS = 256
ATTENTION_THREADS = 128
ATTENTION_TILE = 64
MERGE_THREADS, MOST_SPLITS = 64, 256
SPLIT_THREADS = 256
SPLIT_BF16_THREADS = 128
PROMPT_THREADS, PROMPT_TILE = 128, 64
ROPE_HEADS = 4
NO_WINDOW = 2**31 - 1
SWIGLU_THREADS = 128
DECODE_WARPS, WIDEST_DECODE_HEAD = 4, 256  # kernels/attention_decode.cu
KV_NAMES = {"float32": "float", "float16": "__half", "int8": "signed char"}  # in C++
Scales = tuple[DeviceArray, DeviceArray]  # of keys and values of 8 bits: float32 [n_kv_heads, capacity]


def weights(w: DeviceMatrix) -> tuple[object, ...]:
    return w.data, w.params, i32(w.group_shift)


def normed(x: Vectors) -> tuple[object, ...]:
    return x.data, x.squares, i32(x.n_squares), f32(x.eps)


def embedding(device: Device, table: DeviceMatrix, tokens: DeviceArray, n: int, x: DeviceArray, target: Target) -> None:
    """x = rows ``tokens`` (int32 [n]) of the table; x * norm to the target, where it wants squares."""
    launch = device.kernel("embedding", f"embedding<{table.kind}>")
    out = (x, target.norm, target.rows, target.split, target.place, target.squares)
    launch((n,), (EMBEDDING_THREADS,), (*weights(table), table.perm, tokens, *out, i32(table.in_features)), 0)


def add_rmsnorm(
    device: Device,
    x: DeviceArray,
    delta: DeviceArray | None,
    bias: DeviceArray | None,
    weight: DeviceArray,
    dim: int,
    eps: float,
    n: int,
    y: DeviceArray,
) -> None:
    """x += bias + delta where there is a delta; y = rmsnorm(x) * weight. bias: float32 [padded(dim)], None for none."""
    launch = device.kernel("rmsnorm", "add_rmsnorm")
    launch((n,), (RMSNORM_THREADS,), (x, delta, bias, weight, y, i32(dim), f32(eps)), 0)


def columns_of(kind: str, n: int) -> int:
    """Columns of one pass over weights of a kind."""
    return next((columns for columns in COLUMNS[kind] if columns >= n), COLUMNS[kind][-1])


def shape_of(w: DeviceMatrix, n: int) -> tuple[int, tuple[int, int], tuple[int]]:
    """Columns of one pass over the weights; grid; block."""
    columns = columns_of(w.kind, n)
    pairs, threads = (TILE_ROWS, TILE_WARPS * 32) if w.tiled else (WARPS_PER_BLOCK, WARPS_PER_BLOCK * 32)
    return columns, (-(-w.out_features // (2 * pairs)), -(-n // columns)), (threads,)


def n_squares(w: DeviceMatrix) -> int:
    """Sums of squares that ``linear_add`` leaves per column."""
    return shape_of(w, 1)[1][0]


def linear(
    device: Device, w: DeviceMatrix, x: Vectors, n: int, y: DeviceArray, y_width: int, first: int = 0, step: int = 1
) -> None:
    """y[:, first + step * o] = output o of norm(x) @ w.T; y is float32 [n, padded(y_width)]."""
    columns, grid, block = shape_of(w, n)
    sizes = (y_width, first, step, w.in_features, w.out_features, n)
    launch = device.kernel("linear", f"linear<{w.kind}, {columns}>")
    launch(grid, block, (*weights(w), *normed(x), y, *map(i32, sizes)), 0, True)


def linear_add(
    device: Device,
    w: DeviceMatrix,
    x: Vectors,
    n: int,
    residual: DeviceArray,
    target: Target,
    bias: DeviceArray | None = None,
) -> None:
    """residual += bias + x @ w.T; residual * norm to the target, and the squares of the residual."""
    columns, grid, block = shape_of(w, n)
    out = (residual, bias, target.norm, target.rows, target.split, target.place, target.squares)
    sizes = (w.in_features, w.out_features, n)
    launch = device.kernel("linear", f"linear_add<{w.kind}, {columns}>")
    launch(grid, block, (*weights(w), x.data, *out, *map(i32, sizes)), 0, True)


def gate_up(
    device: Device, w: DeviceMatrix, x: Vectors, n: int, target: Target, bias: DeviceArray | None = None
) -> None:
    """silu(gate) * up to the target: outputs 2o, 2o + 1 of norm(x) @ w.T + bias are those of row o of gate and up."""
    columns, grid, block = shape_of(w, n)
    out = (bias, target.rows, target.split, target.place)
    sizes = (w.in_features, w.out_features // 2, n)
    launch = device.kernel("gate_up", f"gate_up<{w.kind}, {columns}>")
    launch(grid, block, (*weights(w), *normed(x), *out, *map(i32, sizes)), 0, True)


def qkv_rope(
    device: Device,
    w: DeviceMatrix,
    x: Vectors,
    bias: DeviceArray | None,
    angles: DeviceArray,
    position: DeviceArray,
    n: int,
    config: ModelConfig,
    keys: DeviceArray,
    values: DeviceArray,
    q: DeviceArray,
) -> None:
    """q = rope(norm(x) @ wq.T); k and v go to keys, values [n_kv_heads, capacity, padded(head_dim)] at *position.

    w: the rows of wq, wk, wv in the order of kernels/rope.cuh.
    """
    columns, grid, block = shape_of(w, n)
    kv_type = KV_NAMES[keys.dtype.name]
    sizes = (w.in_features, n, config.n_heads, config.n_kv_heads, config.head_dim, keys.shape[1])
    half_split = config.rope_layout == "half_split"
    args = (*weights(w), *normed(x), bias, angles, position, q, keys, values, *map(i32, sizes), i32(half_split))
    device.kernel("qkv_rope", f"qkv_rope<{w.kind}, {kv_type}, {columns}>")(grid, block, args, 0, True)


def appends_in_qkv_rope(w: DeviceMatrix, keys: DeviceArray) -> bool:
    """Whether there is a qkv_rope for weights and keys of these types."""
    return f"qkv_rope<{w.kind}, {KV_NAMES[keys.dtype.name]}, {COLUMNS[w.kind][0]}>" in INSTANCES["qkv_rope"]


def split_bf16(
    device: Device, x: DeviceArray, width: int, n: int, split: DeviceArray, place: DeviceArray | None
) -> None:
    """x as quantised weights read it: split uint16 [n, 2 * tiled(width)]."""
    grid = (-(-width // SPLIT_BF16_THREADS), n)
    device.kernel("split_bf16", "split_bf16")(grid, (SPLIT_BF16_THREADS,), (x, split, place, i32(width)), 0)


def split_halves(
    device: Device,
    x: DeviceArray,
    dim: int,
    n: int,
    high: DeviceArray,
    low: DeviceArray,
    inverse_scales: DeviceArray,
    place: DeviceArray | None = None,
) -> None:
    """(high + low) * inverse_scales = x, to about 22 bits. high, low: float16, as x; inverse_scales: float32 [n]."""
    args = (x, high, low, inverse_scales, place, i32(dim))
    device.kernel("split_halves", "split_halves")((n,), (SPLIT_THREADS,), args, 0)


def linear_prompt(
    device: Device,
    w: DeviceMatrix,
    high: DeviceArray,
    low: DeviceArray,
    inverse_scales: DeviceArray,
    n: int,
    y: DeviceArray,
    y_width: int,
    first: int = 0,
    step: int = 1,
) -> None:
    """As ``linear``, with x as split_halves gives it, for many columns on tensor cores."""
    launch = device.kernel("linear_prompt", f"linear_prompt<{w.kind}>")
    grid = (-(-w.out_features // PROMPT_TILE), -(-n // PROMPT_TILE))
    sizes = (y_width, first, step, w.in_features, w.out_features, n)
    launch(grid, (PROMPT_THREADS,), (*weights(w), high, low, inverse_scales, y, *map(i32, sizes)), 0)


def rope_append(
    device: Device,
    qkv: DeviceArray,
    bias: DeviceArray | None,
    norms: tuple[DeviceArray, DeviceArray] | None,
    angles: DeviceArray,
    position: DeviceArray,
    n: int,
    config: ModelConfig,
    keys: DeviceArray,
    values: DeviceArray,
    scales: Scales | None,
    q: DeviceArray,
    ring: Ring | None = None,
) -> None:
    """What qkv_rope does after its products, which are qkv, in the order of pairs; norms: of the heads of q and k.

    ring: for ``attention_window``, with its keys, values and angles: only q is turned.
    """
    launch = device.kernel("rope", f"rope_append<{KV_NAMES[keys.dtype.name]}>")
    n_heads = config.n_heads + 2 * config.n_kv_heads
    sizes = (config.n_heads, config.n_kv_heads, config.head_dim, keys.shape[1], config.rope_layout == "half_split")
    of_ring = (ring.window, ring.sinks, ring.n_turns) if ring else (0, 0, 0)
    vectors = (qkv, bias, *(norms or (None, None)), f32(config.norm_eps), angles)
    args = (*vectors, position, q, keys, values, *(scales or (None, None)), *map(i32, (*sizes, *of_ring)))
    launch((-(-n_heads // ROPE_HEADS), n), (ROPE_HEADS * 32,), args, 0, True)


def swiglu(
    device: Device, gate_up: DeviceArray, width: int, n: int, y: DeviceArray, bias: DeviceArray | None = None
) -> None:
    """y = silu(gate) * up; gate_up float32 [n, padded(2 * width)] has them in turn, as the bias [2 * width]."""
    grid = (-(-width // SWIGLU_THREADS), n)
    device.kernel("swiglu", "swiglu")(grid, (SWIGLU_THREADS,), (gate_up, bias, y, i32(width)), 0)


def attention_rows(n: int, config: ModelConfig) -> int:
    """Queries that one block serves: as many as share a key head, up to the most there is a kernel for."""
    n_rows = n * config.n_heads // config.n_kv_heads
    return next((rows for rows in ROWS if rows >= n_rows), ROWS[-1])


def attention_splits(device: Device, n: int, limit: int, config: ModelConfig) -> int:
    """Blocks that share the keys of one row: enough to fill the GPU twice, none without a tile where
    ``limit`` positions are filled."""
    n_blocks = -(-n * config.n_heads // config.n_kv_heads // attention_rows(n, config)) * config.n_kv_heads
    wanted = -(-2 * device.n_multiprocessors // n_blocks)
    return max(1, min(wanted, -(-limit // ATTENTION_TILE), MOST_SPLITS))


def attention_split(
    device: Device,
    q: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    scales: Scales | None,
    position: DeviceArray,
    n: int,
    n_splits: int,
    config: ModelConfig,
    window: int,
    partial: DeviceArray,
    stats: DeviceArray,
) -> None:
    """Causal attention of the n tokens at *position over the cache, which already holds theirs, in n_splits parts.

    window: positions that a token sees, 0 for all.

    partial float32 [n_splits, n, n_heads, padded(head_dim)]; stats float32 [n_splits, n, n_heads, 2].
    """
    rows = attention_rows(n, config)
    n_heads, n_kv_heads, head_dim = config.n_heads, config.n_kv_heads, config.head_dim
    stride = padded(head_dim)
    lanes_per_key = 2  # enough for a key's 16-byte pieces where a warp has them
    while lanes_per_key < min(stride // 8, 32):
        lanes_per_key *= 2
    n_blocks = -(-n * n_heads // n_kv_heads // rows)
    instance = f"<{KV_NAMES[keys.dtype.name]}, {rows}>"
    if n_blocks == 1 and head_dim <= WIDEST_DECODE_HEAD:
        launch = device.kernel("attention_decode", f"attention_decode{instance}")
        threads, shared_floats = DECODE_WARPS * 32, DECODE_WARPS * rows * stride
    else:
        launch = device.kernel("attention", f"attention_split{instance}")
        threads = ATTENTION_THREADS
        shared_floats = rows * stride * (threads // (stride // 8)) + rows * ATTENTION_TILE
    sizes = map(i32, (n, n_heads, n_kv_heads, head_dim, keys.shape[1], lanes_per_key, window or NO_WINDOW))
    cached = (keys, values, *(scales or (None, None)))
    args = (q, *cached, position, partial, stats, *sizes, f32(head_dim**-0.5))
    launch((n_blocks, n_kv_heads, n_splits), (threads,), args, 4 * shared_floats, True)


def window_rows(config: ModelConfig) -> int:
    """Queries of one token that a block serves."""
    group = config.n_heads // config.n_kv_heads
    return next((rows for rows in ROWS if rows >= group), ROWS[-1])


def window_splits(device: Device, n: int, limit: int, config: ModelConfig) -> int:
    """As ``attention_splits``, for ``attention_window``."""
    n_blocks = n * -(-config.n_heads // config.n_kv_heads // window_rows(config)) * config.n_kv_heads
    return max(1, min(-(-2 * device.n_multiprocessors // n_blocks), -(-limit // ATTENTION_TILE), MOST_SPLITS))


def attention_window(
    device: Device,
    q: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    angles: DeviceArray,
    position: DeviceArray,
    n: int,
    n_splits: int,
    config: ModelConfig,
    ring: Ring,
    partial: DeviceArray,
    stats: DeviceArray,
) -> None:
    """Attention of the n tokens from *position on over what each sees of the ring, which already holds theirs.

    q, keys, values: as ``rope_append`` writes them. partial, stats: as of ``attention_split``.
    """
    rows, stride = window_rows(config), padded(config.head_dim)
    lanes_per_key = 2
    while lanes_per_key < stride // 8:
        lanes_per_key *= 2
    launch = device.kernel("attention_window", f"attention_window<{KV_NAMES[keys.dtype.name]}, {rows}>")
    sizes = (n, config.n_heads, config.n_kv_heads, config.head_dim, keys.shape[1], lanes_per_key)
    of_ring = (ring.window, ring.sinks, ring.n_turns)
    args = (q, keys, values, angles, position, partial, stats, *map(i32, (*sizes, *of_ring)))
    grid = (n * -(-config.n_heads // config.n_kv_heads // rows), config.n_kv_heads, n_splits)
    shared_bytes = 4 * DECODE_WARPS * rows * stride
    launch(grid, (DECODE_WARPS * 32,), (*args, f32(config.head_dim**-0.5)), shared_bytes, True)


def attention_merge(
    device: Device,
    partial: DeviceArray,
    stats: DeviceArray,
    n: int,
    n_splits: int,
    config: ModelConfig,
    target: Target,
    kept: tuple[DeviceArray, DeviceArray] | None = None,
) -> None:
    """The parts put together: [n, n_heads * head_dim] to the target.

    kept: float32 [mem_len, padded(n_heads * head_dim)], to which they go as well, that of token i to row
    *position - mem_len + i; and position, int32 [1].
    """
    out = (target.rows, target.split, target.place, *(kept or (None, None)), i32(config.mem_len))
    sizes = map(i32, (n_splits, n, config.n_heads, config.head_dim))
    launch = device.kernel("attention", "attention_merge")
    launch((n * config.n_heads,), (MERGE_THREADS,), (partial, stats, *out, *sizes), 0, True)
