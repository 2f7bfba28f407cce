"""What can be said in a chat beside talking: lines that begin with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamagpu.cli_arguments import ALIASES, converter
from llamagpu.devices import peak_memory_bytes
from llamagpu.errors import UsageError, printable
from llamagpu.generation import MAX_TOKENS
from llamagpu.memory import NO_NAME, Memory
from llamagpu.sampling import check_whole
from llamagpu.terminal import count_tokens, human_bytes, say

if TYPE_CHECKING:
    from llamagpu.chat_room import Room

ENDINGS = ("/quit", "/exit", "/bye")
HELP = """/regen       answer the last turn again             /undo        take back the last turn
/set         how answers are made: /set temperature 0.5
/system TEXT what the model is told first           /reset       forget the conversation
/save FILE   keep the conversation in a file        /load FILE   go on with one
/save! FILE  the same, whatever FILE was before     /stats       tokens, room, speed
/help        this list                              /exit        end (also /quit, /bye, Ctrl-D)
A line that begins with // is said with one /. Three quotes (\"\"\") before and after a text of several lines
make it one turn, as a paste is. Ctrl-C stops an answer."""
SETTINGS = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float,
    "sampler_order": str, "seed": int, "max_tokens": int,
}  # fmt: skip


class SlashCommands:
    def __init__(self, room: Room) -> None:
        self.room = room
        self.named: dict[str, Callable[[str], None]] = {
            "/save": self.save, "/load": self.load, "/reset": self.reset, "/regen": self.regen, "/undo": self.undo,
            "/set": self.set, "/system": self.system, "/stats": self.stats, "/help": self.help, "/?": self.help,
            "/clear": self.reset, "/save!": self.save_over,
        }  # fmt: skip

    def obey(self, line: str) -> None:
        """Raises LlamaGPUError."""
        command, _, argument = line.partition(" ")
        if command not in self.named:
            raise UsageError(f"there is no {printable(command[:40])}: {', '.join(self.named)}, {', '.join(ENDINGS)}")
        self.named[command](argument.strip())

    def undo(self, argument: str) -> None:
        say(f"taken back: {printable(self.take_back()[:60])}")
        self.room.keep()

    def regen(self, argument: str) -> None:
        self.room.say_turn(self.take_back())

    def take_back(self) -> str:
        said = self.room.chat.undo()
        if said is None:
            raise UsageError("nothing was said yet")
        return said

    def set(self, argument: str) -> None:
        """``NAME VALUE``, as the flag; alone, it shows them all."""
        chat = self.room.chat
        if not argument:
            settings = asdict(chat.params) | {"max_tokens": chat.max_tokens}
            say(", ".join(f"{name} {value}" for name, value in settings.items()))
            return
        name, _, text = argument.partition(" ")
        name = name.lstrip("-").replace("-", "_")
        name = ALIASES.get(name, name)
        if name not in SETTINGS or not text.strip():
            raise UsageError(f"/set needs a name and a value; the names are {', '.join(SETTINGS)}")
        value = converter(name, SETTINGS[name])(text.strip())
        if name == "max_tokens":
            value = MAX_TOKENS if value == -1 else value
            check_whole(name, value, 1, MAX_TOKENS)
            chat.max_tokens = self.room.max_tokens = value
        else:
            changed: dict[str, Any] = {name: None if (name, value) == ("seed", -1) else value}
            chat.params = replace(chat.params, **changed).with_seed()
            self.room.params = replace(self.room.params, **changed)  # of what /load goes on with, too
            value = getattr(chat.params, name)
        say(f"{name} is {value}")

    def system(self, argument: str) -> None:
        chat = self.room.chat
        if argument:
            chat.set_system(argument)
            self.room.system = argument
            self.room.keep()
        say(f"the system prompt is: {printable(chat.system)}" if chat.system else "there is no system prompt")

    def save(self, argument: str, force: bool = False) -> None:
        file = argument.removeprefix("--force ").removesuffix(" --force").strip()
        if not file or file == "--force":
            raise UsageError("/save needs a file")
        if self.is_own(file) and self.room.memory is not None:
            memory, self.room.spares_file = self.room.memory, False
            self.room.keep()
        else:
            memory = Memory.held(file)
            try:
                if force or file != argument or self.may_replace(memory):
                    memory.save(self.room.chat.session, self.room.chat.to_json())
                else:
                    say(f"{file} is left as it is")
                    return
            finally:
                memory.release()
        say(f"saved {memory.path}: {count_tokens(self.room.chat.session.length)}")

    def save_over(self, argument: str) -> None:
        self.save(argument, force=True)

    def may_replace(self, memory: Memory) -> bool:
        """Raises UsageError where there is nobody to be asked."""
        if not memory.exists() or memory.is_session(self.room.llm):
            return True
        what = f"{memory.path} is there and is not a session of this model"
        if self.room.input is None:
            raise UsageError(f"{what}: it is left as it is, and /save! FILE would replace it")
        say(printable(what))
        try:
            return self.room.input.read_line("Replace it? [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return False

    def is_own(self, file: str) -> bool:
        """Whether it is the file of --session, which this process holds."""
        try:
            return self.room.memory is not None and Path(file).resolve() == self.room.memory.path.resolve()
        except NO_NAME:  # which Memory tells
            return False

    def load(self, argument: str) -> None:
        if not argument:
            raise UsageError("/load needs a file")
        own = self.room.memory if self.is_own(argument) else None
        self.room.take_up(own or Memory(argument))
        self.room.spares_file = own is None

    def reset(self, argument: str) -> None:
        self.room.chat.reset()
        self.room.spares_file = True
        say(
            "everything is forgotten, documents too"
            + (", the session file from the next turn on" if self.room.memory else "")
        )

    def help(self, argument: str) -> None:
        print(HELP, file=sys.stderr)

    def stats(self, argument: str) -> None:
        chat, session = self.room.chat, self.room.chat.session
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
