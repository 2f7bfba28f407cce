"""A ring of states on the device, all NaN but the slot that a call reads; numbers as a sigmoid gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.recurrent_state import SLOTS
from tests.kernels.harness import Floats

SPARE = 4  # numbers between two slots, which belong to nobody


class StateRing:
    def __init__(self, device: Device, state: Floats, position: int) -> None:
        self.device, self.shape, self.slot_step = device, state.shape, state.size + SPARE
        self.call = position
        self.position = device.upload(np.asarray([position], np.int32))
        ring = np.full((SLOTS, self.slot_step), np.nan, np.float32)
        ring[position % SLOTS, : state.size] = state.reshape(-1)
        self.state = device.upload(ring)
        self.before = ring

    def read(self) -> NDArray[Any]:
        """The state after the call; all else must be as it was."""
        ring = self.device.download(self.state)
        slot = (self.call + 1) % SLOTS
        self.before[slot, :-SPARE] = ring[slot, :-SPARE]
        assert ring.tobytes() == self.before.tobytes(), "wrote beside its slot"
        return ring[slot, :-SPARE].reshape(self.shape)

    def advance(self) -> None:
        """What lies between two calls."""
        self.before = self.device.download(self.state)
        self.call += 1
        self.device.copy(self.position, np.asarray([self.call], np.int32))


def shares(*shape: int, seed: int) -> Floats:
    """Numbers in (0, 1), as a sigmoid or a decay gives them."""
    return np.random.default_rng([seed, *shape]).random(shape, np.float32)
