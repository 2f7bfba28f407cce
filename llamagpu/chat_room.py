"""A chat with what is around it: turns from a terminal or a pipe, the session file, notices."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamagpu.chat import Chat, template_of
from llamagpu.chat_commands import ENDINGS, SlashCommands
from llamagpu.chat_input import Input, json_turns, now, piped_turns
from llamagpu.chat_templates import choose_template
from llamagpu.errors import ContextFullError, LlamaGPUError, UsageError
from llamagpu.generation import Answer
from llamagpu.llm import LLM
from llamagpu.memory import Memory, length_of
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from llamagpu.terminal import ENDING, Interrupt, ProgressBar, count_tokens, say, write_text
from llamagpu.watched_file import ModelChangedError


class Room:
    """A chat with what is around it: lines from a terminal or a pipe, files, notices."""

    def __init__(
        self, llm: LLM, template: str, system: str | None, params: SamplingParams, max_tokens: int, stop: list[str],
        tell_time: bool, memory: Memory | None, ignore_eos: bool = False,
        template_args: Mapping[str, Any] | None = None, jsonl: bool = False, history: bool = True,
    ) -> None:  # fmt: skip
        self.llm, self.template, self.system = llm, template, system
        self.params, self.max_tokens, self.stop = params, max_tokens, stop
        self.tell_time, self.memory, self.ignore_eos = tell_time, memory, ignore_eos
        self.template_args = template_args
        self.jsonl, self.is_terminal = jsonl, sys.stdin.isatty() and not jsonl
        self.ending = Interrupt(*ENDING)  # of the whole chat, where there is something to save
        self.input = Input(self.ending.waiting, history, tell_time) if self.is_terminal else None
        self.commands = SlashCommands(self)
        self.spares_file = False  # after /reset and /load: the session's file stays until something is said

    def open(self) -> None:
        """Begin, from the memory where there is one."""
        if self.memory is not None and self.memory.exists():
            self.take_up(self.memory)
        else:
            self.begin(Session(self.llm), "", Path())
        if self.params.temperature > 0:
            say(f"seed {self.chat.params.seed}")
        if self.is_terminal:
            say("/help lists what can be done beside talking")

    def begin(self, session: Session, conversation: str, path: Path) -> None:
        """Go on with a conversation as ``Chat.to_json`` wrote it; empty: none yet. Raises LlamaGPUError."""
        name, (known, args) = self.template, template_of(conversation)
        wanted = known if name == "auto" and known is not None else name
        if self.template_args is not None:
            args = dict(self.template_args)
        elif wanted != known:
            args = {}
        template, why = choose_template(wanted, self.llm, args)
        if name == "auto" and known is not None:
            why = "as in the session"
        seed = session.seed if self.params.seed is None else self.params.seed  # 0 is a seed like any other
        params = replace(self.params, seed=seed).with_seed()
        chat = Chat(session, template, self.system, params, self.max_tokens, self.stop, self.ignore_eos)
        if conversation:
            chat.restore(conversation, path)
        say(f"template {template.name}: {why}")
        self.chat = chat

    def take_up(self, memory: Memory) -> None:
        session, conversation = memory.load(self.llm)
        self.begin(session, conversation, memory.path)
        n_turns = sum(message["role"] == "user" for message in self.chat.messages)
        say(f"went on from {memory.path}: {length_of(session)}, {n_turns} turns")

    def read_document(self, text: str) -> None:
        """Let the model read it before a new conversation. One that goes on is not dropped for it."""
        if any(message["role"] != "system" for message in self.chat.messages):
            say("the document is not read: the conversation has begun already, and a document stands before it")
            return
        bar, interrupt = ProgressBar("reading the document", "tok"), Interrupt()
        self.chat.session.check_fits(text)
        bar.total = len(self.llm.tokenizer.encode(text))

        def on_tokens(n: int) -> None:
            bar.advance(n)
            interrupt.check()
            self.ending.check()

        with interrupt:
            try:
                n = self.chat.read_document(text, on_tokens)
            finally:
                bar.close()
        say(f"read the document: {count_tokens(n)}")

    def talk(self) -> None:
        try:
            for text in self.turns():
                if not self.jsonl and text.partition(" ")[0] in ENDINGS:
                    break
                self.obey(text)
        except (SystemExit, OSError):  # a signal, or nobody is there any more
            self.keep()
            raise
        self.keep()

    def turns(self) -> Iterator[str]:
        if self.input is not None:
            return self.input.turns()
        return json_turns(self.read_bytes) if self.jsonl else piped_turns(self.read_bytes)

    def read_bytes(self) -> bytes:
        with self.ending.waiting():
            return sys.stdin.buffer.readline()

    def obey(self, line: str) -> None:
        """Do what a line says: a command, or a turn. At a terminal an error is told, and the chat goes on."""
        try:
            if self.jsonl or not line.startswith("/"):
                self.turn(line)
            elif line.startswith("//"):
                self.turn(line[1:])
            else:
                self.commands.obey(line)
        except LlamaGPUError as error:
            full = isinstance(error, ContextFullError)
            told = f"{error}, and nothing of it was read: {self.way_out()}" if full else str(error)
            if not self.is_terminal:  # nobody is there to do something about it
                if full:
                    raise UsageError(told) from None
                raise
            if isinstance(error, ModelChangedError):
                self.llm.check_unchanged()  # which raises it again where no other turn could end otherwise
            say(f"error: {told}")

    def turn(self, text: str) -> None:
        self.say_turn(f"({now()})  {text}" if self.tell_time else text)

    def say_turn(self, text: str) -> None:
        """Say ``text`` as it stands, and write the answer."""
        bar, interrupt = ProgressBar("reading", "tok"), Interrupt()

        def on_prompt_tokens(n: int) -> None:
            bar.advance(n)
            interrupt.check()
            self.ending.check()

        def write(piece: str) -> None:
            said.append(piece)
            if not self.jsonl:
                write_text(piece)

        said: list[str] = []
        pieces = self.chat.ask(text, on_prompt_tokens, say)
        self.spares_file = False
        bar.total = len(self.chat.session.pending)
        stopped = False
        with interrupt:
            try:
                for piece in pieces:
                    bar.close()
                    write(piece)
                    interrupt.check()
                    self.ending.check()
            except KeyboardInterrupt:
                if interrupt.at_once:  # nobody knows what the state has seen: it is not to be saved
                    raise
                stopped = True
                answer = self.chat.answer
                write(answer.held_text() if answer is not None else "")
            finally:
                pieces.close()  # first: the terminal of the bar may be gone
                bar.close()
        reason = self.chat.answer.stop_reason if self.chat.answer is not None else "unfinished"
        answered = {"assistant": "".join(said), "stop_reason": reason}
        write_text((json.dumps(answered, ensure_ascii=False) if self.jsonl else "") + "\n")
        if stopped:
            say("stopped")
        self.say_end(self.chat.answer)
        self.keep()

    def say_end(self, answer: Answer | None) -> None:
        if answer is not None and answer.stop_reason == "max_tokens":
            say(f"stopped after {count_tokens(self.max_tokens)}: --max_tokens")
        if answer is not None and answer.stop_reason == "context":
            say(f"the context of {self.llm.context} tokens is full: {self.way_out()}")

    def way_out(self) -> str:
        """What to do about a full context."""
        most = self.llm.config.max_seq_len
        more = f", --context {most} holds more" if self.llm.context < most else ""
        return f"/reset forgets the conversation{more}, --window goes on for ever and forgets what is far behind"

    def keep(self) -> None:
        """Ctrl-C waits until it is written."""
        if self.memory is not None and not self.spares_file:
            with Interrupt() as interrupt:
                self.memory.save(self.chat.session, self.chat.to_json())
            interrupt.check()
