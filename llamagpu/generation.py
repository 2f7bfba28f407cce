"""An answer: the prompt in chunks, then token after token, as text that streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from llamagpu.errors import UsageError
from llamagpu.logprobs import Logprobs, TokenLogprob
from llamagpu.sampling import SamplingParams, check_function, check_switch, check_whole, shown
from llamagpu.session import Session, positions
from llamagpu.tokenizers import StreamDecoder, special_tokens

if TYPE_CHECKING:
    from llamagpu.llm import LLM

MAX_TOKENS = 1 << 62
PROMPT_CHUNK = 512  # tokens of the prompt that go through the model as one matrix

__all__ = ["MAX_TOKENS", "PROMPT_CHUNK", "Answer", "Generation", "StopStrings", "positions"]

Prompt = str | Sequence[int] | NDArray[np.integer[Any]]
StopReason = Literal["eos", "stop", "max_tokens", "context", "unfinished"]


class Answer:
    """What a model says after the tokens of a session. Iterate over it for the text, piece by piece.

    What happened is in its fields, at any time. prompt_tokens, tokens: ids read and ids made (an end-of-text token is
    not among them: end_token is it). stop_reason: "eos" (the model ended its text), "stop" (a stop string came; it is
    not part of the text), "max_tokens", "context" (the context is full), "unfinished". Times in seconds, the reader's
    own not counted: prompt_seconds for the prompt, first_token_seconds to the first new token, decode_seconds for the
    decode_steps after it (one token each). logprobs: of each of ``tokens``, where they were asked for, else None.

    Tokens join the session as they are made. What a stop string took away leaves it again, where the state can go
    back; where it cannot, they stay: the session is always what the state has seen.
    """

    def __init__(
        self,
        session: Session,
        max_tokens: int,
        params: SamplingParams,
        stop: Sequence[str] = (),
        on_prompt_tokens: Callable[[int], None] = lambda n: None,
        at_start: bool = False,
        end_ids: Collection[int] = (),
        ends: Collection[int] | None = None,
        logprobs: int | None = None,
        strip: bool = False,
    ) -> None:
        """at_start: whether the answer opens the text. end_ids: tokens that end it, beside the model's own. ends: the
        only ones that do; the others are tokens of the text then, and stand for no characters. logprobs: how many of
        the most likely tokens to keep beside each. strip: leave out white space before the text, as a chat does."""
        check_answer(max_tokens, stop)
        check_function("on_prompt_tokens", on_prompt_tokens)
        llm = session.llm
        self.session, self.max_tokens, self.stop = session, max_tokens, tuple(stop)
        self.params = params.with_seed()
        self.on_prompt_tokens, self.at_start = on_prompt_tokens, at_start
        own = special_tokens.end_ids(llm.tokenizer, llm.checkpoint.stop_tokens)
        self.end_ids = {*own, *end_ids} if ends is None else set(ends)
        self.prompt_tokens = session.pending
        self.tokens: list[int] = []
        self.end_token: int | None = None
        self.stop_reason: StopReason = "unfinished"
        self.prompt_seconds = self.first_token_seconds = self.decode_seconds = 0.0
        self.decode_steps = 0
        self._logprobs = Logprobs(llm, logprobs) if logprobs is not None else None
        self._stops, self._decoder = StopStrings(self.stop, strip), StreamDecoder(llm.tokenizer, at_start)
        self._texts: list[str] = []  # of each token
        self._decoded: Generator[int] | None = None
        self._n_tokens, self._is_over = max_tokens, False

    def __repr__(self) -> str:
        n_prompt, n_new = len(self.prompt_tokens), len(self.tokens)
        return f"<{type(self).__name__}: {n_prompt} tokens of prompt, {n_new} new ones, {self.stop_reason}>"

    @property
    def text(self) -> str:
        """The whole text. What is not made yet is made now; of an answer that was closed, as far as it went."""
        for _ in self:
            pass
        return "".join(self._stops.given)

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """[{id, token, logprob, top: [{id, token, logprob}, ...]}, ...], one of each of ``tokens`` so far; None where
        they were not asked for. Natural logarithms, of the model's own probabilities: sampling is not in them."""
        return None if self._logprobs is None else self._logprobs.rows

    # No generator that knows this object, which would then know itself: left early, it is freed at once.
    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            while not self._is_over:
                piece = self._advance()
                if piece:
                    return piece
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """End it where it is. The session has the tokens that were made so far."""
        self._is_over = True
        if self._decoded is not None:
            self._decoded.close()

    def _advance(self) -> str:
        """Take one more token; the text that is certain with it, or at the end what was held back."""
        token, stops = self._next_token(), self._stops
        if token is not None:
            self._texts.append(self._decoder.feed(token))
            piece = stops.feed(self._texts[-1])
        else:
            piece = stops.feed(self._decoder.finish())
            if not stops.found:
                piece += stops.finish()
        if token is None or stops.found:
            self.close()
        if stops.found:
            self.stop_reason = "stop"
            self._take_back(self._texts)
        return piece

    def _take_back(self, texts: Sequence[str]) -> None:
        """Take the stop string, and what came after it, out of the session."""
        text = "".join(texts)
        end = min(place for stop in self.stop if (place := text.find(stop)) >= 0)
        n_whole = n_characters = 0
        while n_whole < len(texts) and n_characters + len(texts[n_whole]) <= end:
            n_characters += len(texts[n_whole])
            n_whole += 1
        session = self.session
        if session.cut(len(session.tokens) - len(texts) + n_whole) and n_characters < end:
            session.add(session.llm.tokenizer.encode_more(text[n_characters:end]))  # of a token that is part stop

    def held_text(self) -> str:
        """After an interruption: text already made but held back, since it might have begun a stop string."""
        return self._stops.finish()

    def _next_token(self) -> int | None:
        """The next id; None once the model has ended its text, max_tokens are made, or the context is full."""
        if self.stop_reason != "unfinished":
            return None
        session = self.session
        start = time.perf_counter()
        if self._decoded is None:
            self._decoded = self._read_prompt(start)
            token = next(self._decoded)
            self.first_token_seconds = time.perf_counter() - start
        else:
            session.llm.check_unchanged()
            token = next(self._decoded)
            self.decode_seconds += time.perf_counter() - start
            self.decode_steps += 1
        session.n_drawn += 1
        if token in self.end_ids:
            self.end_token = token
            self.stop_reason = "eos"
            return None
        self.tokens.append(token)
        if self._logprobs is not None:
            self._logprobs.take(token)
        session.tokens.append(token)
        if len(self.tokens) == self._n_tokens:
            self.stop_reason = "max_tokens" if self._n_tokens == self.max_tokens else "context"
        return token

    def _read_prompt(self, start: float) -> Generator[int]:
        """The tokens that follow what is pending, which is read first."""
        session, llm = self.session, self.session.llm
        session.seed = self.params.seed
        sampler = session.sampler(self.params)
        logits = session.logits(PROMPT_CHUNK, self.on_prompt_tokens, self.max_tokens)
        self.prompt_seconds = time.perf_counter() - start
        self._n_tokens = self.max_tokens
        room = session.state.room
        if room is not None:
            self._n_tokens = min(self._n_tokens, room + 1)  # the last token of a full context is made but not run
        decode = llm.model.decode if self._logprobs is None else self._logprobs.decode
        return cast("Generator[int]", decode(session.state, sampler, logits, self._n_tokens))


