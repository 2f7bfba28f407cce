"""kernels/gate_up.cu against backends/cpu/swiglu.py over backends/cpu/linear.py."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.linear import linear
from llamagpu.backends.cpu.rmsnorm import rmsnorm
from llamagpu.backends.cpu.swiglu import swiglu
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import FLOATS, TILES, WEIGHTS
from llamagpu.backends.cuda.matrix import upload_gate_up
from tests.kernels.harness import (
    Arrays,
    Case,
    Written,
    random,
    random_tensor,
    tolerance_of,
    twin_tests,
    upload_vectors,
    widened,
)
from tests.kernels.test_linear import EPS, squares_of


def case(
    kind: str, hidden: int, in_features: int, n: int, scale: int = 1, form: str = "rows", n_squares: int = 0,
    permuted: bool = False, biased: bool = False,
) -> Case:  # fmt: skip
    gate, up = (random_tensor(kind, hidden, in_features, seed=seed) for seed in (1, 2))
    x, norm = random(n, in_features, seed=3) * scale, random(in_features, seed=4)
    biases = list(random(2, hidden, seed=5)) if biased else None

    def run(device: Device) -> Arrays:
        stack = upload_gate_up(device, gate, up, biases)
        (part,) = stack.parts
        squares = squares_of(x, n_squares) if n_squares else None
        vectors = upload_vectors(device, x * norm if n_squares else x, part.matrix, squares, EPS)
        written = Written(device, form, n, hidden, permuted)
        launches.gate_up(device, part.matrix, vectors, n, written.target, stack.bias)
        return {"y": written.read()}

    def twin() -> Arrays:
        h = rmsnorm(x, norm, EPS) if n_squares else x
        return {"y": swiglu(linear(h, widened(gate)), linear(h, widened(up)), biases)}

    how = f" scale {scale} to {form}{' permuted' * permuted}{' biased' * biased}" + f" normed {n_squares}" * bool(
        n_squares
    )
    return Case(f"{kind} {hidden}x{in_features} n={n}{how}", run, twin, tolerance_of(kind))


CASES = [case(kind, 17, 100, n) for kind in FLOATS for n in (1, 2, 3, 4, 5, 6, 7, 8, 11)]
CASES += [case(kind, 37, 150, n, form="split") for kind in TILES for n in (1, 3, 4, 5, 8, 11)]
CASES += [case("F16", 1, 8, 1), case("F32", 1, 1, 2), case("F16", 70, 1030, 1), case("Q4", 1, 1, 2)]
CASES += [case("F32", 9, 64, 2, scale=200)]  # exp(-gate) overflows: silu goes to 0
CASES += [case(kind, 20, 130, n, 1, "split", 7, True) for kind in WEIGHTS for n in (1, 6)]
CASES += [case(kind, hidden, 70, n, biased=True) for kind in WEIGHTS for hidden, n in ((1, 1), (37, 8), (20, 11))]
SMALL = [case(kind, 6, 35, n, biased=True) for kind in ("F32", "Q4") for n in (1, 10)]
SMALL += [case(kind, 6, 35, n) for kind in FLOATS for n in (1, 10)]
SMALL += [case(kind, 17, 150, n, 1, "split", 3) for kind in ("Q4", "Q8Shortest") for n in (1, 10)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


def test_gate_and_up_of_two_kinds_stay_apart() -> None:
    from tests.emulated_device import EmulatedDevice

    gate, up = random_tensor("Q4", 5, 32), random_tensor("Q8", 5, 32)
    stack = upload_gate_up(EmulatedDevice(), gate, up)
    assert [(part.matrix.kind, part.first, part.step) for part in stack.parts] == [("Q4", 0, 2), ("Q8", 1, 2)]
    assert np.isclose(stack.out_features, 10)
