"""``llamagpu chat``: a conversation at the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from llamagpu.chat import Chat, template_of
from llamagpu.chat_templates import NONE, choose_template, read_template_args
from llamagpu.commands import about_faithful, drawn_seed, say_sampling, token_limit
from llamagpu.devices import peak_memory_bytes
from llamagpu.errors import ContextFullError, LlamaGPUError, TemplateError, UsageError, printable
from llamagpu.generation import Answer
from llamagpu.llm import DEMO, LLM, load
from llamagpu.memory import Memory, length_of
from llamagpu.models.window import window_and_sinks
from llamagpu.sampling import SamplingParams, asked_for
from llamagpu.session import Session
from llamagpu.terminal import ENDING, Interrupt, ProgressBar, count_tokens, human_bytes, say, write_text
from llamagpu.text_files import decoded, read_text_file

HELP = """/save FILE   keep the conversation in a file       /load FILE   go on with one
/save! FILE  the same, whatever FILE was before
/reset       forget the conversation                /stats       tokens, room, speed
/help        this list                              /quit        end (or Ctrl-D)
A line that begins with // is said with one /. Ctrl-C stops an answer."""


def chat(
    model: str = DEMO,
    *,
    device: str = "auto",
    system: str | None = None,
    template: str = "auto",
    template_args: str | None = None,
    document: str | None = None,
    session: str | None = None,
    session_format: str = "auto",
    tell_time: bool = False,
    max_tokens: int = 1024,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    sampler_order: str | None = None,
    seed: int | None = None,
    stop: list[str] | None = None,
    ignore_eos: bool = False,
    tokenizer: str | None = None,
    context: int | None = None,
    kv_bits: int = 16,
    window: int | None = None,
    sinks: int | None = None,
    memory_update: str = "chunk",
    recurrent: bool = False,
    faithful: bool = False,
) -> None:
    """Talk with a model. /help lists what else can be said. Through a pipe, each line is a turn.

    Args:
        model: A model file or folder, or demo, the built-in model.
        device: auto, cuda, cuda:N or cpu. auto says which it takes, and why.
        system: What the model is told before the conversation.
        template: auto, model (its own), llama2 or plain: how the conversation is written for the model.
        template_args: A JSON object of what the model's template may ask for, such as {"enable_thinking": false}.
        document: Let the model read this file first.
        session: Go on from this file where it exists, and save in it after every turn and at the end.
        session_format: auto (what FILE is, and llamagpu if it is new), llamagpu, or llama2rnn: that program's files.
        tell_time: Put the time of each turn into what the model reads.
        max_tokens: Stop an answer after this many tokens. -1: no limit but the context.
        temperature: 0 always takes the most likely token; higher is more varied. Default: 0.8, of micro_rwkv 1.
        top_k: Choose among the k most likely tokens. 0: among all. Default: 40, of micro_rwkv 0.
        top_p: Choose among the most likely tokens that together have this probability. Default: 0.95, of micro_rwkv 1.
        min_p: Leave out tokens less likely than this fraction of the most likely one. Default: 0.05, of micro_rwkv 0.
        repetition_penalty: Above 1 discourages tokens that are in the context already, below 1 encourages them.
        sampler_order: In what order these choose. Default: top_k,top_p,min_p,temperature, as in llama.cpp.
        seed: The same seed gives the same answers. By default, and with -1, a new one is drawn, and shown.
        stop: End an answer before this text. May be given several times.
        ignore_eos: Let an answer go on past the tokens that end it, until --max_tokens or --stop.
        tokenizer: The tokenizer file, where the model does not hold it and it is not beside it.
        context: Number of positions to keep. By default what the model was trained for.
        kv_bits: 8 keeps keys and values in half the memory, with a little loss; 16 as they are.
        window: Keep the first few and the last so many tokens alone: the talk has no end, and the rest is forgotten.
        sinks: With --window, how many of the first tokens are kept. By default 4.
        memory_update: Of a model with a memory: renew it after each chunk, as it was trained, or after each token.
        recurrent: Of a micro_rwkv run the recurrent part alone: fast, and an approximation that is not the model.
        faithful: Do as the program that the file comes from, where that differs: for comparison, on the CPU.
    """
    seed, max_tokens = drawn_seed(seed), token_limit(max_tokens)
    asked = asked_for(
        temperature, top_k, top_p, min_p, repetition_penalty, seed, sampler_order
    )  # refuses before any work
    values = read_template_args(template_args)
    memory_file = Memory.held(session, session_format) if session is not None else None
    text = read_text_file(document, f"--document {document}") if document is not None else None
    bars: dict[str, ProgressBar] = {}

    def on_work(title: str, n: int, total: int) -> None:
        bars.setdefault(title, ProgressBar(title, "B" if total else "kernel", total)).advance(n)

    of_window = window_and_sinks(window, sinks)
    llm = load(model, device, tokenizer, context, on_work, faithful, kv_bits, *of_window, memory_update, recurrent)
    if memory_file is not None:
        memory_file.check(llm)
    sampling = replace(llm.default_sampling, **asked)
    room = Room(llm, template, system, sampling, max_tokens, stop or [], tell_time, memory_file, ignore_eos, values)
    for bar in bars.values():
        bar.close()
    for note in llm.notes:
        say(printable(note))
    say(": ".join(filter(None, (f"running on {llm.device.description}", llm.device.why_not_gpu))))
    if faithful:
        say(about_faithful(llm))
    say_sampling(llm, sampling)
    try:
        with room.ending if memory_file is not None else nullcontext():
            room.open()
            if text is not None:
                room.read_document(text)
            room.talk()
    finally:
        if memory_file is not None:
            memory_file.release()