class Generation(Answer):
    """A session used once: the answer to a prompt."""

    def __init__(
        self,
        llm: LLM,
        prompt: Prompt,
        max_tokens: int,
        params: SamplingParams,
        stop: Sequence[str],
        on_prompt_tokens: Callable[[int], None],
        ignore_eos: bool = False,
        special: bool = False,
        **others: Any,
    ) -> None:
        """prompt: a text, or ids that are taken as they are. others: of Answer."""
        check_answer(max_tokens, stop)
        check_switch("ignore_eos", ignore_eos)
        check_switch("special", special)
        self.llm, self.prompt = llm, prompt
        session = Session(llm)
        if isinstance(prompt, str):
            session.check_fits(prompt)
            tokens = llm.encode_prompt(prompt, special)
        elif special:
            raise UsageError("special is for a prompt that is a text, and this one is token ids: leave it out")
        else:
            tokens = token_ids("prompt", prompt)
        if not tokens:
            raise UsageError("the prompt is empty and this model has no start token: give a prompt")
        n_prompt = len(tokens)
        if n_prompt > llm.longest:
            raise UsageError(f"the prompt is {n_prompt} tokens, the context {llm.context}: shorten the prompt")
        session.add(tokens)
        at_start = not prompt if isinstance(prompt, str) else session.begins
        others = {"ends": llm.ends(ignore_eos), **others}
        super().__init__(session, max_tokens, params, stop, on_prompt_tokens, at_start, **others)


def token_ids(name: str, value: object) -> list[int]:
    """Whole numbers of a list, a tuple or a NumPy array [n]. Raises UsageError for anything else."""
    ids: object = value.tolist() if isinstance(value, np.ndarray) else value
    if not (
        isinstance(ids, Sequence)
        and not isinstance(ids, (str, bytes))
        and all(isinstance(token, (int, np.integer)) and not isinstance(token, bool) for token in ids)
    ):
        kind = "a text or a list of token ids" if name == "prompt" else "a list of token ids"
        raise UsageError(f"{name} must be {kind}, not {shown(value)}")
    return [int(token) for token in ids]


def check_answer(max_tokens: int, stop: Sequence[str]) -> None:
    """Raises UsageError for values out of range."""
    check_whole("max_tokens", max_tokens, 1, MAX_TOKENS)
    if (
        isinstance(stop, str)
        or not isinstance(stop, Collection)
        or not all(isinstance(text, str) and text for text in stop)
    ):
        raise UsageError(f"stop must be a list of texts, none of them empty, not {shown(stop)}")


class StopStrings:
    """Lets text through up to the first stop string, holding back an end that may yet become one.

    given: what it has let through. strip: white space before the text does not get through.
    """

    def __init__(self, stops: Sequence[str], strip: bool = False) -> None:
        self.stops, self.strip = stops, strip
        self.given: list[str] = []
        self.held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The text that is now certain to be output. Sets ``found`` once a stop string has come."""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            self.found = True
            text, self.held = self.held[: min(places)], ""
            return self._give(text)
        n_held = max((self._overlap(stop) for stop in self.stops), default=0)
        cut = len(self.held) - n_held
        text, self.held = self.held[:cut], self.held[cut:]
        return self._give(text)

    def _give(self, text: str) -> str:
        text = text.lstrip() if self.strip else text
        if text:
            self.given.append(text)
            self.strip = False
        return text

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text with which ``stop`` begins."""
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)

    def finish(self) -> str:
        text, self.held = self.held, ""
        return self._give(text)
