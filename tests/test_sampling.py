from __future__ import annotations

import inspect
import itertools
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.backends.cpu.sample import candidates, exp_weights, most_likely, penalize, sample
from llamagpu.chat_command import chat
from llamagpu.commands import run
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.formats.micro_rwkv import SAMPLING
from llamagpu.llm import LLM, load
from llamagpu.sampling import STEPS, TEMPERATURE_FIRST, SamplingParams, random_u64

Floats = NDArray[np.float32]
NO_COUNTS = np.zeros(1000, np.int32)
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def some_logits(n: int = 1000, seed: int = 0, spread: float = 3.0) -> Floats:
    return np.asarray(np.random.default_rng(seed).standard_normal(n) * spread, np.float32)


def params(**changes: float | None) -> SamplingParams:
    return SamplingParams(**{**PLAIN, "seed": 1, **changes})  # type: ignore[arg-type]


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(weights / weights.sum())


def test_random_numbers_are_splitmix64() -> None:
    """The published values of SplitMix64 for seed 1234567, and that a draw can be repeated."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [random_u64(1234567, step) for step in range(4)] == published
    assert random_u64(1234567, 2) == published[2]
    assert random_u64(2**64 - 1, 10**9) < 2**64


def test_the_tokens_of_a_seed_never_change() -> None:
    """The contract of docs/sampling.md: if this fails, every user's seeds have changed meaning."""
    rising = np.asarray(np.arange(50) / 16, np.float32)
    drawn = [sample(rising, NO_COUNTS[:50], params(seed=42), step) for step in range(12)]
    assert drawn == [45, 23, 31, 34, 9, 47, 27, 46, 34, 42, 27, 39]
    drawn = [sample(rising, NO_COUNTS[:50], SamplingParams(seed=42), step) for step in range(12)]
    assert drawn == [46, 30, 35, 38, 21, 48, 33, 47, 37, 44, 33, 41]


def weight_of(logit: np.float32, largest: np.float32, inverse_temperature: float) -> int:
    """docs/sampling.md once more, for one token, in scalar float32 steps."""
    t = max((logit - largest) * np.float32(inverse_temperature) * np.float32(1.4426950408889634), np.float32(-63))
    if t > -(2.0**-30):
        t = np.float32(0)
    whole = math.floor(t)
    power = np.float32(0.00021865784947294742)
    for c in (0.0012391331838443875, 0.009684186428785324, 0.055480629205703735, 0.24023045599460602,
              0.6931469440460205, 1.0):  # fmt: skip
        power = np.float32(power * (t - np.float32(whole))) + np.float32(c)
    return (int(power * np.float32(2**23)) << 17) >> -whole


def test_draws_equal_the_written_algorithm() -> None:
    for step in range(300):
        logits = some_logits(40, seed=step)
        weights = [weight_of(logit, logits.max(), 1 / 0.7) for logit in logits]
        draw = random_u64(9, step) * sum(weights) // 2**64
        expected = next(i for i in range(40) if sum(weights[: i + 1]) > draw)
        assert sample(logits, NO_COUNTS[:40], params(temperature=0.7, seed=9), step) == expected


def test_weights_are_the_exponential() -> None:
    logits = np.linspace(-27, 5, 100_001, dtype=np.float32)
    weights = exp_weights(logits, logits.max())
    expected = np.exp(logits.astype(np.float64) - 5)
    assert np.abs(weights / 2.0**40 - expected).max() < 2e-7
    likely = expected > 2.0**-20
    assert np.abs(weights[likely] / 2.0**40 / expected[likely] - 1).max() < 3e-6
    assert weights.max() == 2**40
    assert (np.diff(weights) >= -(2**17)).all()  # rising, but for the last bit of float32


def test_weights_of_extremes() -> None:
    logits = np.array([0, -1e-42, -1e-12, -1e3, -np.inf, -3e38], np.float32)
    assert exp_weights(logits, np.float32(0)).tolist() == [2**40, 2**40, 2**40, 0, 0, 0]
    assert exp_weights(np.array([3, 2.999], np.float32), np.float32(3), 1e30).tolist() == [2**40, 0]


