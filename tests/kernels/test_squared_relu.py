"""kernels/squared_relu.cu against backends/cpu/linear.py."""

from __future__ import annotations

from llamagpu.backends.cpu.linear import linear_squared_relu
from llamagpu.backends.cuda import recurrent_launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import FLOATS, TILES, WEIGHTS
from llamagpu.backends.cuda.matrix import upload_matrix
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


def case(
    kind: str, out_features: int, in_features: int, n: int, form: str = "rows", permuted: bool = False,
    act_order: bool = False,
) -> Case:  # fmt: skip
    """permuted: for a reader with act-order; act_order: of the matrix itself."""
    w = random_tensor(kind, out_features, in_features, permuted=act_order)
    x = random(n, in_features, seed=1) * 3

    def run(device: Device) -> Arrays:
        matrix = upload_matrix(device, w)
        written = Written(device, form, n, out_features, permuted)
        vectors = upload_vectors(device, x, matrix)
        recurrent_launches.linear_squared_relu(device, matrix, vectors, n, written.target)
        return {"y": written.read()}

    def twin() -> Arrays:
        return {"y": linear_squared_relu(x, widened(w))}

    name = f"{kind} {out_features}x{in_features} n={n} to {form}{' permuted' * permuted}{' act-order' * act_order}"
    return Case(name, run, twin, tolerance_of(kind))


CASES = [case(kind, 17, 100, n) for kind in FLOATS for n in (1, 2, 3, 4, 5, 6, 7, 8, 11)]
CASES += [case(kind, 37, 150, n, "split") for kind in TILES for n in (1, 3, 4, 5, 8, 11)]
CASES += [case(kind, 40, 130, n, form, True) for kind in WEIGHTS for n, form in ((1, "split"), (6, "rows"))]
CASES += [case("F32", 2, 1, 2), case("F16", 70, 1030, 1), case("Q4", 70, 272, 2, act_order=True)]
SMALL = [case(kind, 11, 35, n) for kind in FLOATS for n in (1, 10)] + [case("F16", 10, 40, 2)]
SMALL += [case(kind, 33, 150, n, "split") for kind in ("Q4", "Q8Shortest") for n in (1, 10)]
SMALL += [case("F32", 16, 20, 3, "split"), case("Q4", 32, 20, 3)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
