"""A session that goes on equals one that reads the same tokens as a prompt, however each answer ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import llamagpu
from llamagpu.backends.cpu import CPUCache
from llamagpu.backends.cuda.cache import CUDACache
from llamagpu.backends.cuda.device import Device
from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import UsageError
from llamagpu.generation import Answer
from llamagpu.llm import LLM
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.models.test_architectures_on_cuda import random_model
from tests.models.test_llama_on_cuda import both
from tests.small_files import tokenizer_bin

PROMPT = [1, 5, 9, 270, 265]
MORE = [266, 263, 12]
WARM = SamplingParams(1.5, 0, 1.0, 0.0, 1.3, seed=11)
GREEDY = SamplingParams(temperature=0)


def models(device: Device) -> tuple[LLM, LLM]:
    checkpoint = random_model("qwen2", "float32")
    return both(checkpoint, device)


@pytest.fixture(autouse=True)
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamagpu.tokenizers import open_spec

    opened = open_spec(TokenizerSpec("llama2c", tokenizer_bin()), tmp_path)
    monkeypatch.setattr(LLM, "tokenizer", opened)


def logits_after(session: Session) -> NDArray[np.float32]:
    """Of all that the session holds, by way of its state."""
    llm = session.llm
    logits = llm.backend.to_host(session.logits(3, lambda n: None, 0), llm.config.vocab_size)
    return np.array(logits[-1])


def new_session(llm: LLM, tokens: list[int] = PROMPT) -> Session:
    session = Session(llm)
    session.add(tokens)
    return session


def equals_a_fresh_one(session: Session) -> None:
    fresh = new_session(session.llm, session.tokens)
    expected = logits_after(fresh)
    np.testing.assert_allclose(logits_after(session), expected, atol=1e-4)
    assert session.n_run == len(session.tokens)


@pytest.mark.parametrize("n_taken", [0, 1, 2, 7])
@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_an_answer_that_is_interrupted(n_taken: int, params: SamplingParams, device: Device) -> None:
    for llm in models(device):
        session = new_session(llm)
        answer = Answer(session, 40, params)
        for _ in range(n_taken):
            next(iter(answer))
        answer.close()
        assert session.tokens == PROMPT + answer.tokens
        assert len(answer.tokens) == session.n_drawn
        assert (len(answer.tokens) > 0) == (n_taken > 0)
        session.add(MORE)
        equals_a_fresh_one(session)


def test_answers_that_end_by_themselves(device: Device) -> None:
    for llm in models(device):
        session = new_session(llm)
        first = Answer(session, 6, WARM)
        "".join(first)
        assert (first.stop_reason, session.n_run) == ("max_tokens", len(PROMPT) + 5)
        second = Answer(session, 30, WARM, end_ids=range(100, 200))
        "".join(second)
        assert second.stop_reason == "eos"
        assert second.end_token is not None
        assert 100 <= second.end_token < 200
        assert session.tokens == PROMPT + first.tokens + second.tokens
        session.add([second.end_token, *MORE])
        equals_a_fresh_one(session)


def test_in_parts_as_in_one(device: Device) -> None:
    """Random numbers and counts of the repetition penalty go on."""
    said = []
    for llm in models(device):
        whole = new_session(llm)
        "".join(Answer(whole, 20, WARM))
        parts = new_session(llm)
        for n in (1, 12, 7):
            "".join(Answer(parts, n, WARM))
        assert parts.tokens == whole.tokens
        assert parts.n_drawn == whole.n_drawn == 20
        said.append(whole.tokens)
    assert said[0] == said[1]


@pytest.mark.parametrize("rewindable", [True, False])
def test_what_a_stop_string_takes_away(rewindable: bool, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that cannot go back keeps the stop string: and so do the tokens."""
    for llm in models(device):
        whole = new_session(llm)
        answer = Answer(whole, 24, WARM)
        text = "".join(answer)
        pieces = [llm.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in answer.tokens]
        at = next(i for i in range(4, 20) if len(pieces[i]) > 3 < len(pieces[i + 1]))
        stop = pieces[at][-3:] + pieces[at + 1][:2]  # begins within a token, ends within the next
        for cache in (CPUCache, CUDACache):
            monkeypatch.setattr(cache, "rewindable", rewindable)
        session = new_session(llm)
        stopped = Answer(session, 24, WARM, [stop])
        shown = "".join(stopped)
        assert stopped.stop_reason == "stop"
        assert shown == text[: text.index(stop)]
        kept = llm.tokenizer.decode([1, *session.tokens[len(PROMPT) :]])
        if rewindable:
            assert kept == shown
            assert session.n_run <= len(session.tokens)
        else:
            assert stop in kept
            assert session.tokens == PROMPT + stopped.tokens
        session.add(MORE)
        equals_a_fresh_one(session)


