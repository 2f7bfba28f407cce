"""kernels/sample.cu against backends/cpu/sample.py: the same tokens, one by one."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from llamagpu.backends.cpu import CPUSampler
from llamagpu.backends.cpu.sample import sample
from llamagpu.backends.cuda.device import Device
from llamagpu.backends.cuda.sampler import SAMPLE_THREADS, SETTINGS, STATE, CUDASampler
from llamagpu.sampling import STEPS, SamplingParams
from tests.kernels.harness import Arrays, Case, Floats, random, twin_tests

DRAWS = 4  # of each case, each from other logits
PROMPT = [1, 3, 3]  # tokens that the repetition penalty knows from the start


def sharp(vocab_size: int, n: int) -> Floats:
    return random(n, vocab_size) * np.float32(4)


def tied(vocab_size: int, n: int) -> Floats:
    """Few different values, both zeros among them: ties at every cut."""
    logits = np.round(random(n, vocab_size)) * np.float32(0.5)
    logits[logits == 0] *= np.sign(random(*logits[logits == 0].shape))
    return logits


def flat(vocab_size: int, n: int) -> Floats:
    return np.zeros((n, vocab_size), np.float32)


def masked(vocab_size: int, n: int) -> Floats:
    """Most tokens impossible."""
    logits = sharp(vocab_size, n)
    logits[:, np.arange(vocab_size) % 7 != 2] = -np.inf
    return logits


def seed_drawing(number: int) -> int:
    """The seed whose first random 64-bit number is this one: SplitMix64 backwards."""
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        z = number
        for _ in range(64 // shift):  # undo z ^ z >> shift, some top bits at a time
            z = number ^ z >> shift
        number = z * pow(factor, -1, 1 << 64) % (1 << 64)
    return (number - 0x9E3779B97F4A7C15) % (1 << 64)


def enormous(vocab_size: int, n: int) -> Floats:
    return random(n, vocab_size) * np.float32(1e30)


def case(
    vocab_size: int, params: SamplingParams, kind: object = sharp, draws: int = DRAWS, drawn_before: int = 0
) -> Case:
    """drawn_before: random numbers that were used before, as when a session goes on; no tokens were made with them."""
    logits: Floats = kind(vocab_size, draws)  # type: ignore[operator]
    prompt = [token for token in PROMPT if token < vocab_size]

    def run(device: Device) -> Arrays:
        sampler = CUDASampler(device, params, vocab_size)
        sampler.see(prompt)
        sampler.skip(drawn_before)
        token, position = device.zeros((1,), np.int32), device.upload(np.asarray([10], np.int32))
        for row in logits:
            sampler.launch(device.upload(row), token, position)
        device.event().wait()
        tokens = sampler.ring[:draws].copy()
        assert device.download(token)[0] == tokens[-1]
        assert device.download(position)[0] == 10 + draws
        state = device.download(sampler.state).view(STATE)
        assert (state["n_made"][0], state["n_drawn"][0]) == (draws, drawn_before + draws)
        return {"tokens": tokens, "counts": device.download(sampler.counts)}

    def twin() -> Arrays:
        sampler = CPUSampler(params, vocab_size)
        sampler.see(prompt)
        sampler.skip(drawn_before)
        tokens = [sampler.sample(row) for row in logits]
        return {"tokens": np.asarray(tokens, np.int32), "counts": sampler.counts}

    words = {name: value for name, value in vars(params).items() if value != getattr(PLAIN, name)}
    settings = " ".join(f"{name}={value}" for name, value in words.items())
    settings += f" after {drawn_before} draws" * bool(drawn_before)
    return Case(f"{kind.__name__} {vocab_size} {settings}", run, twin, 0.0)  # type: ignore[attr-defined]


PLAIN = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, repetition_penalty=1, seed=0)
CHAT = SamplingParams(seed=5)  # the defaults of run
SETTINGS_TRIED = [
    SamplingParams(0, seed=0),
    SamplingParams(0, repetition_penalty=1.3, seed=0),
    PLAIN,
    CHAT,
    SamplingParams(1.5, 0, 0.9, 0, 1, 1),
    SamplingParams(0.7, 3, 1, 0, 1.2, 2),
    SamplingParams(1, 0, 1, 0.2, 0.8, 3),
    SamplingParams(1e-6, 40, 0.95, 0.05, 1.1, 4),
    SamplingParams(1e6, 0, 1, 0, 1, 5),
    SamplingParams(1, 1, 0, 1, 1, 6),
    SamplingParams(2, 300, 0.5, 0.001, 1, 2**64 - 1),
]
ORDERS = [",".join(steps) for steps in permutations(STEPS)]
# no step is idle, and each cuts what the one before leaves: an order that is taken for another gives other tokens
IN_ORDER = [SamplingParams(temperature, 9, 0.8, 0.06, 1.1, 7, order) for order in ORDERS for temperature in (0.4, 3)]
VOCABS = (2, 255, 257, 600)
CASES = [case(vocab_size, params) for vocab_size in VOCABS for params in SETTINGS_TRIED]
CASES += [case(300, params, kind) for kind in (tied, flat, masked, enormous) for params in SETTINGS_TRIED]
CASES += [case(5000, params, draws=2) for params in (CHAT, SETTINGS_TRIED[0], SETTINGS_TRIED[5])]
CASES += [case(40 * SAMPLE_THREADS, SamplingParams(0.8, 5, 1, 0, 1, 9), tied, draws=2)]  # few chunks hold the top 5
CASES += [case(600, params, draws=2) for params in IN_ORDER]
CASES += [case(300, params, tied, draws=2) for params in IN_ORDER[::3]]
CASES += [case(5000, SamplingParams(1.5, 40, 0.9, 0.01, 1, 3, order), draws=2) for order in ORDERS[::5]]
CASES += [case(300, params, drawn_before=2**33 + 5) for params in SETTINGS_TRIED]
SMALL = [case(300, params, kind, draws=1) for kind in (sharp, tied) for params in (SETTINGS_TRIED[1], CHAT)]
SMALL += [
    case(300, PLAIN, draws=1, drawn_before=1),
    case(300, SETTINGS_TRIED[4], draws=1),
    case(520, SamplingParams(1, 2, 0.9, 0, 1.1, 1), draws=2),
]
SMALL += [case(300, IN_ORDER[i], draws=1) for i in (0, 13, 22, 33, 46)]
# two equal weights of 2^40 and draws at the border between them: the last of the first token, the first of the second
BORDERS = [SamplingParams(1, 0, 1, 0, 1, seed_drawing(number)) for number in (2**63 - 1, 2**63)]
SMALL += [case(2, params, flat, draws=1) for params in BORDERS]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)


@pytest.mark.parametrize("logits", [[0.0, np.nan, 1.0], [0.0, np.inf, 1.0], [-np.inf] * 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers(logits: list[float], temperature: float, device: Device) -> None:
    """The host is told by -1; the token stays one that the next step can look up."""
    sampler = CUDASampler(device, SamplingParams(temperature, seed=0), 3)
    token, position = device.upload(np.asarray([2], np.int32)), device.zeros((1,), np.int32)
    sampler.launch(device.upload(np.asarray(logits, np.float32)), token, position)
    device.event().wait()
    assert sampler.ring[0] == -1
    assert device.download(token)[0] == 2


def test_the_ring_goes_round(device: Device) -> None:
    sampler = CUDASampler(device, SamplingParams(0, seed=0), 70)
    token, position = device.zeros((1,), np.int32), device.zeros((1,), np.int32)
    for best in range(70):
        sampler.launch(device.upload(np.eye(70, dtype=np.float32)[best]), token, position)
    device.event().wait()
    assert sampler.ring[:6].tolist() == [64, 65, 66, 67, 68, 69]
    assert sampler.ring[6:].tolist() == list(range(6, 64))


def test_draws_at_a_border() -> None:
    logits, counts = np.zeros(2, np.float32), np.zeros(2, np.int32)
    assert [sample(logits, counts, params, 0) for params in BORDERS] == [0, 1]


def test_structs_have_the_sizes_of_the_kernel() -> None:
    assert (SETTINGS.itemsize, STATE.itemsize) == (48, 16)
