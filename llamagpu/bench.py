"""Measures a model on its device: bandwidth, loading, decode, prompts, memory, kernels. Shows nothing itself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llamagpu.backends.cpu import bandwidth as host
from llamagpu.backends.cuda import CUDABackend
from llamagpu.backends.protocol import Backend, Weight
from llamagpu.backends.recurrent import Segment, empty_state
from llamagpu.bench_kernels import KernelRow, kernel_rows
from llamagpu.checkpoint import Checkpoint
from llamagpu.config import ModelConfig
from llamagpu.devices import OnWork, peak_memory_bytes
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.generation import PROMPT_CHUNK
from llamagpu.models import Model, StateOptions, load_model
from llamagpu.sampling import SamplingParams
from llamagpu.terminal import human_bytes

DROPPED_STEPS = 8  # of each decode: they compile, capture the graph and fill the queue of steps
STEPS_BEYOND = 8  # asked for but not taken, so that the queue is as full at the last measured step as at the first
GREEDY = SamplingParams(temperature=0, seed=0)


@dataclass(frozen=True)
class BenchSettings:
    """contexts, prompts: lengths to measure at, in tokens. tokens: decode steps measured at each context."""

    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    tokens: int
    kernels: bool
    seed: int

    @property
    def positions(self) -> int:
        """Positions that a model needs for all of it."""
        return max([*self.contexts, *self.prompts, 1]) + n_made(self.tokens)


@dataclass(frozen=True)
class DecodeRow:
    """Decode at one context. Either everything is measured, or nothing and ``left_out`` says why.

    tokens_per_s: of the median step. p50_us, p99_us: from one token to the next, by the host's clock.
    bytes_per_token: weight_bytes that a step reads, and kv_bytes of the positions before it; of a recurrent model those
    of its state, read and written.
    """

    context: int
    tokens_per_s: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    weight_bytes: int | None = None
    kv_bytes: int | None = None
    bytes_per_token: int | None = None
    gb_per_s: float | None = None
    percent_of_bandwidth: float | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class PromptRow:
    """A prompt read once. first_token_ms: from an empty cache to the first new token."""

    tokens: int
    first_token_ms: float | None = None
    tokens_per_s: float | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class Load:
    """How the weights came to the device. gb_per_s: None where nothing was moved: a mapped file on the CPU."""

    bytes: int
    seconds: float
    gb_per_s: float | None


@dataclass
class Measured:
    """What one run found. Bytes per second are GB/s (10^9); sizes are bytes. None: not measured.

    dependent_launch: whether kernels were launched so that each begins while the one before it ends; None on the CPU.
    """

    bandwidth_gb_per_s: float
    load: Load
    dependent_launch: bool | None = None
    decode: list[DecodeRow] = field(default_factory=list)
    prompt: list[PromptRow] = field(default_factory=list)
    kernels_context: int | None = None
    kernels: list[KernelRow] | None = None
    kernels_left_out: str | None = None
    peak_device_bytes: int | None = None
    peak_host_bytes: int | None = None


def measure(
    checkpoint: Checkpoint,
    backend: Backend,
    settings: BenchSettings,
    on_work: OnWork = lambda title, n, total: None,
) -> Measured:
    """Measure all that ``settings`` ask for; a length that does not fit is left out with its reason.

    Raises LlamaGPUError where the weights themselves do not fit.
    """
    if checkpoint.config.mem_len:
        raise UsageError("bench measures at contexts; a model with a memory is as fast at any (--endless measures it)")
    check_measurable(checkpoint.config)
    bandwidth = copy_bandwidth(backend)
    peak_is_ours = isinstance(backend, CUDABackend) or host.forget_peak()  # not that of the copy
    start = time.perf_counter()
    model = load_model(checkpoint, backend, lambda n: on_work("loading the weights", n, checkpoint.nbytes))
    backend.wait()
    seconds = time.perf_counter() - start
    n_bytes = checkpoint.nbytes
    moved = isinstance(backend, CUDABackend)
    result = Measured(bandwidth / 1e9, Load(n_bytes, seconds, n_bytes / seconds / 1e9 if moved else None))

    n_steps = (settings.tokens + DROPPED_STEPS) * len(settings.contexts) + sum(settings.prompts)

    def done(n: int) -> None:
        on_work("measuring", n, n_steps)

    if isinstance(backend, CUDABackend):
        result.dependent_launch = backend.device.dependent_launch is not None

    def note_memory() -> None:
        if isinstance(backend, CUDABackend):
            result.peak_device_bytes = max(result.peak_device_bytes or 0, backend.device.memory_in_use())

    note_memory()
    for context in settings.contexts:
        try:
            row = decode_row(model, backend, context, settings.tokens, bandwidth, done, note_memory)
        except (LlamaGPUError, MemoryError) as error:
            row = DecodeRow(context, left_out=reason(error))
        result.decode.append(row)
    rng = np.random.default_rng(settings.seed)
    for n_tokens in settings.prompts:
        prompt = rng.integers(0, checkpoint.config.vocab_size, n_tokens).tolist()
        try:
            result.prompt.append(prompt_row(model, backend, prompt, done, note_memory))
        except (LlamaGPUError, MemoryError) as error:
            result.prompt.append(PromptRow(n_tokens, left_out=reason(error)))
    if settings.kernels:
        measure_kernels(result, model, backend, settings.tokens)
    note_memory()
    result.peak_host_bytes = peak_memory_bytes() if peak_is_ours else None
    return result


def check_measurable(config: ModelConfig) -> None:
    """Raises UsageError for a model of which a token has no cost of its own."""
    if not (config.keeps_keys or config.recurrent):
        raise UsageError(f"bench has no way to measure a {config.architecture}: each token runs all before it")


def copy_bandwidth(backend: Backend) -> float:
    """Of the memory that the weights are in, bytes per second; read and written both count."""
    return backend.device.copy_bandwidth() if isinstance(backend, CUDABackend) else host.copy_bandwidth()


def weight_bytes_per_token(model: Any) -> int:
    """Bytes of weights that one decode step reads, as the device holds them: padding and scales included.

    Every matrix and vector once, and of the embedding one row; where the head is tied, the embedding is the head and
    counts as a whole.
    """
    row = 0 if model.config.tied_head else model.embedding.nbytes // model.config.vocab_size
    return int(row + stored_bytes((model.norm, model.head, model.layers)))


def stored_bytes(weight: Weight) -> int:
    """Bytes of a weight as its backend keeps it, which may be as several matrices; of a layer, of all its weights."""
    if weight is None or isinstance(weight, Segment):
        return 0
    if isinstance(weight, tuple | list):
        return sum(map(stored_bytes, weight))
    if hasattr(weight, "nbytes"):
        return int(weight.nbytes)
    return sum(map(stored_bytes, vars(weight).values()))


def state_bytes(state: Any, config: ModelConfig, context: int) -> int:
    """Bytes of what a step at ``context`` reads beside the weights, as the device holds them: keys and values, or a
    state, which it writes too."""
    if config.recurrent:
        return 2 * sum(array.nbytes for array in empty_state(config).values())
    return int((state.keys.nbytes + state.values.nbytes) // state.capacity * context)


def n_made(n_tokens: int) -> int:
    """Tokens asked for where n_tokens steps are measured; each step is from one token to the next."""
    return DROPPED_STEPS + n_tokens + 1 + STEPS_BEYOND


def make_state(model: Model, capacity: int) -> Any:
    """A state whose memory is really there. Raises LlamaGPUError where it does not fit."""
    backend, config = model.backend, model.config
    if isinstance(backend, CUDABackend) or config.recurrent:
        return model.new_state(StateOptions(capacity))
    needed, free = capacity * config.kv_bytes_per_token(), host.available_bytes()
    if free is not None and needed > 0.9 * free:
        raise LlamaGPUError(f"keys and values need {human_bytes(needed)} of memory, {human_bytes(free)} are free")
    cache: Any = model.new_state(StateOptions(capacity))
    for array in (cache.keys, cache.values):
        array.fill(0)  # pages that were never written are all one page, and quick to read
    return cache


def check_positions(config: ModelConfig, n: int) -> None:
    if not config.endless and n > config.max_seq_len:
        raise LlamaGPUError(f"the model has {config.max_seq_len} positions")


def decode_row(
    model: Model,
    backend: Backend,
    context: int,
    n_tokens: int,
    bandwidth: float,
    done: Callable[[int], None] = lambda n: None,
    note_memory: Callable[[], None] = lambda: None,
) -> DecodeRow:
    """Greedy decode from ``context`` positions on. What they hold does not matter to speed: they are zeros.

    Bytes are those at the context itself, though the measured steps see up to DROPPED_STEPS + n_tokens positions more.
    """
    check_positions(model.config, context)
    state = make_state(model, context + n_made(n_tokens))
    state.length = context - 1
    logits = model.forward([1], state)
    sampler = backend.sampler(GREEDY, model.config.vocab_size)
    times = []
    made = model.decode(state, sampler, logits, n_made(n_tokens))
    for _ in itertools.islice(made, DROPPED_STEPS + n_tokens + 1):
        times.append(time.perf_counter())
        done(int(len(times) > 1))
    note_memory()
    p50, p99 = np.percentile(np.diff(times)[DROPPED_STEPS:], [50, 99]).tolist()
    weights, of_state = weight_bytes_per_token(model), state_bytes(state, model.config, context)
    rate = (weights + of_state) / p50
    return DecodeRow(
        context=context,
        tokens_per_s=1 / p50,
        p50_us=p50 * 1e6,
        p99_us=p99 * 1e6,
        weight_bytes=weights,
        kv_bytes=of_state,
        bytes_per_token=weights + of_state,
        gb_per_s=rate / 1e9,
        percent_of_bandwidth=100 * rate / bandwidth,
    )


def prompt_row(
    model: Model,
    backend: Backend,
    prompt: list[int],
    done: Callable[[int], None] = lambda n: None,
    note_memory: Callable[[], None] = lambda: None,
) -> PromptRow:
    """The prompt in chunks, as ``generate`` reads it, and the first token after it."""
    n = len(prompt)
    check_positions(model.config, n)
    state = make_state(model, n)
    chunks = [prompt[at : at + PROMPT_CHUNK] for at in range(0, n, PROMPT_CHUNK)]
    # what has to be compiled or allocated for chunks of these sizes is so before the clock starts
    for size in {len(chunk) for chunk in chunks} if isinstance(backend, CUDABackend) else {min(n, 16)}:
        model.forward(prompt[:size], state)
        state.length = 0
    warm_sampler, sampler = (backend.sampler(GREEDY, model.config.vocab_size) for _ in range(2))
    list(model.decode(state, warm_sampler, model.forward(prompt[:1], state), 1))
    state.length = 0  # what a recurrent state has seen does not matter to speed
    backend.wait()
    start = time.perf_counter()
    for chunk in chunks:
        logits = model.forward(chunk, state, n_logits=int(state.length + len(chunk) == n))
        backend.wait()
        done(len(chunk))
    read = time.perf_counter() - start
    list(model.decode(state, sampler, logits, 1))
    first = time.perf_counter() - start
    note_memory()
    return PromptRow(n, first_token_ms=first * 1e3, tokens_per_s=n / read)


def measure_kernels(result: Measured, model: Model, backend: Backend, n_tokens: int) -> None:
    """The table of kernels, at the first context that was measured. Last of all: it leaves scratch memory changed."""
    measured = [row.context for row in result.decode if row.left_out is None]
    if not isinstance(backend, CUDABackend):
        result.kernels_left_out = "the CPU has no kernels"
    elif not measured:
        result.kernels_left_out = "no context was measured"
    else:
        try:
            result.kernels = kernel_rows(model, backend, measured[0], measured[0] + n_made(n_tokens))
            result.kernels_context = measured[0]
        except (LlamaGPUError, MemoryError) as error:
            result.kernels_left_out = reason(error)


def reason(error: Exception) -> str:
    return str(error) or "not enough memory"
