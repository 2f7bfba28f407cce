"""The sampler on the device: twin of backends/cpu/sample.py, token for token (kernels/sample.cu)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llamagpu.backends.cuda.device import Device, DeviceArray, i32
from llamagpu.sampling import LARGEST_INVERSE_TEMPERATURE, STEPS, WEIGHT_BITS, SamplingParams

SAMPLE_THREADS = 256  # and logits per chunk; kernels/sample.cu
RING_SIZE = 64  # tokens that the host may be behind

# the structs of kernels/sample.cu
SETTINGS = np.dtype(
    [
        ("seed", np.uint64), ("top_p", np.uint64), ("min_weight", np.uint64), ("inverse_temperature", np.float32),
        ("repetition_penalty", np.float32), ("top_k", np.int32), ("greedy", np.int32),
        ("order", np.int32), ("unused", np.int32),
    ]
)  # fmt: skip
STATE = np.dtype([("n_drawn", np.uint64), ("n_made", np.uint32), ("unused", np.int32)])


def settings_of(params: SamplingParams) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """The parameters as kernels read them: one element of SETTINGS."""
    assert params.seed is not None, "SamplingParams.with_seed() comes first"
    settings = np.zeros(1, SETTINGS)
    settings["seed"] = params.seed
    settings["top_p"] = round(params.top_p * 2**32)
    settings["min_weight"] = round(params.min_p * 2**32) << (WEIGHT_BITS - 32)
    if params.temperature:
        settings["inverse_temperature"] = min(1 / params.temperature, LARGEST_INVERSE_TEMPERATURE)
    settings["repetition_penalty"] = params.repetition_penalty
    settings["top_k"] = min(params.top_k, 2**31 - 1)
    settings["greedy"] = params.temperature == 0
    settings["order"] = sum(STEPS.index(step) << 2 * i for i, step in enumerate(params.order))
    return settings


class CUDASampler:
    """Parameters, random state and the counts of seen tokens of one sequence, in device memory.

    Each ``sample`` writes its token to ``ring``, in the host's memory, at the number of tokens made before, modulo
    RING_SIZE; -1 stands for logits that are not numbers.
    """

    def __init__(self, device: Device, params: SamplingParams, vocab_size: int) -> None:
        self.device, self.vocab_size = device, vocab_size
        self.n_chunks = -(-vocab_size // SAMPLE_THREADS)
        self.settings = device.upload(settings_of(params.with_seed()).view(np.uint8))
        self.state = device.upload(np.zeros(1, STATE).view(np.uint8))
        self.host_counts = np.zeros(vocab_size, np.int32)
        self.counts = device.zeros((vocab_size,), np.int32)
        self.scores = device.zeros((vocab_size,), np.float32)
        self.best = device.zeros((self.n_chunks,), np.uint64)
        self.candidates = device.zeros((vocab_size,), np.int32)
        self.chunks = device.zeros((self.n_chunks,), np.int32)
        self.ring, self.device_ring = device.pinned(RING_SIZE, np.int32)

    def see(self, tokens: Sequence[int]) -> None:
        """Count tokens of the prompt. Not once tokens have been sampled: those are counted on the device."""
        np.add.at(self.host_counts, np.asarray(tokens, np.int64), 1)
        self.device.copy(self.counts, self.host_counts)

    def skip(self, n_drawn: int) -> None:
        state = np.zeros(1, STATE)
        state["n_drawn"] = n_drawn
        self.device.copy(self.state, state.view(np.uint8))

    def launch(self, logits: DeviceArray, token: DeviceArray, position: DeviceArray) -> None:
        """Sample from logits [vocab_size] into ``token`` and the ring; ``position`` moves on (both int32 [1])."""
        scan = self.device.kernel("sample", "sample_scan")
        pick = self.device.kernel("sample", "sample_pick")
        args = (logits, self.counts, self.settings, self.scores, self.best, i32(self.vocab_size))
        scan((self.n_chunks,), (SAMPLE_THREADS,), args, 0, True)
        lists = (self.scores, self.best, self.settings, self.state, self.counts, self.candidates, self.chunks)
        sizes = (i32(RING_SIZE), i32(self.vocab_size), i32(self.n_chunks))
        pick((1,), (SAMPLE_THREADS,), (*lists, token, position, self.device_ring, *sizes), 0, True)
