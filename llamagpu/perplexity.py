"""How well a model foretells a text: negative log-likelihood of its tokens, perplexity, and how two models differ.

A text longer than the context is read in windows that overlap: each begins anew (with the model's start token, where it
has one), and of each only what no window before it has scored is scored. The text may also be a list of documents.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.llm import LLM
from llamagpu.logprobs import log_softmax
from llamagpu.sampling import DAMAGED_LOGITS, check_whole
from llamagpu.tokenizers import Tokenizer

Logits = NDArray[np.float32]
Doubles = NDArray[np.float64]
OnTokens = Callable[[int], None]


@dataclass(frozen=True)
class Window:
    """Tokens that the model reads from an empty state; those from ``first`` on are scored."""

    ids: list[int]
    first: int

    @property
    def n_scored(self) -> int:
        return len(self.ids) - self.first


def windows(
    tokenizer: Tokenizer, text: str, context: int, stride: int, documents: bool = False, limit: int = 0,
    add_bos: bool = True,
) -> list[Window]:  # fmt: skip
    """The windows of a text, at most ``context`` tokens each, a new one every ``stride`` tokens.

    documents: the text is documents, one a line (a doubled newline is within one), each cut at the context. limit: only
    the first so many documents or windows; 0: all. add_bos: begin each with the start
    token. Raises UsageError where nothing is left to score.
    """
    check_whole("context", context, 2, 1 << 40)
    check_whole("stride", stride, 1, context - 1)
    found: list[Window] = []
    start = [] if tokenizer.bos_id is None or not add_bos else [tokenizer.bos_id]
    if documents:
        parts = [part for part in re.split(r"(?<!\n)\n(?!\n)", text) if part]
        found = [Window(tokenizer.encode(part, add_bos)[:context], 1) for part in parts[: limit or None]]
    else:
        ids, room, scored = tokenizer.encode(text, add_bos=False), context - len(start), 0
        for at in range(0, len(ids), stride):
            end = min(at + room, len(ids))
            if end > scored:
                found.append(Window(start + ids[at:end], max(1, len(start) + scored - at)))
            scored = end
            if end == len(ids) or len(found) == limit:
                break
    found = [window for window in found if window.n_scored > 0]
    if not found:
        raise UsageError("the text is too short: a token is scored by what comes before it, so two are needed")
    return found


def stream(tokenizer: Tokenizer, text: str, n_tokens: int | None = None, add_bos: bool = True) -> Window:
    """The text, or its first n_tokens, as one window of any length behind the start token. Raises UsageError."""
    if n_tokens is not None:
        check_whole("tokens", n_tokens, 1, 1 << 40)
    ids = tokenizer.encode(text, add_bos=False)[:n_tokens]
    window = Window(ids if tokenizer.bos_id is None or not add_bos else [tokenizer.bos_id, *ids], 1)
    if window.n_scored < 1:
        raise UsageError("the text is too short: a token is scored by what comes before it, so two are needed")
    return window


def logits_of(llm: LLM, window: Window) -> Iterator[tuple[Logits, NDArray[np.int64]]]:
    """Logits before each scored token and these tokens, a part of the window at a time. Raises LlamaGPUError."""
    position = 0
    for part in llm.logits_in_parts(window.ids[:-1]):
        first = max(window.first - 1 - position, 0)
        targets = np.asarray(window.ids[position + 1 : position + 1 + len(part)], np.int64)
        if first < len(part):
            if not np.isfinite(part[first:]).all():
                raise LlamaGPUError(DAMAGED_LOGITS)
            yield part[first:], targets[first:]
        position += len(part)


def mean_and_error(values: Sequence[float] | Doubles) -> tuple[float, float]:
    """The mean and its standard error, as if tokens were independent of one another."""
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan


@dataclass(frozen=True)
class Likelihood:
    """nll: nats a token, and its standard error."""

    nll: float
    nll_error: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nll, 700))

    @property
    def perplexity_error(self) -> float:
        return self.perplexity * self.nll_error


@dataclass(frozen=True)
class Score(Likelihood):
    """n_scored tokens of n_read; seconds for all of them."""

    n_scored: int
    n_read: int
    seconds: float


def score(llm: LLM, parts: Sequence[Window], on_tokens: OnTokens = lambda n: None) -> Score:
    """Negative log-likelihood of what the windows score. on_tokens: called with numbers of tokens that are read."""
    values: list[Doubles] = []
    start = time.perf_counter()
    for window in parts:
        for logits, targets in logits_of(llm, window):
            values.append(-log_softmax(logits)[np.arange(len(targets)), targets])
            on_tokens(len(targets))
        on_tokens(len(window.ids) - window.n_scored)
    n_scored, n_read = sum(window.n_scored for window in parts), sum(len(window.ids) for window in parts)
    return Score(*mean_and_error(np.concatenate(values)), n_scored, n_read, time.perf_counter() - start)


@dataclass(frozen=True)
class Comparison:
    """What model B is beside model A.

    kl: mean of KL(A || B) a token, in nats, and its standard error; kl_99: its 99th percentile. same_top: share of the
    tokens before which both find the same one most likely.
    """

    kl: float
    kl_error: float
    kl_99: float
    same_top: float
    a: Likelihood
    b: Likelihood
    n_scored: int


def compare(a: LLM, b: LLM, parts: Sequence[Window], on_tokens: OnTokens = lambda n: None) -> Comparison:
    """Compare the distributions of two models of one vocabulary on the same tokens. Raises UsageError."""
    if a.config.vocab_size != b.config.vocab_size:
        raise UsageError(f"the models have {a.config.vocab_size} and {b.config.vocab_size} tokens: nothing to compare")
    kl: list[Doubles] = []
    same: list[NDArray[np.bool_]] = []
    nll: tuple[list[Doubles], list[Doubles]] = ([], [])
    for window in parts:
        for (logits_a, targets), (logits_b, _) in zip(logits_of(a, window), logits_of(b, window), strict=True):
            log_a, log_b = log_softmax(logits_a), log_softmax(logits_b)
            kl.append((np.exp(log_a) * (log_a - log_b)).sum(axis=1))
            same.append(log_a.argmax(axis=1) == log_b.argmax(axis=1))
            for values, log_probs in zip(nll, (log_a, log_b), strict=True):
                values.append(-log_probs[np.arange(len(targets)), targets])
        on_tokens(len(window.ids))
    every = np.concatenate(kl)
    of_a, of_b = (Likelihood(*mean_and_error(np.concatenate(values))) for values in nll)
    same_top = float(np.concatenate(same).mean())
    return Comparison(*mean_and_error(every), float(np.quantile(every, 0.99)), same_top, of_a, of_b, len(every))
