"""A session: one sequence that goes on. What was read and said, as tokens, and the model's state behind it.

One rule makes all else simple: the state has run the first ``n_run`` of ``tokens`` and nothing else, and the last
token is not run before something is to follow it. So an answer that ends anywhere (end token, stop string, Ctrl-C)
leaves a session that equals one which has read the same tokens as a prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamagpu.backends.protocol import Array
from llamagpu.errors import ContextFullError, UsageError
from llamagpu.models import State
from llamagpu.sampling import SamplingParams

if TYPE_CHECKING:
    from llamagpu.llm import LLM

SMALLEST_CACHE = 512  # positions
LONG = 1 << 16  # characters: a shorter text is soon encoded


class Session:
    """tokens: ids of all that was read and said. n_unknown: tokens before those, whose ids are not known (of a memory
    of another program). n_drawn: random numbers used. seed: of the last answer; None before the first."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.tokens: list[int] = []
        self.n_unknown = self.n_drawn = 0
        self.seed: int | None = None
        self._state: State | None = None

    def __repr__(self) -> str:
        unknown = f" after {self.n_unknown} unknown ones" if self.n_unknown else ""
        return f"<Session: {len(self.tokens)} tokens{unknown}, {self.n_run} of them run, of {self.llm!r}>"

    @property
    def state(self) -> State:
        if self._state is None:
            self._state = self._new_state(1)
        return self._state

    @property
    def n_run(self) -> int:
        """How many of ``tokens`` the state has seen."""
        return 0 if self._state is None else self._state.length - self.n_unknown

    @property
    def length(self) -> int:
        """Of the whole sequence, in tokens."""
        return self.n_unknown + len(self.tokens)

    @property
    def pending(self) -> list[int]:
        """Tokens that are still to be run."""
        return self.tokens[self.n_run :]

    @property
    def room(self) -> int | None:
        """How many more tokens the context takes; None where there is no end."""
        return None if self.state.room is None else max(0, self.llm.context - self.length)

    def add(self, ids: Sequence[int]) -> None:
        """Tokens to be read next. Raises ContextFullError, and adds nothing, where they do not fit the context."""
        self.llm.check_tokens(ids)
        if self.room is not None and len(ids) > self.room:
            raise ContextFullError(
                f"the context of {self.llm.context} tokens is full: {self.length} are in it, {len(ids)} more came"
            )
        self.tokens += ids

    def check_fits(self, text: str, n_before: int | None = None) -> None:
        """Raises ContextFullError for a long text of which it is plain before it is encoded that it does not fit.

        n_before: tokens that stand before it, if not those of the session.
        """
        llm, n = self.llm, self.length if n_before is None else n_before
        if len(text) >= LONG and n + (fewest := llm.tokenizer.fewest_tokens(text)) > llm.longest:
            raise ContextFullError(
                f"the context of {llm.context} tokens is full: {n} are in it, at least {fewest} more came"
            )

    def read(self, chunk: int, on_tokens: Callable[[int], None] = lambda n: None, leave: int = 1) -> None:
        """Run what is pending, ``chunk`` tokens at once, but for the last ``leave``. on_tokens: called after each."""
        self._run(len(self.tokens) - leave, chunk, 0, on_tokens)

    def logits(self, chunk: int, on_tokens: Callable[[int], None], n_more: int) -> Array:
        """Run all that is pending; the logits after it. n_more: tokens to make room for, as far as there is some.

        Nothing is pending where an answer ended by itself and nobody has spoken since: then the last token is run
        again. Raises UsageError for a state that cannot go back to it.
        """
        self.reserve(self.length + n_more)
        if not self.pending:
            if not self.state.rewindable:
                raise UsageError("the text has come to its end: say something for it to go on from")
            self.state.length -= 1
        return self._run(len(self.tokens), chunk, 1, on_tokens)

    def _run(self, end: int, chunk: int, n_logits: int, on_tokens: Callable[[int], None]) -> Any:
        self.reserve(self.n_unknown + end)
        llm, logits = self.llm, None
        for at in range(self.n_run, end, chunk):
            part = self.tokens[at : min(at + chunk, end)]
            llm.check_unchanged()
            logits = llm.model.forward(part, self.state, n_logits=n_logits * int(at + len(part) == end))
            llm.backend.wait()
            on_tokens(len(part))
        return logits

    def reserve(self, n_tokens: int) -> None:
        """Memory for as many tokens in all, as far as the context goes. What is remembered moves along."""
        state, needed = self._state, min(n_tokens, self.llm.context)
        if state is None or (state.length == 0 and state.room is not None and state.room < needed):
            self._state = None  # first, so that the two are never there at once
            del state
            self._state = self._new_state(needed)
        elif state.room is not None and state.length + state.room < needed:
            arrays, length = self.llm.model.save_state(state), state.length
            self._state = None
            del state
            self._state = self._new_state(needed)
            self.llm.model.load_state(self._state, arrays, length)

    def _new_state(self, n_tokens: int) -> State:
        return self.llm.model.new_state(self.llm.state_options(positions(n_tokens, self.llm.context)))

    def restore(self, arrays: dict[str, Any], length: int) -> None:
        """Take on a saved state. Raises ValueError where it does not fit."""
        self._state = self._new_state(length)
        self.llm.model.load_state(self._state, arrays, length)

    def arrays(self) -> dict[str, Any]:
        """The state, to be saved. Empty where there is none, which is not the same as one that has seen 0 tokens."""
        return {} if self._state is None else self.llm.model.save_state(self._state)

    def save(self, path: str | Path) -> None:
        """Write it to a file, from which ``load`` goes on as if nothing had happened.

        Raises UsageError where the file cannot be written, or holds anything but a plain session of this model: the
        file of a chat holds a conversation too.
        """
        from llamagpu.memory import Memory  # files are above sessions

        file = Memory(os.fspath(path))
        if file.exists() and (not file.is_session(self.llm) or file.load(self.llm)[1]):
            raise UsageError(f"{path} holds something other than a plain session of this model: name another file")
        file.save(self)

    @classmethod
    def load(cls, llm: LLM, path: str | Path) -> Session:
        """The session that a file holds. Raises ModelFormatError, or UsageError where there is none."""
        from llamagpu.memory import Memory

        file = Memory(os.fspath(path))
        if not file.exists():
            raise UsageError(f"no file {str(path)!r}: Session(llm) begins a new session")
        return file.load(llm)[0]

    @property
    def begins(self) -> bool:
        """Whether nothing but a start token stands before what is to come."""
        return not self.n_unknown and set(self.tokens) <= {self.llm.tokenizer.bos_id}

    def sampler(self, params: SamplingParams) -> Any:
        """One that has seen these tokens and goes on with the random numbers."""
        sampler = self.llm.backend.sampler(params, self.llm.config.vocab_size)
        sampler.see(self.tokens)
        sampler.skip(self.n_drawn)
        return sampler

    def cut(self, n: int) -> bool:
        """Forget all but the first ``n`` tokens. False, and nothing is forgotten, where the state cannot go back."""
        if n < self.n_run:
            if not self.state.rewindable:
                return False
            self.state.length = self.n_unknown + n
        del self.tokens[n:]
        return True

    def replace(self, ids: Sequence[int]) -> int:
        """Make the tokens ``ids``, and keep what they begin with, where the state can go back to it; how many.

        Raises UsageError where it cannot, and there are tokens that are not known to be read again.
        """
        known, new = np.asarray(self.tokens[: len(ids)]), np.asarray(ids[: len(self.tokens)])
        differs = np.flatnonzero(known != new)
        n_same = int(differs[0]) if len(differs) else len(known)
        if not self.cut(n_same):
            if self.n_unknown:
                raise UsageError("this session cannot go back, and its first tokens are not known: /reset begins anew")
            self.clear()
            n_same = 0
        self.add(ids[n_same:])
        return n_same

    def clear(self) -> None:
        """Forget everything but the random numbers used."""
        self.tokens, self.n_unknown, self._state = [], 0, None


def positions(needed: int, context: int) -> int:
    """Positions to take memory for: 512, 2048, 8192, ..., at most the context.

    A model that was trained for 131,072 positions should not fill a GPU with the keys of a short text; and a little
    more text should not run with other shapes of kernels.
    """
    n_positions = SMALLEST_CACHE
    while n_positions < min(needed, context):
        n_positions *= 4
    return min(n_positions, context)
