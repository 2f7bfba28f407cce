"""kernels/embedding.cu against backends/cpu/linear.py: embedding."""

from __future__ import annotations

import numpy as np

from llamagpu.backends.cpu.linear import embedding
from llamagpu.backends.cuda import launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.kernels import WEIGHTS
from llamagpu.backends.cuda.matrix import padded, upload_matrix
from tests.kernels.harness import Arrays, Case, download_rows, random_tensor, twin_tests, unwritten, widened

VOCAB_SIZE = 37


def case(kind: str, dim: int, tokens: list[int]) -> Case:
    table = random_tensor(kind, VOCAB_SIZE, dim)

    def run(device: Device) -> Arrays:
        x = unwritten(device, len(tokens), padded(dim))
        ids = device.upload(np.asarray(tokens, np.int32))
        launches.embedding(device, upload_matrix(device, table), ids, len(tokens), x)
        return {"x": download_rows(device, x, dim)}

    def twin() -> Arrays:
        return {"x": embedding(widened(table), np.asarray(tokens))}

    return Case(f"{kind} {dim} x{len(tokens)}", run, twin, 0.0 if kind in ("F32", "F16") else 1e-14)


DIMS = {"F32": (1, 8, 17, 515, 2048), "F16": (1, 8, 17, 1030, 2048), "Q8": (32, 96, 2080), "Q8Flat": (1, 17, 100, 2050)}
CASES = [case(kind, dim, tokens) for kind in WEIGHTS for dim in DIMS[kind] for tokens in ([36], [0, 5, 5, 36, 1])]
SMALL = [case(kind, dim, [36, 0, 7]) for kind, dim in (("F32", 17), ("F16", 40), ("Q8", 32), ("Q8Flat", 20))]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
