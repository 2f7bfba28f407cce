"""kernels/rope.cu against backends/cpu/rope.py and the copy into the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.kv_int8 import quantize_rows
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import KV_TYPES
from llamagpu.backends.cuda.matrix import padded, pair_order, upload_vector
from llamagpu.config import ModelConfig
from tests.kernels.harness import (
    Arrays,
    Case,
    appended,
    download_rows,
    random,
    tolerance_of,
    twin_tests,
    unwritten,
    upload_rows,
)
from tests.kernels.test_qkv_rope import DTYPES, heads


def case(
    kv: str, config: ModelConfig, n: int, start: int, capacity: int = 40, biased: bool = False, normed: bool = False
) -> Case:  # fmt: skip
    q, k, v = random(n, config.q_dim), random(n, config.kv_dim, seed=1), random(n, config.kv_dim, seed=2)
    head_dim, order = config.head_dim, pair_order(config)
    bias = random(len(order), seed=3)
    norms = [random(head_dim, seed=4 + i) for i in range(2)]

    def run(device: Device) -> Arrays:
        angles = device.upload(np.concatenate(rope_angles(0, capacity, config), axis=1))
        position = device.upload(np.asarray([start], np.int32))
        keys = unwritten(device, config.n_kv_heads, capacity, padded(head_dim), dtype=DTYPES[kv])
        values = unwritten(device, config.n_kv_heads, capacity, padded(head_dim), dtype=DTYPES[kv])
        turned = unwritten(device, n, padded(config.q_dim))
        qkv = upload_rows(device, np.concatenate([q, k, v], axis=1)[:, order])
        biases = device.upload(bias[order]) if biased else None
        of_heads = (upload_vector(device, norms[0]), upload_vector(device, norms[1])) if normed else None
        scales = [unwritten(device, config.n_kv_heads, capacity) for _ in range(2)]
        of_cache = (scales[0], scales[1]) if kv == "signed char" else None
        launches.rope_append(device, qkv, biases, of_heads, angles, position, n, config, keys, values, of_cache, turned)
        out = {"q": download_rows(device, turned, config.q_dim)}
        for name, cache, of_rows in (("keys", keys, scales[0]), ("values", values, scales[1])):
            out[name] = appended(device, cache, start, n, head_dim)
            if of_cache:
                host = device.download(of_rows)
                assert np.isnan(np.delete(host, np.s_[start : start + n], axis=1)).all(), "a scale of another position"
                out[f"scales of {name}"] = host[:, start : start + n]
        return out

    def twin() -> Arrays:
        cos, sin = rope_angles(start, n, config)
        whole = np.concatenate([q, k, v], axis=1) + bias * biased
        parts = np.split(whole, [config.q_dim, config.q_dim + config.kv_dim], axis=1)
        by_head = (part.reshape(n, -1, head_dim) for part in parts)
        turned, keys, values = next(by_head), next(by_head), next(by_head)
        if normed:
            turned, keys = (rmsnorm(x, norm, config.norm_eps) for x, norm in zip((turned, keys), norms, strict=True))
        turned, keys = rope(turned, cos, sin, config.rope_layout), rope(keys, cos, sin, config.rope_layout)
        keys, values = keys.transpose(1, 0, 2), values.transpose(1, 0, 2)
        if kv == "signed char":
            out: dict[str, NDArray[Any]] = {"q": turned.reshape(n, -1)}
            out["keys"], out["scales of keys"] = quantize_rows(keys)
            out["values"], out["scales of values"] = quantize_rows(values)
            return out
        return {"q": turned.reshape(n, -1), "keys": keys, "values": values}

    shape = f"{config.n_heads}/{config.n_kv_heads} heads of {head_dim} {config.rope_layout}"
    return Case(f"{kv} {shape} n={n} at {start}{' bias' * biased}{' norms' * normed}", run, twin, tolerance_of(kv))


CASES = [
    case(kv, heads(8, *shape, layout), n, start)
    for kv in KV_TYPES
    for shape in ((1, 1, 2), (3, 1, 10), (4, 2, 64), (9, 3, 18))
    for layout in ("interleaved", "half_split")
    for n, start in ((9, 0), (11, 29))
]
CASES += [case("float", heads(8, 3, 1, 10, "half_split"), 10, 3, biased=True)]
CASES += [
    case("float", heads(8, *shape, "half_split"), n, 3, biased=n == 9, normed=True)
    for shape in ((3, 1, 10), (4, 2, 64), (2, 2, 128), (5, 1, 2))
    for n in (1, 9)
]
SMALL = [case(kv, heads(8, 3, 1, 10, "half_split"), 9, 31) for kv in KV_TYPES] + [
    case("signed char", heads(8, 3, 2, 66), 2, 5, biased=True, normed=True),
    case("float", heads(8, 5, 2, 38), 2, 0, biased=True),
    case("float", heads(8, 3, 1, 66, "half_split"), 2, 5, normed=True),
]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
