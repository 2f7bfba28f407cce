"""Nothing and zero are no reason to forget: memories at the beginning of a chunk, seeds and lengths of 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llamagpu
from llamagpu.chat import Chat
from llamagpu.chat_room import Room
from llamagpu.chat_templates import Llama2, choose_template
from llamagpu.formats import session_file
from llamagpu.formats.fingerprint import fingerprint
from llamagpu.generation import Answer
from llamagpu.llm import LLM
from llamagpu.memory import Memory
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.memory_model_files import MemoryShape, Recurrence, memory_file
from tests.models.test_memory_llama import Model
from tests.test_cli import llamagpu as command

M = 16
WARM = SamplingParams(1.0, 0, 1.0, 0.0, seed=3)
SAID = " on the on"
OPTIONS = (
    "--device", "cpu", "--max_tokens", "12", "--seed", "3",
    "--temperature", "1", "--top_k", "0", "--top_p", "1", "--min_p", "0",
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path, MemoryShape(n_kv_heads=4, mem_len=M, max_seq_len=64), 8)


def first(model: Model, n: int) -> list[int]:
    """As many tokens that can be said."""
    return [1, *(token for token in model.ids if token > 2)][:n]


def answer_after(llm: LLM, ids: list[int]) -> str:
    session = Session(llm)
    session.add(ids)
    return "".join(Answer(session, 12, WARM))


def theirs(model: Model, path: Path, ids: list[int], pos: int | None) -> None:
    """A file of llama2Rnn after these tokens; without a position the older form, of the memory alone."""
    recurrence = Recurrence(model.shape, model.weights)
    for token in ids:
        recurrence.step(token)
    data = memory_file(recurrence, model.shape.max_seq_len, pos)
    path.write_bytes(data if pos is not None else recurrence.mem.astype("<f4").tobytes())


def ours(llm: LLM, path: Path, ids: list[int], memory_format: str) -> None:
    session = Session(llm)
    session.add(ids)
    Memory(str(path), memory_format).save(session)


def files(model: Model, llm: LLM, folder: Path) -> dict[Path, tuple[list[int], str]]:
    """All ways in which a memory can stand at a boundary: its file, what was read, the format."""
    made: dict[Path, tuple[list[int], str]] = {}
    for n in (M, 2 * M):
        ids = first(model, n)
        for pos in (0, M, None):
            path = folder / f"theirs {n} {pos}"
            theirs(model, path, ids, pos)
            made[path] = ids, "llama2rnn"
        for memory_format in ("llamagpu", "llama2rnn"):
            path = folder / f"{memory_format} {n}"
            ours(llm, path, ids, memory_format)
            made[path] = ids, memory_format
    return made


def test_run_goes_on_from_a_boundary(model: Model, tmp_path: Path) -> None:
    llm = model.on("cpu", "chunk")
    for path, (ids, memory_format) in files(model, llm, tmp_path).items():
        expected = answer_after(llm, ids + llm.tokenizer.encode_more(SAID))
        assert expected != answer_after(llm, llm.tokenizer.encode_more(SAID))
        memory = Memory(str(path), memory_format)
        session = memory.go_on(llm, SAID)
        assert "".join(Answer(session, 12, WARM)) == expected, path.name
        memory.save(session)  # and once more, from wherever that is
        whole = (ids if session.n_unknown else []) + session.tokens
        again = memory.go_on(llm, SAID)
        again.n_drawn = 0
        expected = answer_after(llm, whole + llm.tokenizer.encode_more(SAID))
        assert "".join(Answer(again, 12, WARM)) == expected, path.name


def test_chat_goes_on_from_a_boundary(model: Model, tmp_path: Path) -> None:
    """And begins with the start token, which that program has before each turn."""
    llm = model.on("cpu", "chunk")
    template = Llama2("<s>", "</s>")
    for path, (ids, memory_format) in files(model, llm, tmp_path).items():
        session, _ = Memory(str(path), memory_format).load(llm)
        chat = Chat(session, template, None, WARM, 12)
        turn = llm.tokenizer.encode_rendered(template.render([{"role": "user", "content": "on"}]), chat.guard, False)
        assert turn[0] == llm.tokenizer.bos_id
        turn = turn if session.n_unknown else turn[1:]  # of a text that is known it has been there
        assert "".join(chat.ask("on")).strip() == answer_after(llm, ids + turn).strip() != "", path.name
        assert answer_after(llm, turn) != answer_after(llm, ids + turn)
        n_before = 0 if session.n_unknown else len(ids)
        assert session.tokens[n_before : n_before + len(turn)] == turn


def test_a_memory_that_has_seen_nothing_begins(model: Model, tmp_path: Path) -> None:
    """llama2Rnn writes one before its first token: its text has the start token, and stays at 0 until there is one."""
    llm = model.on("cpu", "chunk")
    for pos in (0, None):
        path = tmp_path / f"theirs {pos}"
        theirs(model, path, [], pos)
        session = Memory(str(path), "llama2rnn").go_on(llm, SAID)
        assert (session.tokens, session.n_unknown) == (llm.encode_prompt(SAID), 0)
        assert "".join(Answer(session, 12, WARM)) == answer_after(llm, llm.encode_prompt(SAID))
        ours(llm, path, [], "llama2rnn")
        assert path.read_bytes()[-4:] == bytes(4)
        loaded, _ = Memory(str(path), "llama2rnn").load(llm)
        assert (loaded.length, loaded.n_unknown) == (0, 0)


def test_a_chunks_end_is_no_beginning_for_the_original(model: Model, tmp_path: Path) -> None:
    """From 0 llama2Rnn reads its prompt anew and asks for a system prompt; where whole chunks are behind, it says M."""
    llm, path = model.on("cpu", "chunk"), tmp_path / "a"
    for n in (M, 2 * M):
        ours(llm, path, first(model, n), "llama2rnn")
        assert int.from_bytes(path.read_bytes()[-4:], "little") == M
        memory = Memory(str(path), "llama2rnn")
        memory.save(memory.load(llm)[0])
        assert int.from_bytes(path.read_bytes()[-4:], "little") == M


@pytest.mark.parametrize("pos", [0, M, None])
def test_the_commands_go_on_from_a_boundary(pos: int | None, model: Model, tmp_path: Path) -> None:
    llm, path, ids = model.on("cpu", "chunk"), tmp_path / "memory", first(model, 2 * M)
    theirs(model, path, ids, pos)
    kept = ("--session", path, "--session_format", "llama2rnn")
    result = command("run", model.path, SAID, *OPTIONS, *kept)
    assert result.returncode == 0, result.stderr
    assert f"went on from {path}: a text of another program\n" in result.stderr.decode()
    assert result.stdout.decode() == answer_after(llm, ids + llm.tokenizer.encode_more(SAID))
    theirs(model, path, ids, pos)
    result = command("chat", model.path, *OPTIONS, *kept, "--template", "llama2", stdin=b"on\n")
    text = choose_template("llama2", llm)[0].render([{"role": "user", "content": "on"}])
    turn = llm.tokenizer.encode_rendered(text, "\ufdd0", False)
    assert result.stdout.decode().strip() == answer_after(llm, ids + turn).strip()


@pytest.mark.parametrize("tokens", [[], [1, 5, 9]])
def test_arrays_count_and_not_the_length(tokens: list[int], model: Model, tmp_path: Path) -> None:
    """A file of ours whose state has seen a text that nobody counted."""
    llm, path = model.on("cpu", "chunk"), tmp_path / "a"
    session = Session(llm)
    session.add(first(model, M))
    Memory(str(path)).save(session)
    session.read(512, leave=0)
    arrays = llm.model.save_state(session.state)
    mark = fingerprint(llm.checkpoint)
    session_file.write(path, mark, session_file.SavedSession(arrays, 0, tokens))
    loaded, _ = Memory(str(path)).load(llm)
    np.testing.assert_array_equal(llm.model.save_state(loaded.state)["memory"], arrays["memory"])
    Memory(str(path)).save(loaded)  # and are kept
    again = session_file.read(path, mark)
    np.testing.assert_array_equal(again.arrays["memory"], arrays["memory"])


def test_a_session_of_nothing_begins(small_model: Path, tmp_path: Path) -> None:
    """One that was saved before anything was said: its text has the start token, and the first piece no space."""
    llm, path = llamagpu.load(small_model, device="cpu"), tmp_path / "a"
    Memory(str(path)).save(Session(llm))
    for prompt in ("", "on the"):
        session = Memory(str(path)).go_on(llm, prompt)
        assert session.tokens == llm.tokenizer.encode(prompt, add_bos=True)
        assert session.begins == (not prompt)
    state = Session(llm)
    assert state.state.length == 0  # made, and empty
    Memory(str(path)).save(state)
    assert Memory(str(path)).go_on(llm, "on").tokens == llm.tokenizer.encode("on", add_bos=True)


def room(llm: LLM, seed: int | None) -> Room:
    return Room(llm, "plain", None, replace(llm.default_sampling, seed=seed), 4, [], False, None)


def test_seed_0_is_a_seed(small_model: Path, tmp_path: Path) -> None:
    llm, path = llamagpu.load(small_model, device="cpu"), tmp_path / "a"
    for asked, kept, expected in ((0, 5, 0), (None, 0, 0), (None, 5, 5), (7, 0, 7)):
        session = Session(llm)
        session.add([1, 5, 9])
        "".join(Answer(session, 2, SamplingParams(seed=kept)))
        Memory(str(path)).save(session)
        loaded, _ = Memory(str(path)).load(llm)
        assert (loaded.seed, loaded.n_drawn) == (kept, 2)
        talk = room(llm, asked)
        talk.begin(loaded, "", path)
        assert talk.chat.params.seed == expected
