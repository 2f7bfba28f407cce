"""``--session FILE``: a session that is loaded at the start and saved as it goes."""

from __future__ import annotations

import importlib
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import session_file
from llamagpu.formats.file_lock import FileLock
from llamagpu.formats.fingerprint import fingerprint
from llamagpu.formats.leftovers import remove_leftovers
from llamagpu.formats.session_file import SavedSession
from llamagpu.generation import PROMPT_CHUNK
from llamagpu.models.memory_llama import MemoryLlama
from llamagpu.session import Session
from llamagpu.terminal import count_tokens, say, say_removed

if TYPE_CHECKING:
    from llamagpu.llm import LLM


FORMATS = ("auto", "llamagpu", "llama2rnn")
# Of paths that name nothing: too long, with a NUL, of links in a circle.
NO_NAME = (OSError, ValueError, RuntimeError)


class Memory:
    """A file in which sessions of one model are kept. Format llama2rnn holds the state alone: no ids of tokens, no
    random numbers, no conversation."""

    def __init__(self, path: str, memory_format: str = "auto") -> None:
        """memory_format: auto is what an existing file is, and llamagpu of a new one. Raises UsageError for a path that
        is not one of a file."""
        if memory_format not in FORMATS:
            raise UsageError(f"session_format must be auto, llamagpu or llama2rnn, not {memory_format!r}")
        self.path, self.format = Path(path), memory_format
        self._fingerprint: str | None = None
        self._lock: FileLock | None = None
        self._seen: tuple[int, ...] | None = None  # the file as it was when this process last read or wrote it
        try:
            if self.path.is_dir() or (os.path.lexists(self.path) and not self.path.is_file()):
                raise UsageError(f"{path} is no regular file: name one to keep the session in")
            self.path.resolve()
        except NO_NAME as error:
            raise UsageError(f"{path[:80]!r} is no name for a file: {getattr(error, 'strerror', error)}") from None

    @classmethod
    def held(cls, path: str, memory_format: str = "auto") -> Memory:
        """One that no other process writes until ``release``, or the end. Raises UsageError where one does already, and
        where the file could not be written later: before any work is done for it.

        What killed processes left beside the file is removed.
        """
        memory = cls(path, memory_format)
        real = memory.path.resolve()
        if not real.parent.is_dir() or not os.access(real.parent, os.W_OK):
            raise UsageError(f"cannot write {path}: {real.parent} is no folder that may be written")
        memory._lock = FileLock(real)
        if not memory._lock.acquire():
            who = f"process {memory._lock.holder}" if memory._lock.holder else "another process"
            raise UsageError(f"{path} is in use by {who}: end that one first, or name another file")
        memory._seen = identity(memory.path)
        say_removed(remove_leftovers(real.parent))
        return memory

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def check(self, llm: LLM) -> None:
        """Find out the format where none was asked for. Raises UsageError for a model that has no memory of it,
        ModelFormatError for a file that is none."""
        if self.format == "auto":
            self.format = format_of(self.path, llm)
        if self.format == "llama2rnn":
            llama2rnn_memory(llm)

    def exists(self) -> bool:
        return self.path.exists()

    def is_session(self, llm: LLM) -> bool:
        """Whether the file is one of this model: nothing else may be written over unasked."""
        try:
            self.check(llm)
            self._read(llm)
        except ModelFormatError:
            return False
        return True

    def load(self, llm: LLM) -> tuple[Session, str]:
        """The session that the file holds, and its conversation (see chat.py). Raises ModelFormatError."""
        self.check(llm)
        session = Session(llm)
        self._seen = identity(self.path)
        saved = self._read(llm)
        try:
            llm.check_tokens(saved.tokens)
            if saved.arrays:  # not the length: a memory may stand at a chunk's beginning
                session.restore(dict(saved.arrays), saved.length)
        except (ValueError, UsageError) as error:
            raise ModelFormatError(self.path, "state", str(error), session_file.REMEDY) from None
        session.tokens, session.n_unknown = saved.tokens, saved.n_unknown
        session.n_drawn, session.seed = saved.n_drawn, saved.seed
        return session, saved.chat

    def _read(self, llm: LLM) -> SavedSession:
        if self.format != "llama2rnn":
            return session_file.read(self.path, self.fingerprint(llm))
        arrays, place = llama2rnn_memory(llm).read_memory(self.path, llm.config)
        assert isinstance(llm.model, MemoryLlama)
        if not place and np.array_equal(arrays["memory"], llm.model.origin_memory):
            return SavedSession({}, 0, [])  # as that program writes it before the first token
        length = place or llm.config.mem_len  # at a boundary whole chunks are behind it: never nothing
        return SavedSession(arrays, length, [], n_unknown=length)

    def save(self, session: Session, chat: str = "") -> None:
        """Raises UsageError where it cannot be written; then the file is as it was.

        Of a file that is held, but that somebody has changed since it was read, nothing is written over: the session
        goes on in a file beside it.
        """
        if self._lock is not None:
            self._step_aside()
        self._write(session, chat)
        self._seen = identity(self.path)

    def _step_aside(self) -> None:
        """For where locks do not work, and for programs that know nothing of them."""
        found = identity(self.path)
        if found is None or found == self._seen:
            return
        changed = self.path
        names = (changed.with_name(f"{changed.name}.{n}") for n in itertools.count(2))
        self.path = next(path for path in names if not os.path.lexists(path))
        say(f"{changed} was changed by another process: this session is kept in {self.path} from now on")

    def _write(self, session: Session, chat: str) -> None:
        llm = session.llm
        if self.format == "llama2rnn":
            module = llama2rnn_memory(llm)
            session.read(PROMPT_CHUNK, leave=0)  # the file has no place for tokens that were not run
            module.write_memory(self.path, llm.config, llm.model.save_state(session.state), session.state.length)
            return
        length = session.n_unknown + session.n_run
        arrays, known = session.arrays(), (session.tokens, session.n_unknown, session.n_drawn, session.seed)
        saved = SavedSession(arrays, length, *known, chat)
        session_file.write(self.path, self.fingerprint(llm), saved)

    def fingerprint(self, llm: LLM) -> str:
        if self._fingerprint is None:
            llm.checkpoint.check_unchanged()
            self._fingerprint = fingerprint(llm.checkpoint)
        return self._fingerprint

    def go_on(self, llm: LLM, prompt: str, special: bool = False) -> Session:
        """For ``run``: the text of the file, where it is there, and the prompt after it. Raises LlamaGPUError."""
        self.check(llm)
        if self.exists():
            session, chat = self.load(llm)
            if chat:
                raise UsageError(f"{self.path} is the session of a chat: llamagpu chat --session goes on with it")
            before = length_of(session)
            session.check_fits(prompt)
            if session.length:
                session.add(llm.tokenizer.encode_more(prompt, special))
            else:  # it was saved before anything was said
                session.add(llm.encode_prompt(prompt, special))
            say(f"went on from {self.path}: {before}")
        else:
            session = Session(llm)
            session.check_fits(prompt)
            session.add(llm.encode_prompt(prompt, special))
        if not session.pending:
            why = "the last token is not known" if session.n_unknown else "the text has come to its end"
            raise UsageError(f"there is nothing to begin with, since {why}: give a prompt")
        return session


