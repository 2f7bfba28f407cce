"""kernels/attention.cu against backends/cpu/attention.py: decoding, prompts, any number of splits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention import attention
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.kernels import KV_TYPES
from llamagpu.backends.cuda.matrix import padded
from llamagpu.config import ModelConfig
from tests.kernels.harness import (
    Arrays,
    Case,
    Written,
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
) -> Case:
    n_keys, capacity, head_dim = start + n, start + n + spare, config.head_dim
    q = random(n, config.q_dim) * np.float32(scale)
    shape = (config.n_kv_heads, n_keys, head_dim)
    dtype = DTYPES[kv]
    keys: NDArray[Any] = random(*shape, seed=1).astype(dtype)
    values: NDArray[Any] = random(*shape, seed=2).astype(dtype)

    def cache(device: Device, filled: NDArray[Any]) -> DeviceArray:
        """What is beyond the filled positions is NaN."""
        whole: NDArray[Any] = np.full((config.n_kv_heads, capacity, padded(head_dim)), np.nan, dtype)
        whole[:, :n_keys] = 0
        whole[:, :n_keys, :head_dim] = filled
        return device.upload(whole)

    def run(device: Device) -> Arrays:
        out = Written(device, form, n, config.q_dim, permuted=form == "split")
        partial = unwritten(device, n_splits * n * config.n_heads, padded(head_dim))
        stats = unwritten(device, n_splits * n * config.n_heads, 2)
        position = device.upload(np.asarray([start], np.int32))
        cached = cache(device, keys), cache(device, values)
        launches.attention_split(
            device, upload_rows(device, q), *cached, position, n, n_splits, config, partial, stats
        )  # fmt: skip
        launches.attention_merge(device, partial, stats, n, n_splits, config, out.target)
        return {"out": out.read()}

    def twin() -> Arrays:
        queries = q.reshape(n, config.n_heads, head_dim)
        return {"out": attention(queries, keys.astype(np.float32), values.astype(np.float32), start)}

    name = f"{kv} {config.n_heads}/{config.n_kv_heads} heads of {head_dim} n={n} at {start} splits {n_splits}"
    return Case(
        name + f" scale {scale:g}" * (scale != 1) + " to halves" * (form == "split"), run, twin, tolerance_of(kv)
    )


# (start, splits) of one new token: first position, less and more than a tile, whole tiles, more splits than tiles
PLACES = ((0, 1), (0, 3), (62, 2), (63, 2), (64, 2), (200, 1), (200, 3), (319, 5), (319, 16))
CASES = [case(kv, heads(8, 4, 2, 16), 1, start, splits) for kv in KV_TYPES for start, splits in PLACES]
CASES += [
    case(kv, heads(8, n_heads, n_kv_heads, head_dim), 1, 100, 2)
    for kv in KV_TYPES
    for n_heads, n_kv_heads, head_dim in (
        (1, 1, 8), (2, 2, 64), (4, 1, 128), (8, 1, 32), (9, 3, 48), (11, 1, 20), (2, 1, 100), (2, 1, 256), (1, 1, 1024),
    )
]  # fmt: skip
CASES += [
    case(kv, heads(8, 4, 2, 24), n, start, splits)
    for kv in KV_TYPES
    for n, start, splits in ((2, 0, 1), (5, 63, 1), (7, 130, 3), (33, 0, 1), (70, 10, 2))
]
CASES += [case("float", heads(8, 2, 1, 16), 1, 150, 2, scale=30.0)]  # softmax that is nearly one key
CASES += [case("__half", heads(8, 6, 2, 20), n, 90, 3, form="split") for n in (1, 4, 11)]
SMALL = [case(kv, heads(8, n_heads, 1, 10), 1, 130, 2, spare=0) for kv in KV_TYPES for n_heads in (1, 2, 3, 8)]
SMALL += [case("__half", heads(8, 2, 1, 80), 1, 70, 2)]  # threads are left over
SMALL += [case("__half", heads(8, 2, 1, 36), 1, 70, 2, form="split")]
SMALL += [case("float", heads(8, 3, 1, 16), 5, 62, 3), case("float", heads(8, 2, 1, 4), 1, 3, 4)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
