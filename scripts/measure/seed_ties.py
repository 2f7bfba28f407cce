"""Are two programs of one arithmetic, where activations are rounded? For scripts/measure/seed_programs.

Programs add up float32 numbers in other orders, so an activation that lies beside a half is rounded up by one and down
by the other, and all that follows differs by more than the last digits. Whether that is all is found out here: our run
goes along the tokens of theirs, and where its numbers part from theirs, those of its activations that lie next to a
half are rounded to the other side, one after another, until they agree again. If none does, the difference is no tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from seed_files import MATRICES, Shape, Weights
from seed_originals import Heard

from llamagpu.backends.cpu.faithful import FaithfulCPUBackend, round_half_away
from llamagpu.backends.cpu.linear import linear
from llamagpu.llm import LLM
from llamagpu.models.memory_llama import MemoryLlama

LIMIT = 1e-4  # logits, keys and values that are nearer agree
RADIUS = 1.5e-6  # of the largest number that they are rounded to: how far float32 sums go astray
MOST, TRIALS = 3, 400  # numbers of one token, and runs to find them

Same = bool | Literal["ties"]  # "ties": they differ, and in roundings next to a half alone
Place = tuple[int, int, int]  # a product of the step, a row, a column


@dataclass
class Near:
    place: Place
    distance: float  # from the half, in steps of the rounding


@dataclass
class Ties:
    """found: what was rounded to the other side. parted: the number of the token that no such number explains."""

    n_tokens: int
    found: list[Near] = field(default_factory=list)
    n_rounded: int = 0
    largest: float = 0.0
    parted: int | None = None

    def __str__(self) -> str:
        if self.parted is not None:
            return f"token by token, no rounding next to a half explains token {self.parted}"
        of_all = f"all {self.n_tokens} within {self.largest:.1e}"
        if not self.found:
            return f"token by token {of_all}"
        far = max(near.distance for near in self.found)
        other = f"{len(self.found)} of {self.n_rounded} roundings, none further than {far:.0e} from a half"
        return f"token by token, {other}, the other way: {of_all}"


class Rounding:
    """In the place of a faithful backend's products: it sees what is rounded, and rounds what is switched otherwise."""

    def __init__(self, llm: LLM) -> None:
        assert isinstance(llm.backend, FaithfulCPUBackend)
        self.quirks = llm.quirks
        self.largest = np.float32(2 ** (self.quirks.activation_bits - 1) - 1)
        llm.backend.linear = self.linear  # type: ignore[method-assign]
        self.begin(())

    def begin(self, switched: Sequence[Near]) -> None:
        self.switched = {near.place for near in switched}
        self.n_products, self.n_rounded = -1, 0
        self.near: list[Near] = []
        self.x: Any = None

    def linear(self, x: NDArray[np.float32], w: Any) -> NDArray[np.float32]:
        if x is not self.x:  # of q, k and v, and of gate and up, it is rounded once
            self.x, self.n_products = x, self.n_products + 1
            self.rounded = self.round(x)
        return linear(self.rounded, w)

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        n, features = x.shape
        groups = x.reshape(n, -1, min(self.quirks.activation_group, features))
        scales = np.abs(groups).max(2, keepdims=True) / self.largest
        exact = np.divide(groups, scales, out=np.zeros_like(groups), where=scales != 0)
        numbers = round_half_away(exact).reshape(n, features)
        whole = np.trunc(exact)
        distance = np.abs(np.abs(exact - whole) - 0.5).reshape(n, features)
        other = (2 * whole + np.sign(exact)).reshape(n, features) - numbers
        for row, column in np.argwhere(distance < RADIUS * self.largest):
            place = (self.n_products, int(row), int(column))
            self.near.append(Near(place, float(distance[row, column])))
            if place in self.switched:
                numbers[row, column] = other[row, column]
        self.n_rounded += x.size
        rounded: NDArray[np.float32] = (numbers.reshape(groups.shape) * scales).reshape(n, features)
        return rounded


