"""What a recurrent model keeps of a sequence on the device."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.cuda.cache import MAX_PROMPT_CHUNK
from llamagpu.backends.cuda.device import Device, DeviceArray
from llamagpu.backends.cuda.matrix import padded
from llamagpu.backends.recurrent import empty_state
from llamagpu.config import ModelConfig

SLOTS = 8  # kernels/slots.cuh
LARGEST_NUMBER = 1 << 30  # calls are counted on the device up to here, then from 0: an int would end


class CUDARecurrentState:
    """The state before each of the last few calls: call c reads slot c % SLOTS of every array and writes the next one.

    So the steps that the host has launched ahead of the tokens it takes may be dropped, and a call that was broken off
    may be made again: what they were to go on from is still there. That costs memory, and no time.

    shifts: float32 [n_layers, 2, SLOTS, padded(dim)]; wkv: float32 [n_layers, SLOTS, numbers of a layer]. position:
    int32 [1], the number of the call, as kernels see it (see ``position_of``); ``length`` is the host's count of
    tokens. tokens: int32 [MAX_PROMPT_CHUNK], those of a call; the first is where the sampler puts the next one.
    ones: the gate of RWKV-5.0, which has none, for as many tokens.
    """

    room = None
    rewindable = False  # further than decoding ahead needs

    def __init__(self, device: Device, config: ModelConfig) -> None:
        self.device, self.config = device, config
        self._done = 0, 0  # tokens, calls: one value, so that an interruption finds both or neither
        self.shifts: DeviceArray = device.zeros((config.n_layers, 2, SLOTS, padded(config.dim)), np.float32)
        empty = empty_state(config)["wkv"].reshape(config.n_layers, 1, -1)
        self.wkv: DeviceArray = device.upload(np.repeat(empty, SLOTS, axis=1))
        self.position = device.zeros((1,), np.int32)
        self.tokens = device.zeros((MAX_PROMPT_CHUNK,), np.int32)
        self.ones: DeviceArray | None = None
        if config.architecture == "rwkv5.0":
            self.ones = device.upload(np.ones((MAX_PROMPT_CHUNK, padded(config.dim)), np.float32))

    @property
    def length(self) -> int:
        return self._done[0]

    @length.setter
    def length(self, n: int) -> None:
        """As after so many tokens more or less, one a call: how a decode is left where it was taken to."""
        self._done = n, self._call_of(n)

    def advance(self, n: int) -> None:
        """One call of n tokens has been launched as a whole."""
        self._done = self._done[0] + n, self._done[1] + 1

    def _call_of(self, n: int) -> int:
        """The call that goes on from n tokens, with calls of one token from here to there."""
        tokens, calls = self._done
        return calls + n - tokens

    @property
    def cache(self) -> CUDARecurrentState:
        """For ``Backend.decode``: it is the whole state."""
        return self

    def next_step(self, length: int) -> tuple[Hashable, bool]:
        """All are the same, and none is final."""
        return "step", False

    def begin(self, length: int) -> None:
        """A step finds its slots by the position."""

    def position_of(self, n: int) -> int:
        return self._call_of(n) % LARGEST_NUMBER

    def counts_anew(self, n: int) -> bool:
        return self._call_of(n) > 0 and self._call_of(n) % LARGEST_NUMBER == 0

    def save(self) -> dict[str, NDArray[np.float32]]:
        """The arrays of ``empty_state``."""
        slot, shapes = self._done[1] % SLOTS, empty_state(self.config)
        shifts = self.device.download(self.shifts)[:, :, slot, : self.config.dim]
        wkv = self.device.download(self.wkv)[:, slot].reshape(shapes["wkv"].shape)
        return {"shifts": np.ascontiguousarray(shifts), "wkv": np.ascontiguousarray(wkv)}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse, for a state that already stands at the ``length`` they were saved at."""
        slot = self._done[1] % SLOTS
        shifts, wkv = np.zeros(self.shifts.shape, np.float32), np.zeros(self.wkv.shape, np.float32)
        shifts[:, :, slot, : self.config.dim] = arrays["shifts"]
        wkv[:, slot] = arrays["wkv"].reshape(len(wkv), -1)
        self.device.copy(self.shifts, shifts)
        self.device.copy(self.wkv, wkv)