class Room:
    """A chat with what is around it: lines from a terminal or a pipe, files, notices."""

    def __init__(
        self, llm: LLM, template: str, system: str | None, params: SamplingParams, max_tokens: int, stop: list[str],
        tell_time: bool, memory: Memory | None, ignore_eos: bool = False, template_args: Mapping[str, Any] = NONE,
    ) -> None:  # fmt: skip
        self.llm, self.template, self.system = llm, template, system
        self.params, self.max_tokens, self.stop = params, max_tokens, stop
        self.tell_time, self.memory, self.ignore_eos = tell_time, memory, ignore_eos
        self.template_args = template_args
        self.is_terminal = sys.stdin.isatty()
        self.ending = Interrupt(*ENDING)  # of the whole chat, where there is something to save
        self.commands: dict[str, Callable[[str], None]] = {
            "/save": self.save, "/load": self.load, "/reset": self.reset, "/stats": self.stats, "/help": self.help,
            "/save!": self.save_over,
        }  # fmt: skip

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
        name, known = self.template, template_of(conversation)
        wanted = known if name == "auto" and known is not None else name
        template, why = choose_template(wanted, self.llm, self.template_args)
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
        bar, interrupt = ProgressBar("reading the document", "tok"), Interrupt()
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
            for line in self.lines():
                if line.partition(" ")[0] == "/quit":
                    break
                self.obey(line)
        except (SystemExit, OSError):  # a signal, or nobody is there any more
            self.keep()
            raise
        self.keep()

    def obey(self, line: str) -> None:
        """Do what a line says: a command, or a turn."""
        command, _, argument = line.partition(" ")
        try:
            if not line.startswith("/") or line.startswith("//"):
                self.turn(line[1:] if line.startswith("//") else line)
            elif command in self.commands:
                self.commands[command](argument.strip())
            else:
                say(f"there is no {printable(command[:40])}: {', '.join(self.commands)}, /quit")
        except ContextFullError as error:
            say(f"error: {error}, and nothing of it was read: {self.way_out()}")
        except TemplateError as error:
            if not self.is_terminal:  # nobody is there to choose another one
                raise
            say(f"error: {error}")
        except LlamaGPUError as error:
            say(f"error: {error}")

    def lines(self) -> Iterator[str]:
        """What the user says, stripped, without empty lines. Ctrl-C clears the line; twice in a row ends it."""
        if not self.is_terminal:
            for number, data in enumerate(iter(self.read_bytes, b""), 1):
                line = decoded(data, f"line {number} of standard input").strip()
                if line:
                    yield line
            return
        with suppress(ImportError):
            import readline  # noqa: F401  line editing, and a history that lasts as long as the process
        n_interrupts = 0
        while n_interrupts < 2:
            try:
                line = self.read_line(f"({now()})  User: ").strip()
                n_interrupts = 0
                if line:
                    yield line
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                n_interrupts += 1
                print(file=sys.stderr)
                if n_interrupts == 1:
                    say("Ctrl-C again ends the chat, as Ctrl-D and /quit do")

    def read_bytes(self) -> bytes:
        with self.ending.waiting():
            return sys.stdin.buffer.readline()

    def read_line(self, prompt: str) -> str:
        with self.ending.waiting():
            if sys.stdout.isatty():
                return input(prompt)
            print(prompt, end="", file=sys.stderr, flush=True)  # stdout has the answers alone
            line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def turn(self, text: str) -> None:
        bar, interrupt = ProgressBar("reading", "tok"), Interrupt()

        def on_prompt_tokens(n: int) -> None:
            bar.advance(n)
            interrupt.check()
            self.ending.check()

        pieces = self.chat.ask(f"({now()})  {text}" if self.tell_time else text, on_prompt_tokens, say)
        bar.total = len(self.chat.session.pending)
        stopped = False
        with interrupt:
            try:
                for piece in pieces:
                    bar.close()
                    write_text(piece)
                    interrupt.check()
                    self.ending.check()
            except KeyboardInterrupt:
                if interrupt.at_once:  # nobody knows what the state has seen: it is not to be saved
                    raise
                stopped = True
                answer = self.chat.answer
                write_text(answer.held_text() if answer is not None else "")
            finally:
                pieces.close()  # first: the terminal of the bar may be gone
                bar.close()
        write_text("\n")
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
        if self.memory is not None:
            self.memory.save(self.chat.session, self.chat.to_json())

    def save(self, argument: str, force: bool = False) -> None:
        file = argument.removeprefix("--force ").removesuffix(" --force").strip()
        if not file or file == "--force":
            raise UsageError("/save needs a file")
        if self.is_own(file) and self.memory is not None:
            memory = self.memory
            self.keep()
        else:
            memory = Memory.held(file)
            try:
                if force or file != argument or self.may_replace(memory):
                    memory.save(self.chat.session, self.chat.to_json())
                else:
                    say(f"{file} is left as it is")
                    return
            finally:
                memory.release()
        say(f"saved {memory.path}: {count_tokens(self.chat.session.length)}")

    def save_over(self, argument: str) -> None:
        self.save(argument, force=True)

    def may_replace(self, memory: Memory) -> bool:
        """Raises UsageError where there is nobody to be asked."""
        if not memory.exists() or memory.is_session(self.llm):
            return True
        what = f"{memory.path} is there and is not a session of this model"
        if not self.is_terminal:
            raise UsageError(f"{what}: it is left as it is, and /save! FILE would replace it")
        say(printable(what))
        try:
            return self.read_line("Replace it? [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return False

    def is_own(self, file: str) -> bool:
        """Whether it is the file of --session, which this process holds."""
        return self.memory is not None and Path(file).resolve() == self.memory.path.resolve()

    def load(self, argument: str) -> None:
        if not argument:
            raise UsageError("/load needs a file")
        self.take_up(self.memory if self.memory is not None and self.is_own(argument) else Memory(argument))

    def reset(self, argument: str) -> None:
        self.chat.reset()
        say(
            "everything is forgotten, documents too"
            + (", the session file from the next turn on" if self.memory else "")
        )

    def help(self, argument: str) -> None:
        print(HELP, file=sys.stderr)

    def stats(self, argument: str) -> None:
        chat, session = self.chat, self.chat.session
        room = "no end" if session.room is None else f"room for {session.room} more"
        parts = [f"{count_tokens(session.length)}, {room}", f"{len(chat.messages)} messages"]
        answer = chat.answer
        if answer is not None and answer.prompt_seconds:
            speed = len(answer.prompt_tokens) / answer.prompt_seconds
            parts.append(f"last turn read {count_tokens(len(answer.prompt_tokens))}, {speed:.0f} tok/s")
        if answer is not None and answer.decode_steps:
            speed = answer.decode_steps / answer.decode_seconds
            parts.append(f"generated {count_tokens(len(answer.tokens))}, {speed:.1f} tok/s")
        if peak := peak_memory_bytes():
            parts.append(f"peak memory {human_bytes(peak)}")
        say("; ".join(parts))


def now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
