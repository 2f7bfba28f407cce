"""``--memory FILE``: a session that is loaded at the start and saved as it goes."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import session_file
from llamagpu.formats.fingerprint import fingerprint
from llamagpu.formats.session_file import SavedSession
from llamagpu.generation import PROMPT_CHUNK
from llamagpu.session import Session
from llamagpu.terminal import count_tokens, say

if TYPE_CHECKING:
    from llamagpu.llm import LLM


class Memory:
    """A file in which sessions of one model are kept. Format llama2rnn holds the state alone: no ids of tokens, no
    random numbers, no conversation."""

    def __init__(self, path: str, memory_format: str = "llamagpu") -> None:
        """Raises UsageError where the file could not be written later: before any work is done for it."""
        if memory_format not in ("llamagpu", "llama2rnn"):
            raise UsageError(f"memory_format must be llamagpu or llama2rnn, not {memory_format!r}")
        self.path, self.format = Path(path), memory_format
        self._fingerprint: str | None = None
        folder = self.path.resolve().parent
        if self.path.is_dir() or (os.path.lexists(self.path) and not self.path.is_file()):
            raise UsageError(f"{path} is no regular file: name one to keep the memory in")
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"cannot write {path}: {folder} is no folder that may be written")

    def check(self, llm: LLM) -> None:
        """Raises UsageError for a model that has no memory of this format."""
        if self.format == "llama2rnn":
            llama2rnn_memory(llm)

    def exists(self) -> bool:
        return self.path.exists()

    def load(self, llm: LLM) -> tuple[Session, str]:
        """The session that the file holds, and its conversation (see chat.py). Raises ModelFormatError."""
        session = Session(llm)
        if self.format == "llama2rnn":
            arrays, length = llama2rnn_memory(llm).read_memory(self.path, llm.config)
            saved = SavedSession(arrays, length, [], n_unknown=length)
        else:
            saved = session_file.read(self.path, self.fingerprint(llm))
        try:
            llm.check_tokens(saved.tokens)
            if saved.length:
                session.restore(dict(saved.arrays), saved.length)
        except (ValueError, UsageError) as error:
            raise ModelFormatError(self.path, "state", str(error), session_file.REMEDY) from None
        session.tokens, session.n_unknown = saved.tokens, saved.n_unknown
        session.n_drawn, session.seed = saved.n_drawn, saved.seed if saved.n_drawn else None
        return session, saved.chat

    def save(self, session: Session, chat: str = "") -> None:
        """Raises UsageError where it cannot be written; then the file is as it was."""
        llm = session.llm
        if self.format == "llama2rnn":
            module = llama2rnn_memory(llm)
            session.read(PROMPT_CHUNK, leave=0)  # the file has no place for tokens that were not run
            module.write_memory(self.path, llm.config, llm.model.save_state(session.state), session.state.length)
            return
        length = session.n_unknown + session.n_run
        arrays = llm.model.save_state(session.state) if length else {}
        seed = session.seed or 0
        saved = SavedSession(arrays, length, session.tokens, session.n_unknown, session.n_drawn, seed, chat)
        session_file.write(self.path, self.fingerprint(llm), saved)

    def fingerprint(self, llm: LLM) -> str:
        if self._fingerprint is None:
            llm.checkpoint.check_unchanged()
            self._fingerprint = fingerprint(llm.checkpoint)
        return self._fingerprint

    def go_on(self, llm: LLM, prompt: str) -> Session:
        """For ``run``: the text of the file, where it is there, and the prompt after it. Raises LlamaGPUError."""
        self.check(llm)
        if self.exists():
            session, chat = self.load(llm)
            if chat:
                raise UsageError(f"{self.path} is the memory of a chat: llamagpu chat --memory goes on with it")
            n_before = session.length
            session.add(llm.tokenizer.encode_more(prompt))
            say(f"went on from {self.path}: {count_tokens(n_before)}")
        else:
            session = Session(llm)
            session.add(llm.tokenizer.encode(prompt, add_bos=llm.quirks.adds_bos))
        if not session.pending:
            why = "the last token is not known" if session.n_unknown else "the text has come to its end"
            raise UsageError(f"there is nothing to begin with, since {why}: give a prompt")
        return session


def llama2rnn_memory(llm: LLM) -> Any:
    """The module that reads and writes llama2Rnn's files. Raises UsageError for a model that has no such memory."""
    if not llm.config.mem_len:
        kept = "keys and values" if llm.config.keeps_keys else "a state of its own"
        raise UsageError(
            f"this {llm.config.architecture} has {kept} and no memory as llama2Rnn's models have:"
            " leave out --memory_format"
        )
    return importlib.import_module("llamagpu.formats.llama2rnn_memory")
