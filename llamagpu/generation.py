"""One generation: the prompt in chunks, then token after token, as text that streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from llamagpu.errors import UsageError
from llamagpu.sampling import SamplingParams, check_whole
from llamagpu.tokenizers import StreamDecoder

if TYPE_CHECKING:
    from llamagpu.llm import LLM

MAX_TOKENS = 1 << 62
PROMPT_CHUNK = 512  # tokens of the prompt that go through the model as one matrix
SMALLEST_CACHE = 512  # positions

StopReason = Literal["eos", "stop", "max_tokens", "context", "unfinished"]


class Generation:
    """Iterate over it for the text, piece by piece. What happened is in its fields, at any time.

    prompt_tokens, tokens: ids read and ids made (an end-of-text token is not among them). stop_reason: "eos" (the
    model ended its text), "stop" (a stop string came; it is not part of the text), "max_tokens", "context" (the
    context is full), "unfinished". Times in seconds, the reader's own not counted: prompt_seconds for the prompt,
    first_token_seconds to the first new token, decode_seconds for the decode_steps after it (one token each).
    """

    def __init__(
        self,
        llm: LLM,
        prompt: str,
        max_tokens: int,
        params: SamplingParams,
        stop: Sequence[str],
        on_prompt_tokens: Callable[[int], None],
    ) -> None:
        check_whole("max_tokens", max_tokens, 1, MAX_TOKENS)
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise UsageError("stop must be a list of texts, none of them empty")
        self.llm, self.max_tokens, self.stop = llm, max_tokens, tuple(stop)
        self.params = params.with_seed()
        self.on_prompt_tokens = on_prompt_tokens
        self.prompt = prompt
        self.prompt_tokens = llm.tokenizer.encode(prompt, add_bos=llm.quirks.adds_bos)
        if not self.prompt_tokens:
            raise UsageError("the prompt is empty and this model has no start token: give a prompt")
        if llm.quirks.repeats_last_prompt_token:
            self.prompt_tokens.append(self.prompt_tokens[-1])
        n_prompt = len(self.prompt_tokens)
        if n_prompt > llm.longest:
            raise UsageError(f"the prompt is {n_prompt} tokens, the context {llm.context}: shorten the prompt")
        llm.check_tokens(self.prompt_tokens)
        self.tokens: list[int] = []
        self.stop_reason: StopReason = "unfinished"
        self.prompt_seconds = self.first_token_seconds = self.decode_seconds = 0.0
        self.decode_steps = 0
        self._stops = StopStrings(self.stop)
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _run(self) -> Iterator[str]:
        decoder = StreamDecoder(self.llm.tokenizer, at_start=not self.prompt)
        stops = self._stops
        for token in self._tokens():
            piece = stops.feed(decoder.feed(token))
            if piece:
                yield piece
            if stops.found:
                self.stop_reason = "stop"
                return
        piece = stops.feed(decoder.finish())
        if stops.found:
            self.stop_reason = "stop"
        else:
            piece += stops.finish()
        if piece:
            yield piece

    def held_text(self) -> str:
        """After an interruption: text already made but held back, since it might have begun a stop string."""
        return self._stops.finish()

    def _tokens(self) -> Iterator[int]:
        """New token ids, until the model ends its text, max_tokens are made, or the context is full."""
        llm, prompt = self.llm, self.prompt_tokens
        # llama2.c's models open the next story with BOS
        end_ids = {llm.tokenizer.bos_id, llm.tokenizer.eos_id, *llm.tokenizer.stop_ids, *llm.checkpoint.stop_tokens}
        start = time.perf_counter()
        n_positions = positions(len(prompt) + self.max_tokens, llm.context)
        state = llm.model.new_state(llm.state_options(n_positions))
        sampler = llm.backend.sampler(self.params, llm.config.vocab_size)
        sampler.see(prompt)
        for at in range(0, len(prompt), PROMPT_CHUNK):
            chunk = prompt[at : at + PROMPT_CHUNK]
            logits = llm.model.forward(chunk, state, n_logits=int(at + len(chunk) == len(prompt)))
            llm.backend.wait()
            self.on_prompt_tokens(len(chunk))
        self.prompt_seconds = time.perf_counter() - start
        n_tokens = self.max_tokens
        if state.room is not None:
            n_tokens = min(n_tokens, state.room + 1)  # the last token of a full context is made but not run
        tokens = llm.model.decode(state, sampler, logits, n_tokens)
        token = next(tokens)
        self.first_token_seconds = time.perf_counter() - start
        while token not in end_ids:
            self.tokens.append(token)
            if len(self.tokens) == n_tokens:
                self.stop_reason = "max_tokens" if n_tokens == self.max_tokens else "context"
            yield token
            if self.stop_reason != "unfinished":
                return
            start = time.perf_counter()
            token = next(tokens)
            self.decode_seconds += time.perf_counter() - start
            self.decode_steps += 1
        self.stop_reason = "eos"


def positions(needed: int, context: int) -> int:
    """Positions to take memory for: 512, 2048, 8192, ..., at most the context.

    A model that was trained for 131,072 positions should not fill a GPU with the keys of a short text; and a little
    more text should not run with other shapes of kernels.
    """
    n_positions = SMALLEST_CACHE
    while n_positions < min(needed, context):
        n_positions *= 4
    return min(n_positions, context)


class StopStrings:
    """Lets text through up to the first stop string, holding back an end that may yet become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The text that is now certain to be output. Sets ``found`` once a stop string has come."""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            self.found = True
            text, self.held = self.held[: min(places)], ""
            return text
        n_held = max((self._overlap(stop) for stop in self.stops), default=0)
        cut = len(self.held) - n_held
        text, self.held = self.held[:cut], self.held[cut:]
        return text

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text with which ``stop`` begins."""
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)

    def finish(self) -> str:
        text, self.held = self.held, ""
        return text
