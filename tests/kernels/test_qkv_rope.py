"""kernels/qkv_rope.cu against backends/cpu: linear, rope and the copy into the cache."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.linear import linear
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import FLOATS, TILES, WEIGHTS
from llamagpu.backends.cuda.matrix import padded, pair_order, upload_qkv
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
    upload_vectors,
    widened,
)
from tests.kernels.test_linear import EPS, squares_of

DTYPES: dict[str, type] = {"float": np.float32, "__half": np.float16, "signed char": np.int8}
FLOAT_KV = ("float", "__half")  # rope.cu alone makes 8 bits


def heads(dim: int, n_heads: int, n_kv_heads: int, head_dim: int, layout: RopeLayout = "interleaved") -> ModelConfig:
    return ModelConfig("llama", dim, 1, 1, n_heads, n_kv_heads, head_dim, 1, 1, rope_layout=layout)


def case(
    kind: str, kv: str, config: ModelConfig, n: int, start: int, capacity: int = 44, n_squares: int = 0,
    biased: bool = False,
) -> Case:  # fmt: skip
    head_dim, widths = config.head_dim, (config.q_dim, config.kv_dim, config.kv_dim)
    wq, wk, wv = (random_tensor(kind, rows, config.dim, seed=i) for i, rows in enumerate(widths))
    x, norm = random(n, config.dim, seed=3), random(config.dim, seed=4)
    biases = [random(width, seed=5 + i) * np.float32(biased) for i, width in enumerate(widths)]
    dtype = DTYPES[kv]

    def run(device: Device) -> Arrays:
        cos, sin = rope_angles(0, capacity, config)
        angles = device.upload(np.concatenate([cos, sin], axis=1))
        position = device.upload(np.asarray([start], np.int32))
        keys = unwritten(device, config.n_kv_heads, capacity, padded(head_dim), dtype=dtype)
        values = unwritten(device, config.n_kv_heads, capacity, padded(head_dim), dtype=dtype)
        q = unwritten(device, n, padded(config.q_dim))
        (part,) = upload_qkv(device, (wq, wk, wv), config).parts
        squares = squares_of(x, n_squares) if n_squares else None
        vectors = upload_vectors(device, x * norm if n_squares else x, part.matrix, squares, EPS)
        bias = device.upload(np.concatenate(biases)[pair_order(config)]) if biased else None
        launches.qkv_rope(device, part.matrix, vectors, bias, angles, position, n, config, keys, values, q)
        out = {"q": download_rows(device, q, config.q_dim)}
        for name, cache in (("keys", keys), ("values", values)):
            out[name] = appended(device, cache, start, n, head_dim)
        return out

    def twin() -> Arrays:
        cos, sin = rope_angles(start, n, config)
        h = rmsnorm(x, norm, EPS) if n_squares else x
        products = (linear(h, widened(w)) + bias for w, bias in zip((wq, wk, wv), biases, strict=True))
        q, k, v = (product.reshape(n, -1, head_dim) for product in products)
        q, k = rope(q, cos, sin, config.rope_layout), rope(k, cos, sin, config.rope_layout)
        return {"q": q.reshape(n, -1), "keys": k.transpose(1, 0, 2), "values": v.transpose(1, 0, 2)}

    shape = f"{config.n_heads}/{config.n_kv_heads} heads of {head_dim} dim {config.dim} {config.rope_layout}"
    how = f" normed {n_squares}" * bool(n_squares) + " bias" * biased
    return Case(f"{kind} {kv} {shape} n={n} at {start}{how}", run, twin, tolerance_of(kind, kv))


CASES = [
    case(kind, kv, heads(36, 4, 2, 6, "half_split" if n % 2 else "interleaved"), n, start=n * 3)
    for kind in FLOATS
    for kv in (FLOAT_KV if kind != "BF16" else ("__half",))
    for n in (1, 2, 3, 4, 5, 6, 7, 8, 11)
]
CASES += [
    case(kind, "__half", heads(140, 4, 2, 6, "half_split" if n % 2 else "interleaved"), n, start=n * 3)
    for kind in TILES
    for n in (1, 2, 4, 5, 8, 11)
]
CASES += [
    case(kind, "__half", heads(dim, *shape, layout), n, start)
    for kind in ("F16", "Q4")
    for dim, shape in ((128, (2, 1, 64)), (17, (3, 3, 10)), (48, (5, 1, 2)))
    for layout in ("interleaved", "half_split")
    for n, start in ((1, 43), (1, 0), (9, 35))
]
CASES += [
    case(kind, "__half", heads(40, 3, 1, 10, "half_split"), n, 5, n_squares=5, biased=True)
    for kind in WEIGHTS
    for n in (1, 7)
]
SMALL = [case(kind, kv, heads(32, 2, 1, 6, "half_split"), 3, 2) for kind in ("F32", "F16") for kv in FLOAT_KV]
SMALL += [case(kind, "__half", heads(40, 2, 1, 6), 3, 2, biased=True) for kind in ("BF16", "Q4Offset", "Q8Offset")]
SMALL += [case("F16", "float", heads(20, 2, 1, 4), 10, 1)]
SMALL += [case("F16", "float", heads(20, 3, 1, 6), 1, 43, biased=True)]  # warps are left over
SMALL += [case(kind, "__half", heads(140, 3, 1, 6, "half_split"), 3, 2, n_squares=4) for kind in ("Q4", "Q8")]
SMALL += [case("Q4", "__half", heads(20, 6, 1, 4), 10, 1, biased=True)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
