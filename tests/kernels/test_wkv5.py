"""kernels/wkv5.cu against backends/cpu/wkv5.py, and that against the sum that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from llamagpu.backends.cpu.wkv5 import wkv5
from llamagpu.backends.cuda import wkv_launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded, upload_vector
from tests.kernels.harness import TOLERANCE_F32, Arrays, Case, Floats, Written, error, random, twin_tests, upload_rows
from tests.kernels.states import StateRing

EPS = 64e-5


@dataclass(frozen=True)
class Inputs:
    """vectors: r, k, v, g."""

    vectors: tuple[Floats, Floats, Floats, Floats]
    decay: Floats
    bonus: Floats
    norm: tuple[Floats, Floats]
    state: Floats

    def twin(self) -> Arrays:
        y, state = wkv5(*self.vectors, self.decay, self.bonus, *self.norm, EPS, self.state)
        return {"y": y, "state": state}


def inputs(n_heads: int, head_dim: int, n: int, per_token: bool) -> Inputs:
    dim = n_heads * head_dim
    r, k, v, g = (random(n, dim, seed=seed) for seed in range(1, 5))
    decay: Floats = np.exp(-np.exp(random(n, dim, seed=5) - 1 if per_token else random(dim, seed=5) - 1))
    state = random(n_heads, head_dim, head_dim, seed=9)
    return Inputs((r, k, v, g), decay, random(dim, seed=6), (random(dim, seed=7), random(dim, seed=8)), state)


def run_on(device: Device, given: Inputs, position: int, sizes: list[int], form: str, permuted: bool) -> Arrays:
    """Calls of so many tokens each, one after the other."""
    n_heads, head_dim = given.state.shape[:2]
    first, ys, ring, per_token = 0, [], StateRing(device, given.state, position), given.decay.ndim == 2
    bonus, *norm = (upload_vector(device, x) for x in (given.bonus, *given.norm))
    for n in sizes:
        written = Written(device, form, n, n_heads * head_dim, permuted)
        r, k, v, g = (upload_rows(device, x[first : first + n]) for x in given.vectors)
        decay = upload_rows(device, given.decay[first : first + n] if per_token else given.decay[None])
        wkv_launches.wkv5(
            device, r, k, v, g, decay, padded(n_heads * head_dim) * per_token, bonus, (norm[0], norm[1]),
            n, n_heads, head_dim, EPS, ring.state, ring.slot_step, ring.position, written.target,
        )  # fmt: skip
        ys.append(written.read())
        new = ring.read()
        ring.advance()
        first += n
    return {"y": np.concatenate(ys), "state": new}


def case(
    n_heads: int,
    head_dim: int,
    n: int,
    position: int = 0,
    per_token: bool = True,
    form: str = "rows",
    permuted: bool = False,
) -> Case:
    given = inputs(n_heads, head_dim, n, per_token)
    name = f"{n_heads} heads of {head_dim} x{n} at {position} {form}" + " permuted" * permuted
    name += "" if per_token else " one decay"
    return Case(name, lambda device: run_on(device, given, position, [n], form, permuted), given.twin, TOLERANCE_F32)


PLACES = ((1, 0), (2, 7), (3, 6), (8, 5), (9, 15), (17, 3))  # tokens, position: several slots, the same one twice
CASES = [case(2, head_dim, *place) for head_dim in (8, 16, 30, 64, 96, 128) for place in PLACES]
CASES += [case(2, head_dim, n, 7, per_token=False) for head_dim in (8, 64, 100) for n in (1, 9)]
CASES += [case(3, head_dim, n, 12) for head_dim in (1, 2, 33, 50, 100) for n in (1, 10)]
CASES += [
    case(3, 30, n, 2, per_token, "split", permuted) for n, per_token, permuted in ((1, False, True), (4, True, False))
]
SMALL = [case(2, 8, 3, 6), case(2, 30, 9, 7, False), case(1, 32, 1, 3), case(2, 34, 2, 1), case(1, 64, 9, 15)]
SMALL += [case(1, 100, 1, 4, False, "split", True), case(1, 128, 9), case(1, 66, 10, 5)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


@pytest.mark.parametrize("per_token", [True, False])
def test_the_twin_is_the_sum_over_all_tokens_before(per_token: bool) -> None:
    n_heads, head_dim, n = 2, 6, 7
    given = inputs(n_heads, head_dim, n, per_token)
    shape = (n, n_heads, head_dim)
    r, k, v, g = (x.astype(np.float64).reshape(shape) for x in given.vectors)
    w = np.broadcast_to(given.decay, (n, n_heads * head_dim)).astype(np.float64).reshape(shape)
    bonus, weight, bias = (x.astype(np.float64).reshape(shape[1:]) for x in (given.bonus, *given.norm))
    got = given.twin()
    for head in range(n_heads):
        for t in range(n):
            y = given.state[head] @ (r[t, head] * w[:t, head].prod(axis=0))
            y += sum(r[t, head] * w[s + 1 : t, head].prod(axis=0) @ k[s, head] * v[s, head] for s in range(t))
            y += r[t, head] * bonus[head] @ k[t, head] * v[t, head]
            normed = (y - y.mean()) / np.sqrt(y.var() + EPS) * weight[head] + bias[head]
            assert error(got["y"].reshape(shape)[t, head], normed * g[t, head]) <= 1e-10
        s = given.state[head] * w[:, head].prod(axis=0)
        s = s + sum(np.outer(v[t, head], k[t, head] * w[t + 1 :, head].prod(axis=0)) for t in range(n))
        assert error(got["state"][head], s) <= 1e-12


@pytest.mark.parametrize("per_token", [True, False])
def test_one_by_one_is_the_same_as_together(per_token: bool, device: Device) -> None:
    given = inputs(2, 34, 19, per_token)
    together, apart = (run_on(device, given, 3, sizes, "rows", False) for sizes in ([19], [1] * 9 + [8, 2]))
    for name, values in together.items():
        assert error(apart[name], values) <= TOLERANCE_F32