def identity(path: Path) -> tuple[int, ...] | None:
    """What changes where a file is replaced or written to; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def length_of(session: Session) -> str:
    """For a user. Of a text of another program nobody knows how long it is."""
    n_tokens = count_tokens(len(session.tokens))
    if not session.n_unknown:
        return n_tokens
    return "a text of another program" + (f" and {n_tokens} after it" if session.tokens else "")


def format_of(path: Path, llm: LLM) -> str:
    """What a memory file is by its content; what is not there yet becomes llamagpu's. Raises ModelFormatError."""
    if not llm.config.mem_len or not path.exists() or session_file.is_session(path):
        return "llamagpu"
    if llama2rnn_memory(llm).fits(path, llm.config):
        return "llama2rnn"
    problem = "is neither a session of llamagpu nor a memory of llama2Rnn for this model"
    raise ModelFormatError(
        path, "content", problem, "say which it is with --session_format, or give another --session FILE"
    )


def llama2rnn_memory(llm: LLM) -> Any:
    """The module that reads and writes llama2Rnn's files. Raises UsageError for a model that has no such memory."""
    if not llm.config.mem_len:
        kept = "keys and values" if llm.config.keeps_keys else "a state of its own"
        raise UsageError(
            f"this {llm.config.architecture} has {kept} and no memory as llama2Rnn's models have:"
            " leave out --session_format"
        )
    return importlib.import_module("llamagpu.formats.llama2rnn_memory")