def test_an_answer_after_the_end_of_the_text(device: Device) -> None:
    """Nothing is to be run, but the logits behind the end are asked for once more."""
    for llm in models(device):
        session = new_session(llm)
        "".join(Answer(session, 6, GREEDY))
        last = session.tokens[-1]
        session.cut(len(session.tokens) - 1)
        for _ in range(2):
            answer = Answer(session, 6, GREEDY, end_ids=[last])
            assert "".join(answer) == ""
            assert (answer.stop_reason, session.pending) == ("eos", [])
        "".join(Answer(session, 1, GREEDY))
        assert session.tokens[-1] == last
        equals_a_fresh_one(session)


def test_a_state_that_cannot_go_back_is_read_again(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    for cache in (CPUCache, CUDACache):
        monkeypatch.setattr(cache, "rewindable", False)
    for llm in models(device):
        session = new_session(llm)
        next(iter(Answer(session, 24, WARM)))
        assert not session.cut(2)
        assert session.replace([*PROMPT[:3], 7]) == 0  # from the start
        equals_a_fresh_one(session)


def test_only_what_differs_is_read_again(device: Device) -> None:
    for llm in models(device):
        session = new_session(llm)
        "".join(Answer(session, 8, GREEDY))
        kept = session.tokens[:9]
        assert session.replace([*kept, 299, *MORE]) in (9, 10)
        assert session.tokens == [*kept, 299, *MORE]
        equals_a_fresh_one(session)
        assert session.replace(kept[:4]) == 4
        assert session.tokens == kept[:4]
        session.add(MORE)
        equals_a_fresh_one(session)


def test_it_grows_and_keeps_what_it_has(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamagpu.session.SMALLEST_CACHE", 8)
    for llm in models(device):
        session = new_session(llm)
        assert session.state.room == 8
        "".join(Answer(session, 3, WARM))
        assert session.state.room is not None
        assert session.state.length + session.state.room == 8
        "".join(Answer(session, 30, WARM))
        assert session.state.length + session.state.room == 128
        session.add(MORE)
        equals_a_fresh_one(session)


def test_a_full_context(small_model: Path) -> None:
    llm = llamagpu.load(small_model)
    session = new_session(llm)
    answer = Answer(session, 1000, GREEDY)
    "".join(answer)
    assert answer.stop_reason == "context"
    assert session.length == 33
    tokens = list(session.tokens)
    with pytest.raises(UsageError, match="the context of 32 tokens is full"):
        session.add([1])
    assert session.tokens == tokens
    session.clear()
    session.add(PROMPT)
    equals_a_fresh_one(session)


def test_all_but_the_last_token_of_a_text_are_read(device: Device) -> None:
    for llm in models(device):
        session, seen = new_session(llm, PROMPT * 3), list[int]()
        session.read(4, seen.append)
        assert (seen, session.pending) == ([4, 4, 4, 2], [PROMPT[-1]])
        session.read(4, seen.append)
        assert len(seen) == 4
        equals_a_fresh_one(session)
