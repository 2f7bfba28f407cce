"""kernels/token_shift.cu against backends/cpu/token_shift.py: norms, mixes, and the ring of states."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cpu.layernorm import layernorm
from llamagpu.backends.cpu.split_bf16 import joined, place_in_split
from llamagpu.backends.cpu.token_shift import Norm as TwinNorm
from llamagpu.backends.cpu.token_shift import norm_shift_mix, unit_rms
from llamagpu.backends.cuda import recurrent_launches
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.matrix import padded, tiled, upload_vector
from llamagpu.backends.cuda.recurrent_launches import Norm, NormKind, ShiftRing
from llamagpu.backends.cuda.recurrent_state import SLOTS
from tests.kernels.harness import (
    TOLERANCE_F32,
    Arrays,
    Case,
    Floats,
    download_rows,
    random,
    twin_tests,
    unwritten,
    upload_rows,
)

EPS = 1e-5
GAP = 3  # numbers between the slots, which are another layer's
LAYER, RMS, NONE = NormKind


def joined_of(device: Device, split: NDArray[np.uint16], dim: int) -> Floats:
    host = device.download(split).reshape(-1, 2, tiled(dim))
    at = place_in_split(np.arange(tiled(dim)))
    assert (host[..., at][..., dim:] == 0xFFFF).all(), "wrote to the padding of its vectors"
    return joined(host, dim, None)


def case(
    dim: int,
    n: int,
    kind: NormKind = LAYER,
    n_mixes: int = 2,
    per_token: bool = False,
    position: int | None = 0,
    keep: bool = True,
    form: str = "both",
) -> Case:
    """position: None for no state. form: "rows", "split" or "both"."""
    x = random(n, dim) + np.float32(0.5)
    weight, bias = 1 + random(1, dim, seed=2)[0] / 4, random(1, dim, seed=3)[0]
    mixes = np.abs(random(n_mixes, n, dim, seed=4) if per_token else random(n_mixes, dim, seed=4))
    states = random(SLOTS, dim, seed=5)
    step = dim + GAP

    def run(device: Device) -> Arrays:
        norm = Norm(kind)
        if kind == LAYER:
            norm = Norm(kind, upload_vector(device, weight), upload_vector(device, bias), EPS)
        ring = shifts = None
        if position is not None:
            slots = np.full((SLOTS, step), 7, np.float32)
            slots[:, :dim] = states
            shifts = device.upload(slots.reshape(-1)[:-GAP])
            ring = ShiftRing(shifts, step, device.upload(np.asarray([position], np.int32)))
        on_device = upload_rows(device, mixes.reshape(-1, dim))
        rows = unwritten(device, n_mixes * n, padded(dim)) if form != "split" else None
        split = unwritten(device, n_mixes * n, 2 * tiled(dim), dtype=np.uint16) if form != "rows" else None
        recurrent_launches.norm_shift_mix(
            device, upload_rows(device, x), dim, n, norm, ring, on_device, n_mixes, rows, split,
            per_token, keep,
        )  # fmt: skip
        results = {}
        if rows is not None:
            results["rows"] = download_rows(device, rows, dim).reshape(n_mixes, n, dim)
        if split is not None:
            results["split"] = joined_of(device, split, dim).reshape(n_mixes, n, dim)
        if shifts is not None:
            after = np.append(device.download(shifts), np.full(GAP, 7, np.float32)).reshape(SLOTS, step)
            assert (after[:, dim:] == 7).all(), "wrote to another layer's state"
            written = (position + 1) % SLOTS if position is not None and keep else None
            others = [slot for slot in range(SLOTS) if slot != written]
            assert (after[others, :dim] == states[others]).all(), "wrote to another slot"
            results["states"] = after[:, :dim]
        return results

    def twin() -> Arrays:
        def layer_norm(rows: Floats) -> Floats:
            return layernorm(rows, weight, bias, EPS)

        norms: dict[NormKind, TwinNorm] = {LAYER: layer_norm, RMS: unit_rms, NONE: lambda rows: rows}
        previous = np.zeros(dim, np.float32) if position is None else states[position % SLOTS]
        mixed, last = norm_shift_mix(x, norms[kind], previous, mixes)
        results: dict[str, Floats] = dict.fromkeys(("rows", "split") if form == "both" else (form,), mixed)
        if position is not None:
            results["states"] = states.copy()
            if keep:
                results["states"][(position + 1) % SLOTS] = last
        return results

    state = "no state" if position is None else f"at {position}" + " kept" * keep
    name = f"{dim} x{n} {kind.name} {n_mixes} mixes{' per token' * per_token} {state} {form}"
    return Case(name, run, twin, TOLERANCE_F32)


DIMS = (1, 5, 16, 17, 100, 255, 256, 257, 768, 1030, 2048)
CASES = [case(dim, n, kind) for dim in DIMS for n in (1, 3) for kind in NormKind]
CASES += [case(70, n, LAYER, 3, position=position) for n in (*range(1, 11), 16, 17, 24) for position in (0, 3, 1000)]
CASES += [case(530, n, LAYER, 2, position=6) for n in (1, 2, 8, 12, 16)]  # more than a slice, blocks with several
CASES += [case(90, n, LAYER, n_mixes) for n_mixes in range(1, 7) for n in (1, 4)]
CASES += [case(90, n, kind, n_mixes, True) for kind in NormKind for n_mixes in (1, 5) for n in (1, 4)]
CASES += [case(530, n, LAYER, 5, True, position=2) for n in (1, 12)]
CASES += [case(90, n, kind, position=5, keep=False) for kind in NormKind for n in (1, 2, 8, 16)]
CASES += [case(90, n, kind, position=None) for kind in NormKind for n in (1, 2, 8)]
CASES += [case(90, n, form=form) for form in ("rows", "split") for n in (1, 2)]
CASES += [case(4101, 1, LAYER, 6), case(4101, 10, RMS, 2), case(8192, 1, LAYER, 6)]
SMALL = [case(37, n, kind, 2, position=position) for n, position in ((1, 7), (3, 6), (8, 5)) for kind in NormKind]
SMALL += [case(272, 1, LAYER, 6), case(530, 5, LAYER, 2, position=2), case(530, 13, RMS, 1, position=2)]
SMALL += [case(37, n, LAYER, 3, True, position=4) for n in (1, 3)]
SMALL += [case(37, n, LAYER, 1, position=4, keep=False) for n in (1, 8)]
SMALL += [case(37, n, NONE, 1, position=None) for n in (1, 2)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


def test_calls_of_some_tokens_each_are_one_call_of_all(device: Device) -> None:
    """The host says which call it is; each takes up where the one before was, and one that is made again does too."""
    dim, n_mixes = 300, 2
    x, weight, bias = random(12, dim), random(1, dim, seed=1)[0], random(1, dim, seed=2)[0]
    mixes = random(n_mixes, dim, seed=3)
    norm = Norm(LAYER, upload_vector(device, weight), upload_vector(device, bias), EPS)
    on_device = upload_rows(device, mixes)
    shifts, position = device.zeros((SLOTS * dim,), np.float32), device.zeros((1,), np.int32)
    whole, _ = norm_shift_mix(x, lambda rows: layernorm(rows, weight, bias, EPS), np.zeros(dim, np.float32), mixes)
    # 5 tokens, 4 more in single steps, of which the last two are dropped and made again, then the rest
    for call, start, stop in (
        (0, 0, 5), (1, 5, 6), (2, 6, 7), (3, 7, 8), (4, 8, 9), (3, 7, 8), (4, 8, 12),
    ):  # fmt: skip
        n = stop - start
        device.copy(position, np.asarray([call], np.int32))
        rows = unwritten(device, n_mixes * n, padded(dim))
        recurrent_launches.norm_shift_mix(
            device, upload_rows(device, x[start:stop]), dim, n, norm, ShiftRing(shifts, dim, position), on_device,
            n_mixes, rows, None,
        )  # fmt: skip
        got = download_rows(device, rows, dim).reshape(n_mixes, n, dim)
        assert got == pytest.approx(whole[:, start:stop], rel=1e-4, abs=1e-5)
