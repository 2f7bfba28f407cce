"""generate and chat as a Python program calls them: ids, whole texts, conversations, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu.chat import Chat
from llamagpu.chat_templates import choose_template
from llamagpu.errors import UsageError
from llamagpu.llm import LLM
from llamagpu.session import Session

GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
MESSAGES = [
    {"role": "system", "content": "the"},
    {"role": "user", "content": "on a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "the on"},
]


@pytest.fixture
def llm(small_model: Path) -> LLM:
    return llamagpu.load(small_model, device="cpu")


@pytest.fixture(scope="module")
def demo() -> LLM:
    return llamagpu.load("demo", "cpu")


def test_ids_are_taken_as_they_are(llm: LLM) -> None:
    ids = llm.encode_prompt("the on")
    assert ids[0] == llm.tokenizer.bos_id
    whole = llm.generate("the on", **GREEDY)
    arrays: list[Any] = [np.asarray(ids, np.int32), [np.int64(token) for token in ids]]
    for given in (ids, tuple(ids), *arrays):
        generation = llm.generate(given, **GREEDY)
        assert generation.prompt_tokens == ids
        assert generation.text == whole.text
        assert all(type(token) is int for token in generation.session.tokens)
    assert llm.generate(ids[1:], **GREEDY).prompt_tokens == ids[1:]  # no start token is put before them
    assert llm.generate(ids[:1], **GREEDY).text == llm.generate("", **GREEDY).text  # it opens the text


def test_text_is_the_whole_however_much_was_taken_before(llm: LLM) -> None:
    whole = "".join(llm.generate("the on", **GREEDY))
    generation = llm.generate("the on", **GREEDY)
    pieces = iter(generation)
    first = next(pieces) + next(pieces)
    assert generation.stop_reason == "unfinished"
    assert whole.startswith(first)
    assert generation.text == whole
    assert (generation.text, generation.stop_reason, list(pieces)) == (whole, "max_tokens", [])


def test_text_of_a_closed_answer_is_what_was_made(llm: LLM) -> None:
    generation = llm.generate("the on", **GREEDY)
    first = next(iter(generation))
    generation.close()
    assert (generation.text, generation.stop_reason) == (first, "unfinished")


def test_text_ends_before_a_stop_string(llm: LLM) -> None:
    whole = llm.generate("the on", **GREEDY).text
    generation = llm.generate("the on", **GREEDY, stop=[whole[5:8]])
    assert (generation.text, generation.stop_reason) == (whole[: whole.index(whole[5:8])], "stop")


@pytest.mark.parametrize("template", ["plain", "llama2"])
def test_chat_reads_what_chat_ids_says_and_answers_as_a_chat_does(template: str, demo: LLM) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me of a fox."}]
    answer = demo.chat(messages, **GREEDY, template=template)
    assert answer.prompt_tokens == demo.chat_ids(messages, template=template)
    pieces = list(answer)
    assert answer.text == "".join(pieces) == answer.text.lstrip()
    assert len(answer.text) > 20
    assert answer.stop_reason == "max_tokens"
    chat = Chat(Session(demo), choose_template(template, demo)[0], "Be kind.", answer.params, 12)
    assert "".join(chat.ask("Tell me of a fox.")) == answer.text


def test_chat_takes_conversations_stops_and_logprobs(llm: LLM) -> None:
    whole = llm.chat(MESSAGES[-1:], 8, temperature=0, logprobs=1)
    assert [row["id"] for row in whole.logprobs or []] == []
    text = whole.text
    assert len(whole.logprobs or []) == len(whole.tokens) == 8
    stop = text[2:4]
    stopped = llm.chat(MESSAGES[-1:], 8, temperature=0, stop=[stop])
    assert (stopped.text, stopped.stop_reason) == (text[: text.index(stop)], "stop")
    with pytest.raises(UsageError, match="the context 32"):
        llm.chat(MESSAGES * 3)


def test_chat_ends_where_the_template_ends_an_answer(demo: LLM) -> None:
    """The plain template's own stop texts, beside those that are given."""
    assert demo.chat(MESSAGES[1:2], 4, template="plain", stop=["x"]).stop == ("\nUser:", "\nAssistant:", "x")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": None}, "prompt must be a text or a list of token ids, not None"),
        ({"prompt": 5}, "prompt must be a text or a list of token ids, not 5"),
        ({"prompt": b"a"}, "prompt must be a text or a list of token ids, not b'a'"),
        ({"prompt": [1, "a"]}, "prompt must be a text or a list of token ids, not [1, 'a']"),
        ({"prompt": [1, 2.0]}, "prompt must be a text or a list of token ids, not [1, 2.0]"),
        ({"prompt": [True]}, "prompt must be a text or a list of token ids, not [True]"),
        ({"prompt": [1, 300]}, "token 300 is not of this model: its ids are 0 to 299"),
        ({"prompt": []}, "the prompt is empty and this model has no start token: give a prompt"),
        ({"prompt": [1], "special": True}, "special is for a prompt that is a text, and this one is token ids"),
        ({"max_tokens": "x"}, "max_tokens must be a whole number from 1, not 'x'"),
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1, not 0"),
        ({"max_tokens": None}, "max_tokens must be a whole number from 1, not None"),
        ({"temperature": "hot"}, "temperature must be a number from 0 to 1e+06, not 'hot'"),
        ({"top_k": 1.5}, "top_k must be a whole number from 0, not 1.5"),
        ({"top_p": True}, "top_p must be a number from 0 to 1, not True"),
        ({"seed": -1}, "seed must be a whole number from 0, not -1"),
        ({"repetition_penalty": None}, "repetition_penalty must be a number from 0.001 to 1000, not None"),
        ({"sampler_order": 3}, "sampler_order must name top_k, top_p, min_p and temperature, each once, not 3"),
        ({"stop": "x"}, "stop must be a list of texts, none of them empty, not 'x'"),
        ({"stop": 5}, "stop must be a list of texts, none of them empty, not 5"),
        ({"stop": None}, "stop must be a list of texts, none of them empty, not None"),
        ({"on_prompt_tokens": 1}, "on_prompt_tokens must be a function, not 1"),
        ({"ignore_eos": "no"}, "ignore_eos must be True or False, not 'no'"),
        ({"special": 1}, "special must be True or False, not 1"),
        ({"logprobs": 1.0}, "logprobs must be a whole number from 0 to 300, not 1.0"),
    ],
)
def test_wrong_values_are_told_in_pythons_words(values: dict[str, Any], words: str, llm: LLM) -> None:
    with pytest.raises(UsageError) as raised:
        llm.generate(**{"prompt": "a", **values})
    assert str(raised.value).startswith(words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"messages": "hello"}, "messages must be a list of objects with role and content, at least one"),
        ({"messages": []}, "messages must be a list of objects with role and content, at least one"),
        ({"messages": [{"content": "x"}]}, "message 0 is no object with a role"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 0 has a content that is no text"),
        ({"template": "chatml"}, "template must be auto, model, llama2 or plain, not 'chatml'"),
        ({"template": None}, "template must be auto, model, llama2 or plain, not None"),
        ({"template_args": 5}, "template_args must be values by their names"),
        ({"notice": 5}, "notice must be a function, not 5"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number from 1, not 1.5"),
        ({"stop": "x"}, "stop must be a list of texts, none of them empty, not 'x'"),
        ({"ignore_eos": None}, "ignore_eos must be True or False, not None"),
    ],
)
def test_wrong_values_of_chat_are_told_in_pythons_words(values: dict[str, Any], words: str, llm: LLM) -> None:
    with pytest.raises(UsageError) as raised:
        llm.chat(**{"messages": MESSAGES[-1:], **values})
    assert str(raised.value).startswith(words)


