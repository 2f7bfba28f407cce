"""kernels/wkv4.cu against backends/cpu/wkv4.py, and that against the sum that it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from llamagpu.backends.cpu.wkv4 import wkv4
from llamagpu.backends.cuda import wkv_launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import upload_vector
from tests.kernels.harness import TOLERANCE_F32, Arrays, Case, Floats, Written, error, random, twin_tests, upload_rows
from tests.kernels.states import StateRing, shares

EMPTY = -1e30  # the exponent of a state that has seen nothing
Inputs = tuple[Floats, Floats, Floats, Floats, Floats, Floats]


def inputs(dim: int, n: int, largest_key: float = 2.0, empty: bool = True) -> Inputs:
    """r, k, v, decay, bonus, state."""
    k: Floats = np.clip(random(n, dim, seed=2), -1, 1) * np.float32(largest_key)
    state: Floats = np.stack([random(dim, seed=4), np.abs(random(dim, seed=5)) + 1, random(dim, seed=6)])
    if empty:
        state = np.stack([np.zeros(dim), np.zeros(dim), np.full(dim, EMPTY)]).astype(np.float32)
    decay: Floats = -np.exp(random(dim, seed=7))
    return shares(n, dim, seed=1), k, random(n, dim, seed=3), decay, random(dim, seed=8), state


def run_on(device: Device, given: Inputs, position: int, sizes: list[int], form: str, permuted: bool) -> Arrays:
    """Calls of so many tokens each, one after the other."""
    r, k, v, decay, bonus, state = given
    dim, first, ys = len(decay), 0, []
    ring = StateRing(device, state, position)
    for n in sizes:
        written = Written(device, form, n, dim, permuted)
        of_r, of_k, of_v = (upload_rows(device, x[first : first + n]) for x in (r, k, v))
        wkv_launches.wkv4(
            device, of_r, of_k, of_v, upload_vector(device, decay), upload_vector(device, bonus), n, dim,
            ring.state, ring.slot_step, ring.position, written.target,
        )  # fmt: skip
        ys.append(written.read())
        new = ring.read()
        ring.advance()
        first += n
    return {"y": np.concatenate(ys), "state": new}


def case(
    dim: int,
    n: int,
    position: int = 0,
    key: float = 2.0,
    form: str = "rows",
    permuted: bool = False,
    empty: bool = True,
) -> Case:
    given = inputs(dim, n, key, empty)

    def twin() -> Arrays:
        y, state = wkv4(*given)
        return {"y": y, "state": state}

    name = f"{dim} x{n} at {position} keys to {key:g} {form}" + " permuted" * permuted + " filled" * (not empty)
    return Case(name, lambda device: run_on(device, given, position, [n], form, permuted), twin, TOLERANCE_F32)


CASES = [
    case(dim, n, position) for dim in (1, 20, 64, 130) for n, position in ((1, 0), (2, 7), (3, 6), (8, 5), (9, 15))
]
CASES += [case(70, n, 3, empty=False) for n in (1, 4, 5, 8, 17)]
CASES += [case(40, 17, key=key, empty=empty) for key in (60.0, 90.0, 1e4) for empty in (False, True)]
CASES += [case(100, 3, 9, form="split", permuted=permuted, empty=False) for permuted in (False, True)]
SMALL = [case(70, 1, 7, empty=False), case(64, 9, 2), case(5, 8, 12), case(66, 2, 3, form="split", permuted=True)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("key", [2.0, 60.0, 90.0])
def test_the_twin_is_the_weighted_mean(key: float, empty: bool) -> None:
    """All exponentials as they are, in float64, which holds them."""
    given = inputs(6, 9, key, empty)
    r, k, v, decay, bonus, (sum_v, sum_1, exponent) = (x.astype(np.float64) for x in given)
    for t in range(9):
        weight = np.exp(exponent + t * decay)
        above, below = weight * sum_v, weight * sum_1
        for s in range(t + 1):
            weight = np.exp(k[s] + (bonus if s == t else (t - 1 - s) * decay))
            above, below = above + weight * v[s], below + weight
        assert error(wkv4(*given)[0][t], r[t] * above / below) <= 1e-11


def test_one_by_one_is_the_same_as_together(device: Device) -> None:
    given = inputs(40, 19, empty=False)
    together, apart = (run_on(device, given, 3, sizes, "rows", False) for sizes in ([19], [1] * 9 + [8, 2]))
    for name, values in together.items():
        assert error(apart[name], values) <= TOLERANCE_F32