def test_greedy_takes_the_first_largest() -> None:
    logits = some_logits(10)
    logits[[4, 7]] = 50
    assert sample(logits, NO_COUNTS[:10], params(temperature=0.0), 0) == 4


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_distribution(temperature: float) -> None:
    logits = some_logits(8, spread=1.0)
    n = 20_000
    drawn = [sample(logits, NO_COUNTS[:8], params(temperature=temperature, seed=5), step) for step in range(n)]
    expected = softmax(logits / temperature) * n
    chi_square = ((np.bincount(drawn, minlength=8) - expected) ** 2 / expected).sum()
    assert chi_square < 26  # 7 degrees of freedom: one seed in two thousand would exceed it


def test_top_k_keeps_the_lower_id_among_equals() -> None:
    logits = np.array([1, 5, 3, 3, 3, 0], np.float32)
    assert most_likely(logits, 3).tolist() == [1, 2, 3]
    assert most_likely(logits, 6).tolist() == [1, 2, 3, 4, 0, 5]
    assert most_likely(logits, 100).tolist() == [1, 2, 3, 4, 0, 5]
    assert candidates(logits, params(top_k=2)).tolist() == [1, 2]


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float) -> None:
    logits = some_logits()
    probabilities = softmax(logits)
    order = np.argsort(-logits, kind="stable")
    sums = np.cumsum(probabilities[order])
    n_kept = int((sums < top_p - 1e-7).sum()) + 1
    assert candidates(logits, params(top_p=top_p)).tolist() == sorted(order[:n_kept].tolist())


@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.5, 1.0])
def test_min_p_drops_the_unlikely(min_p: float) -> None:
    logits = some_logits()
    kept = np.flatnonzero(np.exp(logits.astype(np.float64) - logits.max()) >= min_p)
    assert candidates(logits, params(min_p=min_p)).tolist() == kept.tolist()


def test_filters_see_temperature_1_and_work_in_order() -> None:
    """As in llama.cpp: top-k, then top-p of what top-k left, then min-p; the temperature last."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert candidates(logits, params(top_k=3, top_p=0.7)).tolist() == [0, 1]  # 0.4 + 0.3 of 0.9 is 0.78
    assert candidates(logits, params(top_p=0.75)).tolist() == [0, 1, 2]
    assert candidates(logits, params(top_p=0.75, temperature=100.0)).tolist() == [0, 1, 2]
    assert candidates(logits, params(top_p=0.95, min_p=0.6)).tolist() == [0, 1]


def filtered(logits: Floats, p: SamplingParams) -> list[int]:
    """The steps of an order in float64 probabilities, as llama.cpp has them: each sees what is left, as it then is."""
    left, temperature = list(range(len(logits))), 1.0
    for step in p.order:
        left.sort(key=lambda i: (-logits[i], i))
        chances = np.exp((logits[left].astype(np.float64) - logits.max()) / temperature)
        chances /= chances.sum()
        if step == "temperature":
            temperature = p.temperature
        elif step == "top_k":
            left = left[: p.top_k]
        elif step == "top_p":
            left = left[: int((np.cumsum(chances) < p.top_p - 1e-9).sum()) + 1]
        else:
            left = [i for i, chance in zip(left, chances, strict=True) if chance >= p.min_p * chances[0]]
    return sorted(left)


ORDERS = [",".join(steps) for steps in itertools.permutations(STEPS)]


def test_every_order() -> None:
    found = set()
    for temperature, top_k, top_p, min_p in itertools.product((0.5, 1.7), (4, 20), (0.6, 0.9), (0.02, 0.3)):
        logits = some_logits(60, seed=top_k, spread=1.5)
        kept = []
        for order in ORDERS:
            p = SamplingParams(temperature, top_k, top_p, min_p, seed=1, sampler_order=order)
            kept.append(candidates(logits, p).tolist())
            assert kept[-1] == filtered(logits, p), p
        found.add(tuple(map(tuple, kept)))
    assert len({order for kept in found for order in zip(ORDERS, kept, strict=True)}) > 2 * len(ORDERS)
    assert any(len(set(kept)) >= 4 for kept in found)  # the order matters


def test_temperature_first_is_the_order_of_llama2c() -> None:
    """Its top-p sees the distribution at the temperature: a low one leaves few."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    cool = {"temperature": 0.5, "top_p": 0.75}  # then 0.53, 0.3, 0.13, 0.03
    assert candidates(logits, params(**cool)).tolist() == [0, 1, 2]
    assert candidates(logits, replace(params(**cool), sampler_order=TEMPERATURE_FIRST)).tolist() == [0, 1]


