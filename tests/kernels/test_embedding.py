"""kernels/embedding.cu against backends/cpu/linear.py: embedding."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.linear import embedding
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import FLOATS, WEIGHTS
from llamagpu.backends.cuda.matrix import padded, upload_matrix, upload_vector
from llamagpu.backends.cuda.vectors import Target
from tests.kernels.harness import (
    Arrays,
    Case,
    Written,
    download_rows,
    random,
    random_tensor,
    tolerance_of,
    twin_tests,
    unwritten,
    widened,
)

VOCAB_SIZE = 64  # so that the last row ends the table: nothing is padded after it


def case(kind: str, dim: int, tokens: list[int], form: str = "", permuted: bool = False) -> Case:
    """form: of what a reader behind a norm gets; none where there is no such reader (a prompt)."""
    table = random_tensor(kind, VOCAB_SIZE, dim, permuted=permuted)
    norm, n = random(dim, seed=1), len(tokens)

    def run(device: Device) -> Arrays:
        x, ids = unwritten(device, n, padded(dim)), device.upload(np.asarray(tokens, np.int32))
        matrix = upload_matrix(device, table)
        if not form:
            launches.embedding(device, matrix, ids, n, x, Target())
            return {"x": download_rows(device, x, dim)}
        squares = unwritten(device, n)
        written = Written(device, form, n, dim, permuted, norm=upload_vector(device, norm), squares=squares)
        launches.embedding(device, matrix, ids, n, x, written.target)
        return {"x": download_rows(device, x, dim), "vectors": written.read(), "squares": device.download(squares)}

    def twin() -> Arrays:
        x = embedding(widened(table), np.asarray(tokens))
        return {"x": x, "vectors": x * norm, "squares": np.square(x).sum(axis=1)} if form else {"x": x}

    name = f"{kind} {dim} x{n}" + f" to {form}{' permuted' * permuted}" * bool(form)
    return Case(name, run, twin, tolerance_of() if form else 0.0 if kind in ("F32", "F16", "BF16") else 1e-14)


DIMS = {"F32": (1, 8, 17, 515, 2048), "F16": (1, 8, 17, 1030, 2048), "BF16": (1, 8, 17, 1030, 2048)}
CASES = [
    case(kind, dim, tokens)
    for kind in WEIGHTS
    for dim in DIMS.get(kind, (1, 96, 300))
    for tokens in ([63], [0, 5, 5, 63, 1])
]
CASES += [case(kind, 300, [63, 0, 20], form, form == "split") for kind in WEIGHTS for form in ("rows", "split")]
SMALL = [case(kind, 17, [63, 0, 7]) for kind in FLOATS]
SMALL += [case(kind, 20, [63, 0, 7], "split") for kind in ("F16", "Q4", "Q8F")]
SMALL += [case("F32", 16, [63]), case("F16", 16, [63]), case("Q4", 128, [63])]
SMALL += [case("F32", 520, [1], "rows", True), case("Q4", 1030, [9])]  # threads take turns
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
