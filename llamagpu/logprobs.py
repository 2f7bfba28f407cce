"""Log-probabilities of the tokens that a model makes, and of the most likely ones beside them.

They are of the raw logits: what sampling does (temperature, top-k, a repetition penalty) changes which token is drawn,
and not how likely the model finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.protocol import Array
from llamagpu.sampling import check_whole
from llamagpu.tokenizers import Tokenizer

if TYPE_CHECKING:
    from llamagpu.llm import LLM


class Candidate(TypedDict):
    """A token and its log-probability (natural logarithm, at most 0). token: its text, see ``text_of``."""

    id: int
    token: str
    logprob: float


class TokenLogprob(Candidate):
    """Of a token that was made. top: the most likely tokens of its place, the first one first."""

    top: list[Candidate]


class Logprobs:
    """Keeps the log-probabilities of one answer. rows: one of each token made, as far as they are made.

    Logits leave the device after each token, so nothing is computed ahead: the tokens are the same, and take longer.
    """

    def __init__(self, llm: LLM, n_top: int) -> None:
        """n_top: how many of the most likely tokens to keep beside each. Raises UsageError."""
        check_whole("logprobs", n_top, 0, llm.config.vocab_size)
        self.llm, self.n_top = llm, n_top
        self.rows: list[TokenLogprob] = []
        self._next: NDArray[np.float64] = np.zeros(0)  # [vocab_size], of the token that comes next

    def decode(self, state: Any, sampler: Any, logits: Array, n_tokens: int) -> Iterator[int]:
        """As ``Model.decode``."""
        self._see(logits)
        return self.llm.backend.decode_each(self._forward, state, sampler, logits, n_tokens)

    def _forward(self, tokens: Any, state: Any) -> Array:
        logits = self.llm.model.forward(tokens, state)
        self._see(logits)
        return logits

    def _see(self, logits: Array) -> None:
        self._next = log_softmax(self.llm.backend.to_host(logits, self.llm.config.vocab_size)[-1])

    def take(self, token: int) -> None:
        """``token`` was chosen."""
        top = [self._candidate(int(other)) for other in most_likely(self._next, self.n_top)]
        self.rows.append({**self._candidate(token), "top": top})

    def _candidate(self, token: int) -> Candidate:
        return {"id": token, "token": text_of(self.llm.tokenizer, token), "logprob": float(self._next[token])}


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """log(softmax(logits)) of each row [..., vocab_size], computed in float64."""
    with np.errstate(all="ignore"):  # logits that are not numbers: the sampler says so
        shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return shifted


def most_likely(logprobs: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Ids of the n largest, the largest first; of equal ones the lower id first."""
    if n == 0:
        return np.zeros(0, np.int64)
    among = np.flatnonzero(logprobs >= np.partition(logprobs, -n)[-n])
    return among[np.argsort(-logprobs[among], kind="stable")][:n]


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """What a token stands for, on its own: bytes that are no whole character are written as \\xNN, and a control token
    as chat templates write it."""
    piece = tokenizer.token_bytes(token)
    return piece.decode("utf-8", "backslashreplace") if piece else tokenizer.text_of(token) or ""
