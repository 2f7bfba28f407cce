"""kernels/attention.cu against backends/cpu/attention.py: decoding, prompts, any number of splits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention import attention
from llamagpu.backends.cpu.kv_int8 import quantize_rows, widen_rows
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.kernels import KV_TYPES
from llamagpu.backends.cuda.matrix import padded
from llamagpu.config import ModelConfig
from tests.kernels.harness import (
    Arrays,
    Case,
    Floats,
    Written,
    download_rows,
    random,
    tolerance_of,
    twin_tests,
    unwritten,
    upload_rows,
)
from tests.kernels.test_qkv_rope import DTYPES, heads


def case(
    kv: str,
    config: ModelConfig,
    n: int,
    start: int,
    n_splits: int,
    scale: float = 1.0,
    spare: int = 5,
    form: str = "rows",
    window: int = 0,
    mem_len: int = 0,
) -> Case:
    """mem_len: so many rows of a memory that the result goes to as well, that of position p to row p - mem_len."""
    config = replace(config, mem_len=mem_len)
    n_keys, capacity, head_dim = start + n, start + n + spare, config.head_dim
    q = random(n, config.q_dim) * np.float32(scale)
    shape = (config.n_kv_heads, n_keys, head_dim)
    dtype = DTYPES[kv]
    floats = random(*shape, seed=1), random(*shape, seed=2)
    scaled = [quantize_rows(part) for part in floats] if kv == "signed char" else None
    keys, values = [q for q, _ in scaled] if scaled else [part.astype(dtype) for part in floats]

    def cache(device: Device, filled: NDArray[Any]) -> DeviceArray:
        """What is beyond the filled positions is NaN, and what is before all windows."""
        nothing = 99 if kv == "signed char" else np.nan
        whole: NDArray[Any] = np.full((config.n_kv_heads, capacity, padded(head_dim)), nothing, dtype)
        whole[:, :n_keys] = 0
        whole[:, :n_keys, :head_dim] = filled
        whole[:, : max(0, start + 1 - window) if window else 0] = nothing
        return device.upload(whole)

    def scales(device: Device, filled: NDArray[np.float32]) -> DeviceArray:
        whole = np.full((config.n_kv_heads, capacity), np.nan, np.float32)
        whole[:, :n_keys] = filled
        whole[:, : max(0, start + 1 - window) if window else 0] = np.nan
        return device.upload(whole)

    def run(device: Device) -> Arrays:
        out = Written(device, form, n, config.q_dim, permuted=form == "split")
        partial = unwritten(device, n_splits * n * config.n_heads, padded(head_dim))
        stats = unwritten(device, n_splits * n * config.n_heads, 2)
        position = device.upload(np.asarray([start], np.int32))
        of_rows = (scales(device, scaled[0][1]), scales(device, scaled[1][1])) if scaled else None
        cached = cache(device, keys), cache(device, values), of_rows
        launches.attention_split(
            device, upload_rows(device, q), *cached, position, n, n_splits, config, window, partial, stats
        )  # fmt: skip
        memory = unwritten(device, mem_len, padded(config.q_dim)) if mem_len else None
        kept = None if memory is None else (memory, position)
        launches.attention_merge(device, partial, stats, n, n_splits, config, out.target, kept)
        if memory is None:
            return {"out": out.read()}
        rows = download_rows(device, memory, config.q_dim)
        first = start - mem_len
        assert np.isnan(np.delete(rows, np.s_[first : first + n], axis=0)).all(), "wrote another row of the memory"
        return {"out": out.read(), "kept": rows[first : first + n]}

    def twin() -> Arrays:
        out = attend()
        return {"out": out} | ({"kept": out} if mem_len else {})

    def attend() -> Floats:
        queries = q.reshape(n, config.n_heads, head_dim)
        if scaled:
            return attention(queries, widen_rows(*scaled[0]), widen_rows(*scaled[1]), start, window)
        return attention(queries, keys.astype(np.float32), values.astype(np.float32), start, window)

    name = f"{kv} {config.n_heads}/{config.n_kv_heads} heads of {head_dim} n={n} at {start} splits {n_splits}"
    name += f" scale {scale:g}" * (scale != 1) + " to halves" * (form == "split") + f" window {window}" * bool(window)
    name += f" memory {mem_len}" * bool(mem_len)
    return Case(name, run, twin, tolerance_of(kv))


CASES = [
    case(kv, heads(8, 4, 2, 24), n, start, splits)
    for kv in KV_TYPES
    for n, start, splits in ((5, 0, 1), (6, 63, 1), (7, 130, 3), (33, 0, 1), (70, 10, 2))
]
CASES += [case(kv, heads(8, 11, 1, 20), 1, 100, 2) for kv in KV_TYPES]  # more queries for a key than one block takes
CASES += [
    case(kv, heads(8, n_heads, 1, head_dim), 1, start, 2)  # heads too wide for attention_decode.cu
    for kv in KV_TYPES
    for n_heads, head_dim in ((1, 1024), (2, 300), (3, 264), (8, 258))
    for start in (0, 63, 100)
]
CASES += [case("float", heads(8, 9, 1, 16), 1, 150, 2, scale=30.0)]  # softmax that is nearly one key
CASES += [case("__half", heads(8, 6, 2, 20), 11, 90, 3, form="split")]
CASES += [
    case(kv, heads(8, 4, 2, 24), n, start, splits, window=window)
    for kv in KV_TYPES
    for n, start, splits, window in (
        (9, 0, 1, 4), (9, 0, 1, 9), (33, 70, 2, 7), (40, 100, 2, 64), (70, 10, 1, 30), (9, 200, 3, 70), (12, 5, 2, 500)
    )
]  # fmt: skip
MEMORIES = [
    case(kv, heads(8, n_heads, n_kv_heads, head_dim), n, mem_len + c, splits, form=form, mem_len=mem_len)
    for kv, form in (("float", "rows"), ("float", "split"), ("signed char", "rows"))
    for n_heads, n_kv_heads, head_dim in ((4, 2, 24), (3, 3, 10))
    for n, mem_len, c, splits in (
        (1, 5, 0, 1),
        (1, 5, 4, 1),
        (1, 70, 33, 3),
        (12, 20, 8, 2),
        (5, 5, 0, 1),
        (3, 9, 2, 1),
    )
]
CASES += MEMORIES
CASES += [  # as many splits as there may be, each with keys of its own: of a share of 64, or of a tile
    case(kv, heads(8, n_heads, 1, 2), 1, 64 * splits - 3, splits, spare=0)
    for kv, n_heads in (("float", 1), ("signed char", 9))
    for splits in (65, 132, 256)
]
SMALL = [case(kv, heads(8, n_heads, 1, 300), 1, 130, 2, spare=0) for kv in KV_TYPES for n_heads in (1, 2, 3, 8)]
SMALL += [case(kv, heads(8, 11, 1, 10), 1, 130, 2, spare=0) for kv in KV_TYPES]
SMALL += [case("__half", heads(8, 9, 1, 80), 1, 70, 2)]  # threads are left over
SMALL += [case("__half", heads(8, 9, 1, 36), 1, 70, 2, form="split")]
SMALL += [case("float", heads(8, 3, 1, 16), 5, 62, 3), case("float", heads(8, 9, 1, 4), 1, 3, 4)]
SMALL += [case("float", heads(8, 3, 1, 16), 9, 62, 2, window=window) for window in (1, 5, 66)]
SMALL += MEMORIES[:6]
SMALL += [case("float", heads(8, 1, 1, 2), 1, 130, splits, spare=0) for splits in (65, 132, 256)]  # most have no key
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
