"""A session that is saved opens again, whatever was said; files of the user and turns of others are not lost."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu import memory as memory_module
from llamagpu.chat import Chat
from llamagpu.chat_room import Room
from llamagpu.chat_templates import Plain
from llamagpu.cli import run_command
from llamagpu.commands import run
from llamagpu.errors import UsageError
from llamagpu.formats import safetensors_file, session_file
from llamagpu.formats.fingerprint import fingerprint
from llamagpu.formats.session_file import SavedSession
from llamagpu.llm import LLM
from llamagpu.memory import Memory
from llamagpu.models.llama import Llama
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from llamagpu.terminal import ENDING, handled
from tests.formats.test_atomic import dead, left_by
from tests.memory_model_files import MemoryShape
from tests.models.test_memory_llama import Model
from tests.test_chat_command import PROMPT, Terminal
from tests.test_session import PROMPT as TOKENS
from tests.test_session import new_session

SAID = {
    "braces": "{" * 16_500,
    "brackets": "[" * 100_000,
    "6 MB": "Once upon a time, " * 333_333,
    "control characters": "".join(map(chr, range(32))) + "\x7f\x80\x9f\0",
    "ends of lines": "a\u2028b\u2029c\x85d\r\n",
    "not characters": "\ufdd0\ufdd1\ufffe\uffff\ufeff\U0010ffff",
    "half characters": "\ud800 \udfff \udcff\ud83d",
    "as a terminal gives bytes": b"caf\xe9 \xf0\x9f".decode("utf-8", "surrogateescape"),
    "JSON": '"}], "messages": [], \\u0000 \\',
    "control tokens": "<s></s><|im_end|>[INST] <<SYS>>",
}


def random_texts() -> Iterator[str]:
    rng = random.Random(7)
    for _ in range(100):
        largest = rng.choice([0x7F, 0x2FF, 0xFFFF, 0x10FFFF])
        yield "".join(chr(rng.randrange(largest + 1)) for _ in range(rng.randrange(40)))


@pytest.fixture
def llm(small_model: Path) -> LLM:
    return llamagpu.load(small_model, device="cpu")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A command in this process, which saves a second: its status and stderr."""

    def run_it(*arguments: Any, stdin: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        return run_command([*map(str, arguments)]), capsys.readouterr().err

    return run_it


def new_chat(llm: LLM, system: str | None = None) -> Chat:
    return Chat(Session(llm), Plain("<s>"), system, SamplingParams(seed=3), 4)


def survives(llm: LLM, path: Path, text: str) -> None:
    """Said by all, rendered, and half said: all that a chat keeps."""
    chat = new_chat(llm, text)
    chat.session.add([1, 5, 9])
    chat.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    chat._rendered = chat._said = f"<s>{text}"
    Memory(str(path)).save(chat.session, chat.to_json())
    session, conversation = Memory(str(path)).load(llm)
    again = Chat(session, Plain("<s>"))
    again.restore(conversation, path)
    assert vars(again)["messages"] == chat.messages
    assert (again.system, again._rendered, again._said) == (text, chat._rendered, chat._said)
    assert json.loads(again.to_json()) == json.loads(chat.to_json())


@pytest.mark.parametrize("text", SAID.values(), ids=SAID)
def test_what_was_said_opens_again(text: str, llm: LLM, tmp_path: Path) -> None:
    survives(llm, tmp_path / "a", text)


def test_any_text_opens_again(llm: LLM, tmp_path: Path) -> None:
    for text in random_texts():
        survives(llm, tmp_path / "a", text)


@pytest.mark.parametrize("name", ["control characters", "ends of lines", "not characters", "JSON"])
def test_a_turn_of_it_opens_again(name: str, small_model: Path, tmp_path: Path) -> None:
    """Through the template, the tokenizer and the model, and on after it."""
    llm, text = llamagpu.load(small_model, device="cpu", window=16), SAID[name]
    chat, memory = new_chat(llm), Memory(str(tmp_path / "a"))
    "".join(chat.ask(text))
    memory.save(chat.session, chat.to_json())
    session, conversation = memory.load(llm)
    again = Chat(session, Plain("<s>"), None, SamplingParams(seed=3), 4)
    again.restore(conversation, memory.path)
    assert again.messages[0]["content"] == text
    assert "".join(again.ask("on")) == "".join(chat.ask("on"))
    assert again.session.tokens == chat.session.tokens


def test_a_seed_is_kept_before_it_is_used(llm: LLM, tmp_path: Path) -> None:
    """Ctrl-C while the prompt is read: the seed was told, and is that of the text."""
    for seed in (None, 0, 5):
        session = new_session(llm)
        session.seed = seed
        Memory(str(tmp_path / "a")).save(session)
        assert Memory(str(tmp_path / "a")).load(llm)[0].seed == seed


def version_1(llm: LLM, saved: SavedSession) -> bytes:
    """A file as version 0.1 wrote it: the conversation in the header."""
    arrays = {f"state.{name}": np.ascontiguousarray(array) for name, array in sorted(saved.arrays.items())}
    arrays["tokens"] = np.asarray(saved.tokens, np.int32)
    metadata = {
        "llamagpu.memory_version": "1", "created_by": "llamagpu 0.1.0", "fingerprint": fingerprint(llm.checkpoint),
        "length": str(saved.length), "n_unknown": "0", "n_drawn": str(saved.n_drawn), "seed": str(saved.seed or 0),
        "chat": saved.chat,
    }  # fmt: skip
    metadata["checksum"] = session_file.checksum(metadata, arrays)
    return session_file.header(metadata, arrays) + b"".join(array.tobytes() for array in arrays.values())


@pytest.mark.parametrize("n_drawn", [0, 3])
def test_version_1_opens(n_drawn: int, llm: LLM, tmp_path: Path) -> None:
    session, path = new_session(llm), tmp_path / "a"
    session.read(512)
    saved = SavedSession(session.arrays(), session.n_run, session.tokens, 0, n_drawn, 0, '{"\u00e9": "{{"}')
    path.write_bytes(version_1(llm, saved))
    loaded, chat = Memory(str(path)).load(llm)
    assert (loaded.tokens, loaded.n_run, loaded.n_drawn) == (session.tokens, session.n_run, n_drawn)
    assert loaded.seed == (0 if n_drawn else None)
    assert chat == saved.chat
    Memory(str(path)).save(loaded, chat)
    assert b'memory_version":"2"' in path.read_bytes()
    assert Memory(str(path)).load(llm)[1] == saved.chat


def test_what_cannot_be_read_back_replaces_nothing(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, path = new_session(llm), tmp_path / "a"
    Memory(str(path)).save(session)
    before = path.read_bytes()
    session.add([5])
    with monkeypatch.context() as patch:
        patch.setattr(safetensors_file, "MAX_HEADER_BYTES", 100)
        with pytest.raises(UsageError, match=r"cannot write .*: read back, its header length is"):
            Memory(str(path)).save(session)
    real = session_file.header
    with monkeypatch.context() as patch:  # a byte that the disk did not take
        patch.setattr(session_file, "header", lambda *parts: real(*parts).replace(b"0.1", b"0.7", 1))
        with pytest.raises(UsageError, match="read back"):
            Memory(str(path)).save(session)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".llamagpu-*"))