class Along:
    """Our run along their tokens."""

    def __init__(self, llm: LLM, heard: Heard) -> None:
        self.llm, self.heard, self.model = llm, heard, llm.model
        self.rounding = Rounding(llm)
        self.ties = Ties(len(heard.ids))
        self.of_token = 4 * llm.config.n_layers + 1  # products of a token; after them come those of the memory

    def go(self, state: Any = None) -> Any:
        """The state at the end. state: where it begins, as theirs does; None: at the beginning."""
        n_renewed, mem_len = 1, self.llm.config.mem_len
        if state is None:
            state = self.new_state()
        for i, token in enumerate(self.heard.ids):
            before = {name: array.copy() for name, array in self.model.save_state(state).items()}, state.length

            def step(switched: Sequence[Near], token: int = token, before: Any = before) -> NDArray[np.float32]:
                self.model.load_state(state, *before)
                self.rounding.begin(switched)
                return np.array(self.model.forward([token], state)[-1], np.float32)

            switched, off = self.search(step, i)
            if switched is not None and mem_len and state.length % mem_len == 0:
                switched = self.renewed(step, switched, state, self.heard.slots[n_renewed], self.of_token)
                n_renewed += 1
            if switched is None:
                self.ties.parted = i
                return state
            self.count(switched)
            self.ties.largest = max(self.ties.largest, off)
        return state

    def count(self, switched: Sequence[Near]) -> None:
        self.ties.found += switched
        self.ties.n_rounded += self.rounding.n_rounded

    def new_state(self) -> Any:
        state = self.model.new_state(self.llm.state_options(len(self.heard.ids)))
        if not self.llm.config.mem_len:
            return state

        assert isinstance(self.model, MemoryLlama)
        origin = {"memory": self.model.origin_memory}

        def begin(switched: Sequence[Near]) -> None:
            self.rounding.begin(switched)
            self.model.load_state(state, origin, 0)

        begin(())
        switched = self.renewed(begin, [], state, self.heard.slots[0], 0)
        if switched is None:
            self.ties.parted = 0
        else:
            self.count(switched)
        return state

    def search(self, step: Callable[[Sequence[Near]], NDArray[np.float32]],
               i: int) -> tuple[list[Near] | None, float]:  # fmt: skip
        """What of a token must be switched so that its logits are theirs, the fewest first; the run is left so."""

        def off(switched: Sequence[Near]) -> float:
            return float(np.abs(step(switched) - self.heard.logits[i]).max())

        largest = off(())
        if largest <= LIMIT:
            return [], largest
        tried: list[list[Near]] = [[]]
        n_trials = 0
        for _ in range(MOST):
            longer = []
            for switched in tried:
                step(switched)
                after = switched[-1].place if switched else (-1, 0, 0)
                more = [near for near in self.rounding.near if after < near.place and near.place[0] < self.of_token]
                for near in sorted(more, key=lambda near: near.distance):
                    n_trials += 1
                    largest = off([*switched, near])
                    if largest <= LIMIT:
                        return [*switched, near], largest
                    if n_trials >= TRIALS:
                        return None, largest
                    longer.append([*switched, near])
            tried = longer
        return None, largest

    def renewed(self, step: Callable[[Sequence[Near]], Any], switched: Sequence[Near], state: Any,
                expected: NDArray[np.float32], first: int) -> list[Near] | None:  # fmt: skip
        """The same for the rows of the memory, which do not touch each other: each has its own candidates."""
        kept, tried = list(switched), set[Place]()
        while True:
            wrong = self.rows_off(state, expected)
            if not wrong:
                return kept
            trial = []
            for layer, row in wrong:
                own = [near for near in self.rounding.near
                       if 0 <= near.place[0] - first - 3 * layer < 3 and near.place[1] == row
                       and near.place not in tried]  # fmt: skip
                if not own:
                    return None
                trial.append(min(own, key=lambda near: near.distance))
            tried |= {near.place for near in trial}
            step([*kept, *trial])
            still = self.rows_off(state, expected)
            kept += [near for near, place in zip(trial, wrong, strict=True) if place not in still]
            step(kept)

    def rows_off(self, state: Any, expected: NDArray[np.float32]) -> list[tuple[int, int]]:
        """[(layer, row)] whose key or value is not theirs."""
        config, arrays = self.llm.config, self.model.save_state(state)
        wrong = np.zeros((config.n_layers, config.mem_len), bool)
        for name, slots in zip(("keys", "values"), expected, strict=True):
            own = arrays[name][:, :, : config.mem_len].transpose(0, 2, 1, 3).reshape(slots.shape)
            wrong |= np.abs(own - slots).max(-1) > LIMIT
        return [(int(layer), int(row)) for layer, row in np.argwhere(wrong)]


def quantized_alike(target: Path, model: Path, shape: Shape, weights: Weights, bits: int) -> tuple[str, Same]:
    """simple-llama's own file and ours: how many numbers and scales differ, and whether by a step beside a half."""
    a, b = np.fromfile(target, np.uint8), np.fromfile(model, np.uint8)
    if a.size != b.size:
        return f"{a.size} bytes, ours {b.size}", False
    if (a == b).all():
        return f"the same {a.size} bytes", True
    at = 256 + 4 * shape.dim * (2 * shape.n_layers + 1)
    if (a[:at] != b[:at]).any():
        return "another head, or other norms", False
    n_other = n_scales = n_numbers = n_groups = 0
    farthest, last, apart = 0.0, 0, 0
    for name in ("tok_emb", "wcls", *MATRICES):
        n = weights[name].size
        size = n * bits // 8
        codes = [unpacked(part[at : at + size], bits) for part in (a, b)]
        scales = [part[at + size : at + size + n // 32].view("<f4") for part in (a, b)]
        at += size + n // 32
        other = np.flatnonzero(codes[0] != codes[1])
        exact = weights[name].reshape(-1)[other] / scales[1][other // 128]
        apart = max(apart, int(np.abs(codes[0][other].astype(int) - codes[1][other]).max(initial=0)))
        halves = (codes[0][other].astype(np.float64) + codes[1][other]) / 2
        farthest = max(farthest, float(np.abs(exact - halves).max(initial=0)))
        ulps = np.abs(scales[0].view("<i4").astype(np.int64) - scales[1].view("<i4"))
        last = max(last, int(ulps.max()))
        n_other, n_scales = n_other + len(other), n_scales + int((ulps > 0).sum())
        n_numbers, n_groups = n_numbers + n, n_groups + n // 128
    largest = 127 if bits == 8 else 7
    ties = f"{n_other} of {n_numbers} numbers differ, by one, none further than {farthest:.0e} from a half"
    ties = ties if n_other else f"no number of {n_numbers} differs"
    text = f"{n_scales} of {n_groups} scales differ, by {last} in the last place; {ties}"
    return text, "ties" if last <= 1 and apart <= 1 and farthest < RADIUS * largest else False


def unpacked(part: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    if bits == 8:
        return part.view(np.int8)
    return (np.stack([part >> 4, part & 15], -1).reshape(-1).astype(np.int8) - np.int8(8)).astype(np.int8)
