"""kernels/attention_window.cu, and what kernels/rope.cu writes for it, against backends/cpu/attention_window.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cpu.attention_window import Ring, attention_window
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cpu.rope import rope, rope_angles
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded, pair_order, upload_vector
from llamagpu.config import ModelConfig
from tests.kernels.harness import (
    Arrays,
    Case,
    Written,
    download_rows,
    random,
    tolerance_of,
    twin_tests,
    unwritten,
    upload_rows,
)
from tests.kernels.test_qkv_rope import DTYPES, FLOAT_KV, heads

Floats = NDArray[np.float32]


def side_by_side(x: NDArray[Any], config: ModelConfig) -> NDArray[Any]:
    """Elements of heads [..., head_dim] with those of a pair next to each other."""
    half = config.head_dim // 2
    if config.rope_layout == "interleaved":
        return x
    return np.stack([x[..., :half], x[..., half:]], axis=-1).reshape(x.shape)


def angles(device: Device, ring: Ring, config: ModelConfig) -> object:
    return device.upload(np.concatenate(rope_angles(0, ring.n_kept, config), axis=1))


def turned_in_cache(q: Floats, start: int, ring: Ring, config: ModelConfig) -> Floats:
    """q [n, n_heads, head_dim] at the positions that its tokens have in the cache."""
    positions = np.minimum(np.arange(start, start + len(q)), ring.n_kept - 1)
    cos, sin = rope_angles(0, ring.n_kept, config)
    return rope(q, cos[positions], sin[positions], config.rope_layout)


def case(
    kv: str, config: ModelConfig, n: int, start: int, n_splits: int, window: int, sinks: int, scale: float = 1.0,
    form: str = "rows",
) -> Case:  # fmt: skip
    """Places of the ring that no token sees are NaN. The scale makes a softmax that is nearly one key."""
    ring, head_dim = Ring(window, sinks), config.head_dim
    seen = ring.seen(start, start + n)
    q = random(n, config.n_heads, head_dim) * np.float32(scale)
    rows: list[NDArray[Any]] = [
        random(config.n_kv_heads, len(seen), head_dim, seed=i).astype(DTYPES[kv]) for i in (1, 2)
    ]
    keys, values = rows

    def kept(device: Device, rows: NDArray[Any]) -> object:
        whole: NDArray[Any] = np.full((config.n_kv_heads, ring.n_places, padded(head_dim)), np.nan, DTYPES[kv])
        whole[:, ring.places(seen)] = 0
        whole[:, ring.places(seen), :head_dim] = rows
        return device.upload(whole)

    def run(device: Device) -> Arrays:
        out = Written(device, form, n, config.q_dim, permuted=form == "split")
        partial = unwritten(device, n_splits * n * config.n_heads, padded(head_dim))
        stats = unwritten(device, n_splits * n * config.n_heads, 2)
        queries = side_by_side(turned_in_cache(q, start, ring, config), config).astype(np.float32)
        launches.attention_window(
            device, upload_rows(device, queries.reshape(n, -1)), kept(device, side_by_side(keys, config)),
            kept(device, values), angles(device, ring, config), device.upload(np.asarray([start], np.int32)), n,
            n_splits, config, ring, partial, stats,
        )  # fmt: skip
        launches.attention_merge(device, partial, stats, n, n_splits, config, out.target)
        return {"out": out.read()}

    def twin() -> Arrays:
        return {"out": attention_window(q, keys.astype(np.float32), values.astype(np.float32), start, ring, config)}

    name = f"{kv} {config.n_heads}/{config.n_kv_heads} heads of {head_dim} {config.rope_layout} n={n} at {start}"
    name += f" window {window} sinks {sinks} splits {n_splits}" + f" scale {scale:g}" * (scale != 1)
    return Case(name + " to halves" * (form == "split"), run, twin, tolerance_of(kv))


def append(
    kv: str, config: ModelConfig, n: int, start: int, window: int, sinks: int, biased: bool = False,
    normed: bool = False,
) -> Case:  # fmt: skip
    """What rope_append does in a window: q turned, k and v as they are, in the places of the ring."""
    ring, head_dim = Ring(window, sinks), config.head_dim
    q, k, v = random(n, config.q_dim), random(n, config.kv_dim, seed=1), random(n, config.kv_dim, seed=2)
    order, norms = pair_order(config), [random(head_dim, seed=4 + i) for i in range(2)]
    bias = random(len(order), seed=3) * np.float32(biased)
    places = ring.places(np.arange(start, start + n))

    def run(device: Device) -> Arrays:
        shape = (config.n_kv_heads, ring.n_places, padded(head_dim))
        keys, values = (unwritten(device, *shape, dtype=DTYPES[kv]) for _ in range(2))
        turned = unwritten(device, n, padded(config.q_dim))
        qkv = upload_rows(device, np.concatenate([q, k, v], axis=1)[:, order])
        of_heads = (upload_vector(device, norms[0]), upload_vector(device, norms[1])) if normed else None
        launches.rope_append(
            device, qkv, device.upload(bias[order]) if biased else None, of_heads, angles(device, ring, config),
            device.upload(np.asarray([start], np.int32)), n, config, keys, values, None, turned, ring,
        )  # fmt: skip
        out = {"q": download_rows(device, turned, config.q_dim)}
        for name, cache in (("keys", keys), ("values", values)):
            host = download_rows(device, cache, head_dim)
            assert np.isnan(np.delete(host, places, axis=1)).all(), "wrote to the place of another token"
            out[name] = host[:, places]
        return out

    def twin() -> Arrays:
        whole = np.concatenate([q, k, v], axis=1) + bias
        parts = np.split(whole, [config.q_dim, config.q_dim + config.kv_dim], axis=1)
        queries, keys, values = (part.reshape(n, -1, head_dim) for part in parts)
        if normed:
            queries, keys = (rmsnorm(x, w, config.norm_eps) for x, w in zip((queries, keys), norms, strict=True))
        turned = side_by_side(turned_in_cache(queries, start, ring, config), config)
        keys = side_by_side(keys, config)
        return {"q": turned.reshape(n, -1), "keys": keys.transpose(1, 0, 2), "values": values.transpose(1, 0, 2)}

    name = f"append {kv} {config.n_heads}/{config.n_kv_heads} heads of {head_dim} {config.rope_layout} n={n} at {start}"
    name += f" window {window} sinks {sinks}" + " bias" * biased + " norms" * normed
    return Case(name, run, twin, tolerance_of(kv))


# (start, window, sinks): empty, filling, just full, past it; round the ring (W + 511 places), with and without sinks
PLACES = ((0, 8, 2), (6, 8, 2), (9, 8, 2), (10, 8, 2), (1200, 8, 2), (521, 9, 0), (520, 9, 0), (99, 1, 0), (77, 1, 3))
CASES = [
    case(kv, heads(8, 4, 2, 16, "half_split" if sinks else "interleaved"), 1, start, 1, window, sinks)
    for kv in FLOAT_KV
    for start, window, sinks in PLACES
]
CASES += [
    case(kv, heads(8, 4, 2, 24), n, start, splits, window, sinks)
    for kv in FLOAT_KV
    for n, start, splits, window, sinks in (
        (5, 0, 1, 100, 4), (5, 97, 2, 100, 4), (33, 1000, 1, 20, 4), (9, 1500, 3, 200, 0), (12, 3, 2, 6, 7),
        (1, 5000, 2, 63, 1), (1, 5000, 2, 64, 0), (1, 5000, 16, 300, 4), (1, 520 * 9 + 3, 3, 190, 2), (70, 40, 1, 8, 4),
    )
]  # fmt: skip
CASES += [
    case(kv, heads(8, n_heads, n_kv_heads, head_dim, layout), 2, 700, 2, 130, 4)
    for kv in FLOAT_KV
    for layout in ("interleaved", "half_split")
    for n_heads, n_kv_heads, head_dim in (
        (1, 1, 8), (2, 2, 64), (4, 1, 128), (8, 1, 32), (9, 3, 48), (7, 1, 20), (2, 1, 100), (2, 1, 256), (3, 3, 2),
        (11, 1, 10), (18, 2, 12),
    )
]  # fmt: skip
CASES += [case("float", heads(8, 2, 1, 16), 1, 800, 2, 150, 4, scale=30.0)]
CASES += [case("__half", heads(8, 6, 2, 20), n, 900, 3, 160, 4, form="split") for n in (1, 3)]
CASES += [
    append(kv, heads(8, *shape, layout), n, start, window, sinks)
    for kv in FLOAT_KV
    for shape in ((1, 1, 2), (3, 1, 10), (9, 3, 18))
    for layout in ("interleaved", "half_split")
    for n, start, window, sinks in ((1, 0, 8, 2), (9, 3, 5, 4), (11, 1030, 8, 0), (1, 2000, 3, 1))
]
CASES += [
    append("float", heads(8, 3, 1, 10, "half_split"), n, 516, 5, 2, biased=True, normed=normed)
    for n in (1, 9)
    for normed in (False, True)
]
SMALL = [case(kv, heads(8, n_heads, 1, 10), 2, 130, 2, 90, 2) for kv in FLOAT_KV for n_heads in (1, 2, 3, 8)]
SMALL += [case("__half", heads(8, 2, 1, 80), 1, 70, 2, 66, 3), case("float", heads(8, 9, 1, 4), 3, 3, 4, 2, 1)]
SMALL += [
    case("float", heads(8, 2, 1, 16, "half_split"), 3, 515, 1, 4, 2),
    case("__half", heads(8, 1, 1, 256), 1, 600, 1, 80, 4),
]
SMALL += [append(kv, heads(8, 3, 1, 10, "half_split"), 3, 515, 4, 2, normed=kv == "float") for kv in FLOAT_KV]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
