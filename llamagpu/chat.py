"""A conversation: messages, the template that makes a text of them, and the session that has read that text.

Each turn the whole conversation is rendered anew. Where the new text begins with what the session has read and said,
only what is new is read; the tokens that the model made stay those that it made. Where a template rewrites what was
said, the session goes back to the last token that still fits, or begins again where it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from llamagpu.chat_templates import Message, Template, answer_ends, choose_template, guarded
from llamagpu.chat_text import new_guard, opening, render
from llamagpu.errors import ModelFormatError
from llamagpu.formats.session_file import REMEDY
from llamagpu.generation import PROMPT_CHUNK, Answer
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from llamagpu.tokenizers import StreamDecoder

ROLES = ("system", "user", "assistant")


class Chat:
    """messages: what was said, oldest first. answer: the last one, with what happened and how long it took.

    n_front: tokens of the session that stand before the conversation: a document, or a text from elsewhere.
    """

    def __init__(
        self,
        session: Session,
        template: Template | str = "auto",
        system: str | None = None,
        params: SamplingParams | None = None,
        max_tokens: int = 1024,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> None:
        """template: one of ``choose_template``, or a name: auto, model, llama2 or plain."""
        if isinstance(template, str):
            template, _ = choose_template(template, session.llm)
        self.session, self.template, self.system = session, template, system
        self.params, self.max_tokens = params or SamplingParams(), max_tokens
        self.stop = (*template.stops, *stop)
        end_ids, self.ends = answer_ends(session.llm, template, ignore_eos)
        self.end_ids = list(end_ids)
        self.answer: Answer | None = None
        self.guard = new_guard()
        self._told: set[str] = set()  # notices that are given once
        self.begin()

    def __repr__(self) -> str:
        return f"<Chat: {len(self.messages)} messages, template {self.template.name}, {self.session!r}>"

    def begin(self) -> None:
        """A new conversation, after all that the session holds."""
        self.answer = None
        self.messages: list[Message] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})
        self.n_front = len(self.session.tokens)
        self._marks: list[tuple[int, list[Message], str, str, str]] = []  # where each turn began, for undo
        self._read_again = False  # whether the last turn changed what was read before it
        # what was last rendered, what was said after it, and by which control token that ended
        self._rendered = self._said = self._ended = ""

    def reset(self) -> None:
        """Forget everything, documents too."""
        self.session.clear()
        self.begin()

    def read_document(self, text: str, on_tokens: Callable[[int], None]) -> int:
        """Let the model read a text, before a new conversation; its tokens. Raises UsageError where it does not fit."""
        session, tokenizer = self.session, self.session.llm.tokenizer
        session.check_fits(text)
        if session.length:
            ids = tokenizer.encode_more(text)
        elif tokenizer.bos_id is None:
            ids = opening(self.template, tokenizer) + tokenizer.encode(text)
        else:
            ids = tokenizer.encode(text, session.llm.quirks.adds_bos)
        session.add(ids)
        self.begin()
        session.read(PROMPT_CHUNK, on_tokens)
        return len(ids)

    def ask(
        self, text: str, on_prompt_tokens: Callable[[int], None] = lambda n: None, notice: Callable[[str], None] = print
    ) -> Generator[str]:
        """Say ``text``; the answer, piece by piece. Leaving early stops it, and what was said of it stays said.

        notice: told in one line what a user should know. Raises UsageError, and nothing is changed, where the
        conversation does not fit the context or the template refuses it.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        mark = (len(self.session.tokens), self.messages, self._rendered, self._said, self._ended)
        self._read(messages, notice)
        self._marks = [] if self._read_again else [*self._marks, mark]
        self.messages = messages
        self.answer = Answer(
            self.session, self.max_tokens, self.params, self.stop, on_prompt_tokens,
            end_ids=self.end_ids, ends=self.ends,
        )  # fmt: skip
        return self._stream(self.answer, len(self.session.tokens))

    def undo(self) -> str | None:
        """Take back the last turn and its answer; what was said in it. None, and nothing is done, before the first.

        Raises UsageError for a session that cannot go back to it.
        """
        said = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not said:
            return None
        text, messages = str(self.messages[said[-1]]["content"]), self.messages[: said[-1]]
        # of a turn from a file nobody knows where it began: the conversation is read again with the next one
        known = self._marks[-1] if self._marks else (self.n_front, messages, "", "", "")
        self.session.replace(self.session.tokens[: known[0]])
        _, self.messages, self._rendered, self._said, self._ended = known
        self._marks, self.answer = self._marks[:-1], None
        return text

    def set_system(self, text: str) -> None:
        """Another system prompt, from the next turn on: the conversation is read again with it. Raises UsageError for a
        session that cannot go back."""
        self.session.replace(self.session.tokens[: self.n_front])
        others = [message for message in self.messages if message["role"] != "system"]
        self.system, self.messages = text, [{"role": "system", "content": text}, *others]
        self._rendered = self._said = self._ended = ""
        self._marks = []

    def _stream(self, answer: Answer, start: int) -> Generator[str]:
        begun = False
        try:
            for piece in answer:
                shown = piece if begun else piece.lstrip()
                begun = begun or bool(shown)
                if shown:
                    yield shown
        finally:
            answer.close()
            self._end(answer, start)

    def _end(self, answer: Answer, start: int) -> None:
        """The answer is a message, and the session's tokens are what it has read and said."""
        session, tokenizer = self.session, self.session.llm.tokenizer
        decoder = StreamDecoder(tokenizer, at_start=False)
        self._said = "".join(map(decoder.feed, session.tokens[start:])) + decoder.finish()
        content = self._said
        for stop in self.stop:  # where the state could not go back
            content = content.split(stop)[0]
        self.messages = [*self.messages, {"role": "assistant", "content": content.strip()}]
        self._said, self._ended = guarded(self._said, tokenizer, self.guard), ""
        texts = {token: text for text, token in tokenizer.controls.items()}
        if answer.end_token in texts and answer.end_token != tokenizer.bos_id and session.room != 0:
            session.add([answer.end_token])
            self._ended = texts[answer.end_token]

    def _read(self, messages: Sequence[Message], notice: Callable[[str], None]) -> None:
        """Give the session the tokens that it does not have yet."""
        session, tokenizer = self.session, self.session.llm.tokenizer
        self._read_again = False
        rendered = render(self.template, messages, tokenizer, self.guard, lambda line: self._tell(line, notice))
        if self._rendered:
            more = rest_of(rendered, self._rendered, self._said, self._ended)
            if more is None and self._ended and (rest := rest_of(rendered, self._rendered, self._said, "")) is not None:
                session.cut(len(session.tokens) - 1)  # the template ends the answer in another way
                self._ended, more = "", rest
            if more is not None:
                session.check_fits(more.replace(self.guard, ""))
                session.add(self._as_read(tokenizer.encode_rendered(more, self.guard, at_start=False)))
                self._rendered, self._said, self._ended = rendered, "", ""
                return
        session.check_fits(rendered.replace(self.guard, ""), self.n_front + session.n_unknown)
        ids = tokenizer.encode_rendered(rendered, self.guard, at_start=self.n_front + session.n_unknown == 0)
        if self.n_front and ids[:1] in ([tokenizer.bos_id], opening(self.template, tokenizer)):
            ids = ids[1:]  # the text has begun already; after a llama2Rnn memory each turn has its own, as there
        ids = self._as_read(ids)
        if not self._rendered:
            session.add(ids)
        else:
            n_before, self._read_again = session.length, True
            n_kept = self._replace(ids)
            notice(
                f"the template rewrites what was said: {n_kept} of {n_before} tokens are kept, the others read again"
            )
        self._rendered, self._said, self._ended = rendered, "", ""

    def _as_read(self, ids: list[int]) -> list[int]:
        """What is to be answered, as it is read."""
        return [*ids, *ids[-1:]] if self.session.llm.quirks.repeats_last_prompt_token else ids

    def _tell(self, line: str, notice: Callable[[str], None]) -> None:
        if line not in self._told:
            notice(line)
        self._told.add(line)

    def _replace(self, ids: Sequence[int]) -> int:
        """Put another conversation after what stands before it; how many tokens of the session were kept."""
        session = self.session
        tokens, n_unknown = session.tokens, session.n_unknown
        ids = [*tokens[: self.n_front], *ids]
        if session.room is not None and n_unknown + len(ids) > session.llm.context:
            session.add(ids)  # which refuses it
        return session.replace(ids)

    def to_json(self) -> str:
        """All that a session file should keep beside the session."""
        return json.dumps(
            {
                "template": self.template.name, "template_args": dict(self.template.args), "system": self.system,
                "messages": self.messages, "guard": self.guard,
                "n_front": self.n_front, "rendered": self._rendered, "said": self._said, "ended": self._ended,
            },
            ensure_ascii=False,
        )  # fmt: skip

    def restore(self, text: str, path: Path) -> None:
        """Take up the conversation that ``to_json`` wrote. Raises ModelFormatError."""
        try:
            saved = json.loads(text)
            messages = [{"role": message["role"], "content": message["content"]} for message in saved["messages"]]
            if not all(m["role"] in ROLES and isinstance(m["content"], str) for m in messages):
                raise ValueError
            texts = [saved[name] for name in ("guard", "rendered", "said", "ended")]
            if not all(isinstance(text, str) for text in texts) or not texts[0]:
                raise ValueError
            if not isinstance(saved["system"], str | None) or type(saved["n_front"]) is not int:
                raise ValueError
            if not 0 <= saved["n_front"] <= len(self.session.tokens):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ModelFormatError(path, "chat", "is no conversation that can be read", REMEDY) from None
        self.messages, self.n_front = list(messages), saved["n_front"]
        self.guard, self._rendered, self._said, self._ended = texts
        if self.system is None:
            self.system = saved["system"]
        elif self.system != saved["system"]:
            begin = [{"role": "system", "content": self.system}]
            self.messages = begin + [message for message in self.messages if message["role"] != "system"]


def template_of(text: str) -> tuple[str | None, dict[str, Any]]:
    """The name of the template of a saved conversation, where it can be told, and what users gave to it."""
    try:
        saved = json.loads(text) if text else {}
        name, args = saved.get("template"), saved.get("template_args")
    except (ValueError, AttributeError, RecursionError):
        return None, {}
    return name if isinstance(name, str) else None, args if isinstance(args, dict) else {}


def rest_of(rendered: str, before: str, said: str, ended: str) -> str | None:
    """What of ``rendered`` comes after ``before``, what was said and the token that ended it (empty for none); None
    where that is not what it has there.

    Models begin and end an answer with a space or none as they like, and so do templates: that is no difference.
    """
    rest = rendered.removeprefix(before)
    words = said.strip()
    if not rendered.startswith(before) or not rest.lstrip().startswith(words):
        return None
    rest = rest.lstrip().removeprefix(words) if words else rest
    if not ended:
        return rest.removeprefix(said[len(said.rstrip()) :])
    return rest.lstrip().removeprefix(ended) if rest.lstrip().startswith(ended) else None
