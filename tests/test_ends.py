"""Where a text ends: at the end tokens, past them with --ignore_eos, or as the program does that a file is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

import llamagpu
from llamagpu.chat import Chat
from llamagpu.chat_templates import choose_template
from llamagpu.checkpoint import Quirks
from llamagpu.commands import run
from llamagpu.errors import UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.generation import Answer
from llamagpu.llm import LLM
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.llama2rs_files import llama2rs_file
from tests.memory_model_files import MemoryShape, memory_model_bytes, memory_weights
from tests.simple_llama_files import simple_llama_file
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v1_bytes, v2_bytes
from tests.test_cli import llamagpu as command
from tests.torch_files import write_meta

BOS, EOS, THE, ON, COLON, BRACKET = 1, 2, 270, 272, 3 + ord(":"), 3 + ord("]")
GREEDY = ("--temperature", "0", "--device", "cpu")
SHAPE = Shape(dim=64, tied=False, max_seq_len=128)


def says(path: Path, following: dict[int, int]) -> Path:
    """A model that says after each token the one that is given for it."""
    weights = random_weights(SHAPE)
    weights["wo"][:] = weights["w2"][:] = 0  # no layer adds anything: the state is the token's own embedding
    weights["wcls"][:] = 0
    for token, after in following.items():
        weights["wcls"][after] += 10 * weights["tok_emb"][token]
    path.write_bytes(v0_bytes(SHAPE, weights))
    (path.parent / "tokenizer.bin").write_bytes(tokenizer_bin())
    return path


@pytest.fixture(params=[BOS, EOS], ids=["BOS", "EOS"])
def end(request: pytest.FixtureRequest) -> int:
    token: int = request.param
    return token


@pytest.fixture
def path(end: int, tmp_path: Path) -> Path:
    """After ":" and "]" it says: the, the end token, on, on, on ..."""
    return says(tmp_path / "model.bin", {COLON: THE, BRACKET: THE, THE: end, end: ON, ON: ON})


def made(generation: Any) -> tuple[str, list[int], str]:
    text = "".join(generation)
    return text, generation.tokens, generation.stop_reason


def test_an_end_is_passed_where_asked_for(path: Path, end: int, capsys: pytest.CaptureFixture[str]) -> None:
    llm = llamagpu.load(path, "cpu")
    prompt = ":"
    assert made(llm.generate(prompt, 6, temperature=0)) == (" the", [THE], "eos")
    on = (" the on on on on", [THE, end, ON, ON, ON, ON], "max_tokens")
    assert made(llm.generate(prompt, 6, temperature=0, ignore_eos=True)) == on
    stopped = llm.generate(prompt, 6, temperature=0, ignore_eos=True, stop=["on on on"])
    assert (made(stopped)[0], stopped.stop_reason) == (" the ", "stop")
    context = llamagpu.load(path, "cpu", context=8).generate(prompt, 60, temperature=0, ignore_eos=True)
    assert (made(context)[2], len(context.tokens)) == ("context", 6)
    for ignore_eos, text in ((True, on[0]), (False, " the")):
        run(str(path), prompt, device="cpu", temperature=0, max_tokens=6, ignore_eos=ignore_eos)
        assert capsys.readouterr().out == text


def test_a_memory_goes_on_past_the_end(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"device": "cpu", "temperature": 0, "session": str(tmp_path / "m")}
    run(str(path), ":", max_tokens=3, ignore_eos=True, **options)
    assert capsys.readouterr().out == " the on"
    run(str(path), "", max_tokens=2, **options)
    assert capsys.readouterr().out == " on on"


@pytest.mark.parametrize("template", ["plain", "llama2"])
def test_answers_of_a_chat_go_on_past_the_end(path: Path, template: str) -> None:
    llm = llamagpu.load(path, "cpu")

    def answers(ignore_eos: bool) -> list[str]:
        chosen = choose_template(template, llm)[0]
        chat = Chat(Session(llm), chosen, None, SamplingParams(0), 4, ignore_eos=ignore_eos)
        return ["".join(chat.ask(text)) for text in ("Hello", "And?")]

    assert answers(False) == ["the"] * 2
    assert answers(True) == ["the on on"] * 2


def test_the_chat_command_goes_on_past_the_end(tmp_path: Path) -> None:
    path = says(tmp_path / "model.bin", {COLON: THE, THE: EOS, EOS: ON, ON: ON})
    talk = ("chat", path, *GREEDY, "--max_tokens", "4", "--ignore_eos")
    assert command(*talk, stdin=b"Hello\n").stdout.decode() == "the on on\n"


Ends = tuple[Literal["bos", "eos"], ...]


@pytest.mark.parametrize("ends", [(), ("bos",), ("eos",), ("bos", "eos")])
def test_a_faithful_text_ends_as_its_program_ends_it(ends: Ends, path: Path, end: int) -> None:
    checkpoint = replace(open_checkpoint(path), quirks=Quirks("x", ends=ends))
    ended = {BOS: "bos", EOS: "eos"}[end] in ends
    llm = LLM(checkpoint, "cpu", faithful=True)
    assert made(llm.generate(":", 4, temperature=0))[2] == ("eos" if ended else "max_tokens")
    assert made(llm.generate(":", 4, temperature=0, ignore_eos=True))[2] == "max_tokens"
    assert made(LLM(checkpoint, "cpu").generate(":", 4, temperature=0))[2] == "eos"
    chat = Chat(Session(llm), choose_template("plain", llm)[0], None, SamplingParams(0), 4)
    "".join(chat.ask("Hello"))
    assert chat.answer is not None
    assert chat.answer.stop_reason == ("eos" if end == EOS else "max_tokens")  # an answer ends at EOS, in all of them


def test_what_each_program_ends_at(tmp_path: Path) -> None:
    shape, memory_shape = Shape(), MemoryShape()
    weights = random_weights(shape)
    files = {
        "v0": (v0_bytes(shape, weights), ("bos",)),
        "v1": (v1_bytes(shape, weights), ("bos",)),
        "v2": (v2_bytes(shape, weights, 8), ("bos",)),
        "memory": (memory_model_bytes(memory_shape, memory_weights(memory_shape), 8), ()),
        "llama2rs A": (llama2rs_file("A").data, ()),
        "llama2rs C": (llama2rs_file("C").data, ()),
        "simple-llama": (simple_llama_file(8)[0], ("eos",)),
    }
    found = {}
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
        found[name] = open_checkpoint(tmp_path / name).quirks.ends
    assert found == {name: ends for name, (_, ends) in files.items()}
    assert open_checkpoint(write_meta(tmp_path / "meta", shape)).quirks.ends == ("eos",)
    assert Quirks("x", ends=()).description == "no token ends a text"
    assert Quirks("x", ends=("bos",)).description == "BOS alone ends a text"
    assert open_checkpoint(llamagpu.llm.model_path("demo")).quirks.ends is None


def test_ends_that_are_given_are_the_only_ones(path: Path) -> None:
    llm = llamagpu.load(path, "cpu")
    session = Session(llm)
    session.add([BOS, COLON])
    answer = Answer(session, 6, SamplingParams(0), ends={ON})
    assert "".join(answer) == " the"
    assert (answer.end_token, answer.stop_reason) == (ON, "eos")
    with pytest.raises(UsageError):
        Answer(session, 0, SamplingParams(0), ends=())
