"""llama2Rnn's memory files are known by what they are, and its models talk as its program does."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from llamagpu.chat import Chat
from llamagpu.chat_templates import choose_template
from llamagpu.commands import run
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import llama2rnn_memory, session_file
from llamagpu.generation import Answer
from llamagpu.llm import LLM, load
from llamagpu.memory import Memory
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.memory_model_files import MemoryShape, memory_model_bytes, memory_weights
from tests.small_files import tokenizer_bin
from tests.test_cli import llamagpu as command

SHAPE = MemoryShape(mem_len=7)
OPTIONS: dict[str, Any] = {"device": "cpu", "temperature": 0, "max_tokens": 5, "ignore_eos": True}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(memory_model_bytes(SHAPE, memory_weights(SHAPE), 8))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    return path


@pytest.fixture
def llm(path: Path) -> LLM:
    return load(path, "cpu")


def session_of(llm: LLM, text: str) -> Session:
    session = Session(llm)
    session.add(llm.tokenizer.encode(text))
    return session


def test_a_file_of_theirs_is_read_and_stays_theirs(
    path: Path, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, known = tmp_path / "asked.mem", tmp_path / "known.mem"
    Memory(str(asked), "llama2rnn").save(session_of(llm, "on the other"))
    known.write_bytes(asked.read_bytes())
    for prompt in ("hand", "then"):
        run(str(path), prompt, session=str(asked), session_format="llama2rnn", **OPTIONS)
        expected = capsys.readouterr().out
        run(str(path), prompt, session=str(known), **OPTIONS)
        assert capsys.readouterr().out == expected
        assert known.read_bytes() == asked.read_bytes()
    position = struct.unpack("<i", known.read_bytes()[-4:])[0]
    assert known.stat().st_size == llama2rnn_memory.Layout.of(llm.config).file_bytes
    assert 0 <= position < SHAPE.mem_len


def test_a_chat_goes_on_with_one(path: Path, llm: LLM, tmp_path: Path) -> None:
    memory = tmp_path / "a.mem"
    Memory(str(memory), "llama2rnn").save(session_of(llm, "on the other"))
    size = memory.stat().st_size
    talk = ("chat", path, "--device", "cpu", "--temperature", "0", "--max_tokens", "3")
    result = command(*talk, "--session", memory, stdin=f"hand\n/load {memory}\n".encode())
    notices = result.stderr.decode()
    assert "template llama2: llama2Rnn, whose kind of model it is, knows no other" in notices
    assert notices.count(f"went on from {memory}") == 2
    assert "error" not in notices
    assert memory.stat().st_size == size  # in its own form


def test_the_memory_alone_is_known_too(path: Path, llm: LLM, tmp_path: Path) -> None:
    """The older form of the file."""
    memory = Memory(str(tmp_path / "a.mem"), "llama2rnn")
    memory.save(session_of(llm, "on the other"))
    old = tmp_path / "old.mem"
    old.write_bytes(memory.path.read_bytes()[: llama2rnn_memory.Layout.of(llm.config).memory_bytes])
    known = Memory(str(old))
    known.check(llm)
    assert known.format == "llama2rnn"


def test_ours_and_what_is_new(path: Path, llm: LLM, small_model: Path, tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "a.memory"))
    session = session_of(llm, "on the")
    "".join(Answer(session, 3, SamplingParams(0), ends=()))
    memory.save(session)
    assert session_file.is_session(memory.path)
    again = Memory(str(memory.path))
    assert again.load(llm)[0].tokens == session.tokens
    assert (again.format, again.exists()) == ("llamagpu", True)
    new = Memory(str(tmp_path / "new"))
    new.check(llm)
    assert new.format == "llamagpu"
    data = memory.path.read_bytes()
    memory.path.write_bytes(data[:-1])  # damaged, and still ours: the error is of what it is
    with pytest.raises(ModelFormatError) as caught:
        Memory(str(memory.path)).load(llm)
    assert "session_format" not in str(caught.value)


@pytest.mark.parametrize("kind", ["longer", "other numbers", "text", "empty"])
def test_what_is_neither_is_refused_and_the_flag_is_named(kind: str, path: Path, llm: LLM, tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "a.mem"), "llama2rnn")
    memory.save(session_of(llm, "on the other"))
    data = memory.path.read_bytes()
    changed = {"longer": data + b"\0", "other numbers": data[:-4] + b"\xff" * 4, "text": b"a memory", "empty": b""}
    memory.path.write_bytes(changed[kind])
    with pytest.raises(ModelFormatError) as caught:
        run(str(path), "hand", session=str(memory.path), **OPTIONS)
    fields = {"longer": "--session_format", "text": "--session_format", "other numbers": "pos", "empty": "0 bytes"}
    assert fields[kind] in str(caught.value)
    assert memory.path.read_bytes() == changed[kind]


def test_formats_that_are_asked_for(path: Path, llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="session_format must be auto, llamagpu or llama2rnn"):
        Memory("a", "theirs")
    theirs = tmp_path / "a.mem"
    Memory(str(theirs), "llama2rnn").save(session_of(llm, "on"))
    with pytest.raises(ModelFormatError):
        Memory(str(theirs), "llamagpu").load(llm)


def test_the_template_of_a_model_with_a_memory(llm: LLM, small_model: Path) -> None:
    assert choose_template("auto", llm)[0].name == "llama2"
    assert choose_template("plain", llm)[0].name == "plain"
    assert choose_template("auto", load(small_model, "cpu"))[0].name == "plain"
    chat = Chat(Session(llm), choose_template("auto", llm)[0], None, SamplingParams(0), 2)
    "".join(chat.ask("on"))
    asked = [1, *llm.tokenizer.encode("[INST] on [/INST]", add_bos=False)]
    assert chat.session.tokens[: len(asked)] == asked
