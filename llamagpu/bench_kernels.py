"""Which kernels a decode step launches, and what each takes: recorded once, then launched again and again by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from llamagpu.backends.cuda import CUDABackend, capture
from llamagpu.backends.cuda.device import Device, Launch
from llamagpu.backends.cuda.recurrent_state import SLOTS, CUDARecurrentState
from llamagpu.models import StateOptions
from llamagpu.sampling import SamplingParams

SMALLEST_GRAPH = 64  # launches of one graph, so that launching the graph itself does not count
REPEATS = 10  # of each graph


@dataclass(frozen=True)
class KernelRow:
    """One kernel: us per launch; launches, bytes and so GB/s of one step."""

    kernel: str
    us: float
    launches: int
    bytes: int
    gb_per_s: float


@dataclass(frozen=True)
class Recorded:
    """One launch: of which kernel, with which arrays among its arguments, and how to do it again."""

    family: str
    instance: str
    arrays: tuple[Any, ...]
    again: Callable[[], None]


class RecordingDevice:
    """A device that notes every launch before it passes it on; all else is the device's own."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.recorded: list[Recorded] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def kernel(self, family: str, instance: str) -> Launch:
        launch = self.device.kernel(family, instance)

        def noted(*call: Any, **named: Any) -> None:
            arrays = tuple(arg for arg in call[2] if arg is not None and not isinstance(arg, np.generic))
            again = partial(launch, *call[:4])  # the fifth would let a kernel overlap with its own repetition
            self.recorded.append(Recorded(family, instance, arrays, again))
            again()

        return noted


def kernel_rows(model: Any, backend: CUDABackend, context: int, capacity: int) -> list[KernelRow]:
    """The kernels of one decode step at ``context`` of a cache's ``capacity``, in the order of their first launch.

    A kernel's launches of one step (a layer each, say) are captured as a graph by themselves and that is timed, so
    kernels are measured back to back, without the gaps and overlaps of a step. Small ones find their data in caches; a
    matrix that is alone of its kind (the head) may be there in part.
    """
    device = backend.device
    recording = RecordingDevice(device)
    backend.device = cast(Device, recording)
    try:
        cache = model.new_state(StateOptions(capacity))
        cache.length = context - 1
        logits = model.forward([1], cache)
        sampler = backend.sampler(SamplingParams(temperature=0, seed=0), model.config.vocab_size)
        recording.recorded.clear()
        for _ in model.decode(cache, sampler, logits, 1):  # samples, and runs nothing more
            pass
        sampling = list(recording.recorded)
        recording.recorded.clear()
        model.forward(cache.tokens[:1], cache)
        step = [*recording.recorded, *sampling]
    finally:
        backend.device = device
    groups: dict[str, list[Recorded]] = {}
    for recorded in step:
        groups.setdefault(recorded.instance, []).append(recorded)
    token = device.download(cache.tokens)
    rows = []
    for instance, launches in groups.items():
        # the sampler moves the position on at each launch: no other kernel may see where that leads
        device.copy(cache.position, np.asarray([context], np.int32))
        device.copy(cache.tokens, token)
        rounds = -(-SMALLEST_GRAPH // len(launches))

        def all_rounds(launches: list[Recorded] = launches, rounds: int = rounds) -> None:
            for _ in range(rounds):
                for recorded in launches:
                    recorded.again()

        seconds = device.seconds(capture(device, all_rounds).launch, REPEATS) / rounds
        n_bytes = sum(launch_bytes(recorded, cache, model.embedding, context) for recorded in launches)
        rows.append(KernelRow(instance, seconds / len(launches) * 1e6, len(launches), n_bytes, n_bytes / seconds / 1e9))
    return rows


def launch_bytes(recorded: Recorded, cache: Any, table: Any, context: int) -> int:
    """Bytes of the arrays that a launch is given, each counted once as a whole, but for what it visits in part.

    Of the keys and values, attention visits the positions that are filled, and the others the one that they write; of
    the angles of RoPE one position is read; of the embedding, one row; of a recurrent state one slot is read and one
    written.
    """
    total = 0
    for arg in recorded.arrays:
        if isinstance(cache, CUDARecurrentState):
            if any(owner(arg) is owner(whole) for whole in (cache.shifts, cache.wkv)):
                total += 2 * arg.nbytes // SLOTS
            elif recorded.family == "embedding" and any(arg is part for part in vars(table).values()):
                total += arg.nbytes // table.out_features
            else:
                total += arg.nbytes
        elif any(owner(arg) is owner(whole) for whole in (cache.keys, cache.values)):
            total += arg.nbytes * (context if recorded.family.startswith("attention") else 1) // cache.capacity
        elif owner(arg) is owner(cache.angles):
            total += arg.nbytes // cache.capacity
        elif recorded.family == "embedding" and any(arg is part for part in vars(table).values()):
            total += arg.nbytes // table.out_features
        else:
            total += arg.nbytes
    return int(total)


def owner(array: Any) -> Any:
    """The array whose memory ``array`` is a slice of: itself, where it is none."""
    while array.base is not None:
        array = array.base
    return array