def test_orders_that_are_refused_and_spellings_that_are_one() -> None:
    assert SamplingParams().sampler_order == "top_k,top_p,min_p,temperature"  # llama.cpp's
    spelt = SamplingParams(sampler_order="temperature; top_k;top_p , min_p ")
    assert spelt.sampler_order == TEMPERATURE_FIRST
    for order in ("", "top_k", "top_k,top_p,min_p,min_p", "top_k,top_p,min_p,temp", TEMPERATURE_FIRST + ",top_k", 7):
        with pytest.raises(UsageError, match=r"^sampler_order must name top_k, top_p, min_p and temp"):
            SamplingParams(sampler_order=order)  # type: ignore[arg-type]


def test_the_order_is_taken_from_the_command_and_from_python(
    small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"temperature": 9.0, "top_k": 0, "top_p": 0.3, "min_p": 0.0, "seed": 1, "max_tokens": 12}
    llm = load(small_model, "cpu")
    texts = {order: "".join(llm.generate("on", sampler_order=order, **options)) for order in (None, TEMPERATURE_FIRST)}
    assert texts[None] != texts[TEMPERATURE_FIRST]
    for order, text in texts.items():
        run(str(small_model), "on", device="cpu", sampler_order=order, **options)
        assert capsys.readouterr().out == text
    with pytest.raises(UsageError, match="sampler_order must name"):
        run("no such file", sampler_order="top_k")


def test_a_penalty_below_1_is_said_to_encourage(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for penalty, n in ((0.8, 1), (1.0, 0), (1.2, 0)):
        run(str(small_model), "on", device="cpu", repetition_penalty=penalty, max_tokens=2)
        notices = capsys.readouterr().err
        assert notices.count("encourages tokens that are in the context already") == n
        assert notices.count("1.25 discourages them") == n


def test_repetition_penalty_divides_or_multiplies() -> None:
    logits, counts = np.array([2, -2, 0, 3], np.float32), np.array([1, 5, 1, 0], np.int32)
    assert penalize(logits, counts, 2.0).tolist() == [1, -4, 0, 3]
    assert (
        sample(
            np.array([3, 2.9], np.float32),
            np.array([1, 0], np.int32),
            params(temperature=0.0, repetition_penalty=1.1),
            0,
        )
        == 1
    )


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[3, 50]] = 1.0
    assert {sample(logits, NO_COUNTS[:100], params(), step) for step in range(50)} == {3, 50}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = some_logits(10)
    logits[5] = bad
    with pytest.raises(LlamaGPUError, match="not numbers"):
        sample(logits, NO_COUNTS[:10], params(), 0)


OUT_OF_RANGE = [
    {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1}, {"top_k": 2.5},
    {"top_p": 1.01}, {"top_p": -0.1}, {"top_p": math.nan}, {"min_p": -1}, {"min_p": 1.5}, {"min_p": math.nan},
    {"repetition_penalty": 0}, {"repetition_penalty": -1.0}, {"repetition_penalty": math.nan}, {"seed": -1},
    {"seed": 2**64}, {"seed": 1.5}, {"temperature": "hot"}, {"temperature": True},
]  # fmt: skip


@pytest.mark.parametrize("values", OUT_OF_RANGE, ids=str)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(values))} must be"):
        SamplingParams(**values)  # type: ignore[arg-type]


def test_defaults_are_the_same_everywhere() -> None:
    """They are written where each reader looks: the command, the Python call, the parameters. Those that a micro_rwkv
    has otherwise are None there, and in words."""
    of_command, of_call = (inspect.signature(function).parameters for function in (run, LLM.generate))
    for field in fields(SamplingParams):
        if field.name == "sampler_order":  # of a faithful run that of the program
            assert f"Default: {field.default}, as in llama.cpp." in (run.__doc__ or "")
            assert f"Default: {field.default}, as in llama.cpp." in (chat.__doc__ or "")
            assert of_command[field.name].default is of_call[field.name].default is None
            continue
        differs = field.name in SAMPLING
        default = None if differs else field.default
        assert of_command[field.name].default == of_call[field.name].default == default, field.name
        in_words = f"Default: {field.default}, of micro_rwkv {SAMPLING.get(field.name, 0):g}."
        assert (in_words in (run.__doc__ or "")) == (in_words in (chat.__doc__ or "")) == differs, field.name
    assert of_command["max_tokens"].default == of_call["max_tokens"].default


def test_a_fresh_seed_is_drawn_once() -> None:
    seeded = SamplingParams().with_seed()
    assert seeded.seed is not None
    assert seeded.with_seed() is seeded
