"""A text that cannot fit is refused by its length, before it is encoded, which may take minutes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llamagpu.chat import Chat
from llamagpu.chat_room import Room
from llamagpu.chat_templates import Plain
from llamagpu.errors import ContextFullError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.memory import Memory
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from llamagpu.tokenizers.llama2c import Llama2cTokenizer
from tests.test_cli import llamagpu as command

TEXT = "the cat sat on the mat. " * 1_300_000


def test_each_way_in(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 MB as a prompt, in a session, as a document and as a turn: each within a second, and nothing has changed."""
    llm = LLM(open_checkpoint(small_model), "cpu")
    session = Session(llm)
    session.add([1, 270])
    chat, kept = Chat(session, Plain("")), Memory(str(small_model.parent / "kept"))
    kept.save(session)
    room = Room(llm, "plain", None, SamplingParams(), 10, [], False, None)
    room.open()

    def encode_text(tokenizer: object, text: str) -> list[int]:
        raise AssertionError("a text that cannot fit is encoded")

    monkeypatch.setattr(Llama2cTokenizer, "encode_text", encode_text)
    for refused in (
        lambda: llm.generate(TEXT),
        lambda: kept.go_on(llm, TEXT),
        lambda: Memory(str(small_model.parent / "new")).go_on(llm, TEXT),
        lambda: chat.read_document(TEXT, lambda n: None),
        lambda: room.read_document(TEXT),
        lambda: chat.ask(TEXT),
    ):
        start = time.process_time()
        with pytest.raises(
            ContextFullError, match=r"the context of 32 tokens is full: \d+ are in it, at least \d{6,} more"
        ):
            refused()
        assert time.process_time() - start < 1
    assert session.tokens == [1, 270]
    assert [message["role"] for message in chat.messages] == []


def test_a_text_that_may_fit_is_encoded(small_model: Path) -> None:
    """Only what is certain is refused so; the rest is counted."""
    llm = LLM(open_checkpoint(small_model), "cpu")
    session = Session(llm)
    session.check_fits("the" * 1000)  # short enough to be counted
    with pytest.raises(ContextFullError):
        session.check_fits("the" * 100_000)
    llm.tokenizer.__dict__["_longest"] = 0  # as of one that may leave out some of a text
    session.check_fits("the" * 100_000)


def test_the_command_says_so(small_model: Path) -> None:
    prompt = small_model.parent / "prompt.txt"
    prompt.write_text(TEXT)
    result = command("run", small_model, "--prompt_file", prompt, "--device", "cpu")
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1
    assert b"at least" in result.stderr