def test_a_session_is_private_and_keeps_its_mode(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "a"
    for mode in (None, 0o644, 0o600, 0o660):
        if mode is not None:
            path.chmod(mode)
        Memory(str(path)).save(new_session(llm))
        assert stat.S_IMODE(path.stat().st_mode) == (mode or 0o600)


Command = Callable[..., tuple[int, str]]
CHAT = ("--temperature", "0", "--device", "cpu", "--max_tokens", "6")


def test_save_replaces_nothing_unasked_through_a_pipe(small_model: Path, tmp_path: Path, here: Command) -> None:
    other, diary, new = tmp_path / "other", tmp_path / "my diary", tmp_path / "new"
    Memory(str(other)).save(new_session(llamagpu.load("demo", device="cpu"), [1, 5]))
    diary.write_text("mine")
    foreign = other.read_bytes()
    refusal = "is there and is not a session of this model: it is left as it is, and /save! FILE would replace it"
    for file in (diary, other):
        status, text = here("chat", small_model, *CHAT, stdin=f"a\n/save {file}\n")
        assert (status, text.splitlines()[-1]) == (2, f"llamagpu: error: {file} {refusal}")
    status, text = here("chat", small_model, *CHAT, stdin=f"a\n/save {new}\n/save {new}\n")
    notices = text.splitlines()
    assert status == 0
    assert sum(f"saved {new}: " in line for line in notices) == 2  # its own it replaces
    assert (diary.read_text(), other.read_bytes()) == ("mine", foreign)
    assert Memory(str(new)).is_session(llamagpu.load(small_model, device="cpu"))
    damaged = bytearray(new.read_bytes())
    damaged[-1] ^= 1
    new.write_bytes(damaged)
    for path, line in ((diary, "/save! {}"), (other, "/save --force {}"), (new, "/save {} --force")):
        _, text = here("chat", small_model, *CHAT, stdin=f"a\n{line.format(path)}\n")
        assert f"saved {path}: " in text
        assert Memory(str(path)).is_session(llamagpu.load(small_model, device="cpu"))
    assert not list(tmp_path.glob(".llamagpu-*"))
    before = small_model.read_bytes()
    status, text = here("run", small_model, "a", *CHAT, "--session", small_model)
    assert (status, text.count("\n")) == (1, 1)
    assert "header length" in text
    assert small_model.read_bytes() == before


def test_save_asks_at_a_terminal(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    diary.write_text("mine")
    terminal = Terminal("demo", *CHAT)
    terminal.wait_for(PROMPT)
    terminal.type("Hi.\n")
    terminal.wait_for(PROMPT)
    for answer in ("", "n", "\x04"):
        terminal.type(f"/save {diary}\n")
        terminal.wait_for(r"diary is there and is not a session of this model\r\nReplace it\? \[y/N\] ")
        terminal.type(answer if answer == "\x04" else f"{answer}\n")
        assert "is left as it is" in terminal.wait_for(PROMPT)
        assert diary.read_text() == "mine"
    terminal.type(f"/save {diary}\n")
    terminal.wait_for(r"\[y/N\] ")
    terminal.type("y\n")
    assert f"saved {diary}" in terminal.wait_for(PROMPT)
    terminal.type("/quit\n")
    assert terminal.end() == 0
    assert Memory(str(diary)).is_session(llamagpu.load("demo", device="cpu"))


def test_one_process_at_a_time(small_model: Path, llm: LLM, tmp_path: Path, here: Command) -> None:
    """Two holders in one process are as two processes: a lock is of an open file."""
    path, link = tmp_path / "a", tmp_path / "link"
    held = Memory.held(str(path))
    held.save(new_session(llm))
    before = path.read_bytes()
    link.symlink_to(path)
    for name in ("run", "chat"):
        for file in (path, link):
            status, text = here(name, small_model, *CHAT, "--session", file)
            in_use = f"{file} is in use by process {os.getpid()}: end that one first, or name another file"
            assert (status, text) == (2, f"llamagpu: error: {in_use}\n")
    for command in ("/save", "/save!"):
        status, text = here("chat", small_model, *CHAT, stdin=f"a\n{command} {path}\n")
        assert (status, text.count(f"error: {path} is in use by process {os.getpid()}")) == (2, 1)
    assert path.read_bytes() == before
    held.release()
    assert here("run", small_model, "a", *CHAT, "--session", path)[0] == 0
    assert path.read_bytes() != before
    assert not list(tmp_path.glob(".llamagpu-*"))


def test_a_chat_may_save_and_load_its_own_memory(tmp_path: Path, here: Command) -> None:
    path = tmp_path / "a"
    _, notices = here("chat", "demo", *CHAT, "--session", path, stdin=f"a\n/save {path}\n/load {path}\nb\n")
    assert "error" not in notices
    assert f"saved {path}: " in notices
    assert f"went on from {path}: " in notices


def test_where_locks_do_not_work_nobodys_turns_are_lost(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llamagpu.formats.file_lock.fcntl", None)
    path = tmp_path / "a"
    (tmp_path / "a.2").write_text("mine")
    first, second = Memory.held(str(path)), Memory.held(str(path))
    one, two = new_session(llm), new_session(llm, [1, 7, 7])
    first.save(one)
    two.add([8])
    second.save(two)
    changed = f"{path} was changed by another process: this session is kept in {path}.3 from now on"
    assert changed in capsys.readouterr().err
    one.add([9])
    first.save(one)
    two.add([9])
    second.save(two)
    assert capsys.readouterr().err == ""
    assert [Memory(str(tmp_path / name)).load(llm)[0].tokens for name in ("a", "a.3")] == [one.tokens, two.tokens]
    assert (tmp_path / "a.2").read_text() == "mine"
    path.unlink()  # what somebody takes away is no loss
    first.save(one)
    assert path.exists()


def begun(name: str, *arguments: Any, stdin: int | None = None) -> subprocess.Popen[bytes]:
    """A process that a signal reaches as from a terminal, though this one may ignore SIGHUP."""
    line = [sys.executable, "-m", "llamagpu", name, "demo", *map(str, arguments), "--device", "cpu"]
    return subprocess.Popen(
        line, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip


def read(process: subprocess.Popen[bytes], n: int) -> bytes:
    """So many bytes of what it shows, or all where it ends."""
    assert process.stdout is not None
    text = b""
    while len(text) < n and (more := process.stdout.read(n - len(text))):
        text += more
    return text


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_run_saves_before_a_signal_ends_it(number: int, status: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    process = begun("run", "--max_tokens", 100_000, "--context", 512, "--session", path, "--echo")
    shown = read(process, 40)
    process.send_signal(number)
    process.send_signal(number)  # as a shell and its terminal both do
    rest, notices = process.communicate(timeout=60)
    assert process.returncode == status, notices
    assert b"Traceback" not in notices
    session, _ = Memory(str(path)).load(llamagpu.load("demo", device="cpu"))
    assert session.llm.tokenizer.decode(session.tokens) == (shown + rest).decode()


def test_what_is_ignored_stays_so() -> None:
    """nohup ignores SIGHUP, and a program that it starts is not to be ended by it."""
    got: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(ENDING, lambda number, frame: got.append(number)):
            for number in (signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert got == [signal.SIGTERM]


def interrupted(monkeypatch: pytest.MonkeyPatch, n_times: int) -> None:
    """So often in the midst of each step."""
    real = Llama.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        for _ in range(n_times):
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **named)

    monkeypatch.setattr(Llama, "forward", forward)


@pytest.mark.parametrize("n_times", [1, 2])
def test_a_step_that_is_broken_off_is_not_saved(
    n_times: int, small_model: Path, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C once waits for the end of the step; twice it does not, and then nobody knows what the state has seen."""
    path = tmp_path / "a"
    Memory(str(path)).save(new_session(llm))
    before = path.read_bytes()
    interrupted(monkeypatch, n_times)
    with pytest.raises(KeyboardInterrupt):
        run(str(small_model), " on", device="cpu", session=str(path), temperature=0)
    assert (path.read_bytes() == before) == (n_times == 2)
    assert Memory(str(path)).load(llm)[0].tokens[: len(TOKENS)] == TOKENS
    assert not list(tmp_path.glob(".llamagpu-*"))


def test_a_turn_that_is_broken_off_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, memory = llamagpu.load("demo", device="cpu"), Memory(str(tmp_path / "a"))
    room = Room(llm, "plain", None, SamplingParams(seed=3), 4, [], False, memory)
    room.open()
    interrupted(monkeypatch, 1)
    room.obey("a")  # stopped, and kept
    before = memory.path.read_bytes()
    interrupted(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        room.obey("b")
    assert memory.path.read_bytes() == before


def test_ctrl_c_while_a_turn_is_written_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, memory = llamagpu.load("demo", device="cpu"), Memory(str(tmp_path / "a"))
    room = Room(llm, "plain", None, SamplingParams(seed=3), 4, [], False, memory)
    room.open()
    real = session_file.write

    def write(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(*arguments)

    monkeypatch.setattr(session_file, "write", write)
    with pytest.raises(KeyboardInterrupt):
        room.obey("a")
    assert '"content": "a"' in memory.load(llm)[1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("moment", ["answer", "between"])
def test_chat_saves_before_a_signal_ends_it(moment: str, number: int, status: int, tmp_path: Path) -> None:
    path, document = tmp_path / "a", tmp_path / "story"
    document.write_text("Once upon a time, there was a fox.")
    n_tokens = 400 if moment == "answer" else 3
    flags = ("--max_tokens", n_tokens, "--session", path, "--document", document, "--temperature", 0)
    process = begun("chat", *flags, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"Who?\n")
    shown = read(process, 8)
    if moment == "between":
        while not shown.endswith(b"\n"):
            shown += read(process, 1)
        while not path.exists():
            time.sleep(0.01)
    process.send_signal(number)
    rest, notices = process.communicate(timeout=60)  # which closes stdin, too late to matter
    shown += rest
    assert process.returncode == status, notices
    assert b"Traceback" not in notices
    session, conversation = Memory(str(path)).load(llamagpu.load("demo", device="cpu"))
    messages = json.loads(conversation)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["content"] == shown.decode().strip()
    text = session.llm.tokenizer.decode(session.tokens)
    assert text.startswith(document.read_text())
    assert text.rstrip().endswith(shown.decode().strip())


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """While a model answers: what was said is saved, though nothing can be shown any more."""
    path = tmp_path / "a"
    terminal = Terminal("demo", "--device", "cpu", "--max_tokens", "400", "--session", path)
    terminal.wait_for(PROMPT)
    terminal.type("Who are you?\n")
    terminal.wait_for(r"Who are you\?\r\n.{10}")
    os.close(terminal.handle)
    assert terminal.process.wait(60) in (129, 1)
    session, conversation = Memory(str(path)).load(llamagpu.load("demo", device="cpu"))
    assert len(json.loads(conversation)["messages"]) == 2
    assert "User: Who are you?" in session.llm.tokenizer.decode(session.tokens)


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "a"
    process = begun("run", "--max_tokens", 200, "--temperature", 0, "--session", path)
    shown = read(process, 10)
    assert process.stdout is not None
    process.stdout.close()
    with process:
        assert process.wait(60) == 141
    session, _ = Memory(str(path)).load(llamagpu.load("demo", device="cpu"))
    assert session.llm.tokenizer.decode(session.tokens).startswith(f"Once upon a time{shown.decode()}")


def test_what_was_left_beside_a_memory_is_removed(small_model: Path, tmp_path: Path, here: Command) -> None:
    left = left_by(tmp_path, dead(), 5)
    into_it = ("run", small_model, "a", *CHAT, "--session", tmp_path / "a"), ("convert", small_model, tmp_path / "b")
    for arguments in into_it:
        left.write_text("half")
        _, text = here(*arguments)
        assert f"removed {left.name}, which a process that was killed had not finished" in text
        assert not left.exists()


def test_llama2rnns_files_are_read_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = Model(tmp_path, MemoryShape(n_kv_heads=4, mem_len=5, max_seq_len=32), 8).on("cpu", "chunk")
    memory = Memory(str(tmp_path / "a"), "llama2rnn")
    session = Session(llm)
    session.add([1, 5, 9])
    memory.save(session)
    before = memory.path.read_bytes()
    assert stat.S_IMODE(memory.path.stat().st_mode) == 0o600
    session.add([7, 8])
    session.read(512, leave=0)
    arrays = session.arrays()
    arrays["keys"][0, 0, 3, 0] = np.nan
    monkeypatch.setattr(Session, "read", lambda *arguments, **named: None)
    monkeypatch.setattr(llm.model, "save_state", lambda state: arrays)
    with pytest.raises(UsageError, match=r"cannot write .*: read back, its keys holds what is no number"):
        memory.save(session)
    assert memory.path.read_bytes() == before
    assert memory_module.identity(tmp_path / "none") is None


def test_a_session_is_loaded_from_a_folder_that_may_not_be_written(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    new_session(llm).save(path)
    monkeypatch.setattr(os, "access", lambda folder, mode: mode != os.W_OK)
    assert Session.load(llm, path).tokens == TOKENS
    with pytest.raises(UsageError, match="is no folder that may be written"):
        Memory.held(str(path))
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        new_session(llm).save(tmp_path / "none" / "a")