def test_wrong_ids_are_refused_wherever_they_come(llm: LLM) -> None:
    for ids in ("abc", [1.5], 7, np.zeros((2, 2), int)):
        with pytest.raises(UsageError, match="ids must be a list of token ids, not"):
            llm.logits(ids)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="token 'a' is not of this model"):
        Session(llm).add(["a"])  # type: ignore[list-item]


def test_a_session_is_saved_and_goes_on(llm: LLM, tmp_path: Path) -> None:
    greedy = llamagpu.SamplingParams(temperature=0)
    whole = llm.generate("the on", 12, temperature=0)
    assert whole.text
    session = Session(llm)
    session.add(llm.encode_prompt("the on"))
    first = llamagpu.Answer(session, 5, greedy)
    assert first.text
    session.save(tmp_path / "kept")
    session.save(str(tmp_path / "kept"))  # over itself
    then = llamagpu.Answer(Session.load(llm, tmp_path / "kept"), 7, greedy)
    assert then.text
    assert first.tokens + then.tokens == whole.tokens


def test_a_session_is_saved_over_nothing_else(llm: LLM, tmp_path: Path) -> None:
    session = Session(llm)
    (tmp_path / "other").write_text("mine")
    with pytest.raises(UsageError, match="holds something other than a plain session"):
        session.save(tmp_path / "other")
    assert (tmp_path / "other").read_text() == "mine"
    with pytest.raises(UsageError, match="no file"):
        Session.load(llm, tmp_path / "nosuch")


def test_a_chat_takes_a_template_by_name(demo: LLM) -> None:
    assert [Chat(Session(demo), name).template.name for name in ("plain", "llama2")] == ["plain", "llama2"]
    assert Chat(Session(demo)).template.name == "plain"  # the built-in model brings none
