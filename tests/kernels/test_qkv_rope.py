"""kernels/qkv_rope.cu against backends/cpu: linear, rope and the copy into the cache."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.linear import linear
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import KV_TYPES, WEIGHTS
from llamagpu.backends.cuda.matrix import padded, upload_matrix
from llamagpu.config import ModelConfig, RopeLayout
from tests.kernels.harness import (
    Arrays,
    Case,
    appended,
    download_rows,
    random,
    random_tensor,
    tolerance_of,
    twin_tests,
    unwritten,
    upload_rows,
    widened,
)

DTYPES: dict[str, type] = {"float": np.float32, "__half": np.float16}


def heads(dim: int, n_heads: int, n_kv_heads: int, head_dim: int, layout: RopeLayout = "interleaved") -> ModelConfig:
    return ModelConfig("llama", dim, 1, 1, n_heads, n_kv_heads, head_dim, 1, 1, rope_layout=layout)


def case(kind: str, kv: str, config: ModelConfig, n: int, start: int, capacity: int = 44) -> Case:
    q_dim, kv_dim, head_dim = config.q_dim, config.kv_dim, config.head_dim
    group_size = 32 if kind == "Q8" else 16
    wq, wk, wv = (
        random_tensor(kind, rows, config.dim, seed=i, group_size=group_size)
        for i, rows in enumerate((q_dim, kv_dim, kv_dim))
    )
    x = random(n, config.dim, seed=3)
    dtype = DTYPES[kv]

    def run(device: Device) -> Arrays:
        cos, sin = rope_angles(0, capacity, head_dim, config.rope_theta)
        angles = device.upload(np.concatenate([cos, sin], axis=1))
        position = device.upload(np.asarray([start], np.int32))
        keys = unwritten(device, config.n_kv_heads, capacity, padded(head_dim), dtype=dtype)
        values = unwritten(device, config.n_kv_heads, capacity, padded(head_dim), dtype=dtype)
        q = unwritten(device, n, padded(q_dim))
        weights = upload_matrix(device, wq), upload_matrix(device, wk), upload_matrix(device, wv)
        launches.qkv_rope(
            device, *weights, upload_rows(device, x), angles, position, n, config, keys, values, q
        )  # fmt: skip
        out = {"q": download_rows(device, q, q_dim)}
        for name, cache in (("keys", keys), ("values", values)):
            out[name] = appended(device, cache, start, n, head_dim)
        return out

    def twin() -> Arrays:
        cos, sin = rope_angles(start, n, head_dim, config.rope_theta)
        q, k, v = (linear(x, widened(w)).reshape(n, -1, head_dim) for w in (wq, wk, wv))
        q, k = rope(q, cos, sin, config.rope_layout), rope(k, cos, sin, config.rope_layout)
        return {"q": q.reshape(n, -1), "keys": k.transpose(1, 0, 2), "values": v.transpose(1, 0, 2)}

    shape = f"{config.n_heads}/{config.n_kv_heads} heads of {head_dim} dim {config.dim} {config.rope_layout}"
    return Case(f"{kind} {kv} {shape} n={n} at {start}", run, twin, tolerance_of(kind, kv))


def dim_of(kind: str) -> int:
    return 64 if kind == "Q8" else 36


CASES = [
    case(kind, kv, heads(dim_of(kind), 4, 2, 6, "half_split" if n % 2 else "interleaved"), n, start=n * 3)
    for kind in WEIGHTS
    for kv in KV_TYPES
    for n in (1, 2, 3, 4, 5, 6, 7, 8, 11)
]
CASES += [
    case("F16", "__half", heads(dim, *shape, layout), n, start)
    for dim, shape in ((128, (2, 1, 64)), (17, (3, 3, 10)), (48, (5, 1, 2)))
    for layout in ("interleaved", "half_split")
    for n, start in ((1, 43), (1, 0), (9, 35))
]
SMALL = [case(kind, kv, heads(32, 2, 1, 6, "half_split"), 3, 2) for kind in WEIGHTS for kv in KV_TYPES]
SMALL += [case("F16", "float", heads(20, 2, 1, 4), 10, 1)]
SMALL += [case("F16", "float", heads(20, 3, 1, 6), 1, 43)]  # warps are left over
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
