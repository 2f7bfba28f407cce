"""kernels/wkv7.cu against backends/cpu/wkv7.py, and that against the matrices that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from llamagpu.backends.cpu.wkv7 import wkv7
from llamagpu.backends.cuda import wkv_launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded, upload_vector
from tests.kernels.harness import (
    TOLERANCE_F32,
    Arrays,
    Case,
    Floats,
    Written,
    download_rows,
    error,
    random,
    twin_tests,
    unwritten,
    upload_rows,
)
from tests.kernels.states import StateRing, shares

EPS = 64e-5


@dataclass(frozen=True)
class Inputs:
    """vectors: r, w, k, v, a, g. mix: v_mix and v_first, None in the first layer. constants: k_k, k_a, r_k."""

    vectors: tuple[Floats, Floats, Floats, Floats, Floats, Floats]
    mix: tuple[Floats, Floats] | None
    constants: tuple[Floats, Floats, Floats]
    norm: tuple[Floats, Floats]
    state: Floats

    def twin(self) -> Arrays:
        v_mix, v_first = self.mix or (None, None)
        y, state, v = wkv7(*self.vectors, v_mix, v_first, *self.constants, *self.norm, EPS, self.state)
        return {"y": y, "state": state, "v_first": v if self.mix is None else self.mix[1]}


def inputs(n_heads: int, head_dim: int, n: int, is_first: bool, zero_key: bool = False) -> Inputs:
    dim = n_heads * head_dim
    r, k, v, g, first = (random(n, dim, seed=seed) for seed in range(1, 6))
    w: Floats = np.exp(-np.exp(random(n, dim, seed=6) - 1))
    a, mix = shares(n, dim, seed=7), shares(n, dim, seed=8)
    if zero_key:
        k[n // 2] = 0
    constants = random(dim, seed=9), random(dim, seed=10), random(dim, seed=11)
    norm = random(dim, seed=12), random(dim, seed=13)
    state = random(n_heads, head_dim, head_dim, seed=14)
    return Inputs((r, w, k, v, a, g), None if is_first else (mix, first), constants, norm, state)


def run_on(device: Device, given: Inputs, position: int, sizes: list[int], form: str, permuted: bool) -> Arrays:
    """Calls of so many tokens each, one after the other."""
    n_heads, head_dim = given.state.shape[:2]
    dim, first, ys, firsts, ring = n_heads * head_dim, 0, [], [], StateRing(device, given.state, position)
    k_k, k_a, r_k = (upload_vector(device, x) for x in given.constants)
    norm = upload_vector(device, given.norm[0]), upload_vector(device, given.norm[1])
    for n in sizes:
        written = Written(device, form, n, dim, permuted)
        r, w, k, v, a, g = (upload_rows(device, x[first : first + n]) for x in given.vectors)
        v_mix, v_first = None, unwritten(device, n, padded(dim))
        if given.mix:
            v_mix, v_first = (upload_rows(device, x[first : first + n]) for x in given.mix)
        wkv_launches.wkv7(
            device, r, w, k, v, a, g, v_mix, v_first, k_k, k_a, r_k, norm,
            n, n_heads, head_dim, EPS, ring.state, ring.slot_step, ring.position, written.target,
        )  # fmt: skip
        ys.append(written.read())
        firsts.append(download_rows(device, v_first, dim))
        new = ring.read()
        ring.advance()
        first += n
    return {"y": np.concatenate(ys), "state": new, "v_first": np.concatenate(firsts)}


def case(
    n_heads: int,
    head_dim: int,
    n: int,
    position: int = 0,
    is_first: bool = False,
    form: str = "rows",
    permuted: bool = False,
    zero_key: bool = False,
) -> Case:
    given = inputs(n_heads, head_dim, n, is_first, zero_key)
    name = f"{n_heads} heads of {head_dim} x{n} at {position} {form}" + " permuted" * permuted
    name += " first layer" * is_first + " zero key" * zero_key
    return Case(name, lambda device: run_on(device, given, position, [n], form, permuted), given.twin, TOLERANCE_F32)


PLACES = ((1, 0), (2, 7), (3, 6), (8, 5), (9, 15), (17, 3))  # tokens, position: several slots, the same one twice
CASES = [case(2, head_dim, *place) for head_dim in (8, 16, 30, 64, 96, 128) for place in PLACES]
CASES += [case(2, head_dim, n, 7, is_first=True) for head_dim in (8, 64, 100, 128) for n in (1, 9)]
CASES += [case(3, head_dim, n, 12) for head_dim in (1, 2, 33, 50, 100) for n in (1, 10)]
CASES += [case(3, 30, n, 2, first, "split", permuted) for n, first, permuted in ((1, True, True), (4, False, False))]
CASES += [case(2, 20, n, zero_key=True) for n in (1, 5)]
SMALL = [case(2, 8, 3, 6), case(2, 30, 9, 7, True), case(1, 32, 1, 3), case(2, 34, 2, 1), case(1, 64, 9, 15)]
SMALL += [case(1, 100, 1, 4, True, "split", True), case(1, 128, 9), case(1, 66, 10, 5), case(1, 10, 2, zero_key=True)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


@pytest.mark.parametrize("is_first", [True, False])
def test_the_twin_is_a_product_of_matrices(is_first: bool) -> None:
    """S times (diag(w) - kk b^T) plus v k^T, written out in float64."""
    n_heads, head_dim, n = 2, 6, 7
    given = inputs(n_heads, head_dim, n, is_first)
    shape = (n, n_heads, head_dim)
    r, w, k, v, a, g = (x.astype(np.float64).reshape(shape) for x in given.vectors)
    k_k, k_a, r_k, weight, bias = (x.astype(np.float64).reshape(shape[1:]) for x in (*given.constants, *given.norm))
    if given.mix:
        mix, first = (x.reshape(shape) for x in given.mix)
        v = v * (1 - mix) + first * mix
    got = given.twin()
    for head in range(n_heads):
        s = given.state[head].astype(np.float64)
        for t in range(n):
            kk = k[t, head] * k_k[head]
            kk = kk / np.linalg.norm(kk)
            key = k[t, head] * (1 - k_a[head]) + k[t, head] * a[t, head] * k_a[head]
            s = s @ (np.diag(w[t, head]) - np.outer(kk, kk * a[t, head])) + np.outer(v[t, head], key)
            y = s @ r[t, head]
            y = (y - y.mean()) / np.sqrt(y.var() + EPS) * weight[head] + bias[head]
            y = y + (r[t, head] * key * r_k[head]).sum() * v[t, head]
            assert error(got["y"].reshape(shape)[t, head], y * g[t, head]) <= 1e-10
        assert error(got["state"][head], s) <= 1e-12


@pytest.mark.parametrize("is_first", [True, False])
def test_one_by_one_is_the_same_as_together(is_first: bool, device: Device) -> None:
    given = inputs(2, 34, 19, is_first)
    together, apart = (run_on(device, given, 3, sizes, "rows", False) for sizes in ([19], [1] * 9 + [8, 2]))
    for name, values in together.items():
        assert error(apart[name], values) <= TOLERANCE_F32
