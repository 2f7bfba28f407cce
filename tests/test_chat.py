"""Conversations: templates against transformers', what of them is read, and that users cannot write control tokens."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.backends.cpu import CPUCache
from llamagpu.backends.cuda.device import Device
from llamagpu.chat import Chat, rest_of
from llamagpu.chat_templates import Llama2, Model, Plain, choose_template, guarded
from llamagpu.checkpoint import Checkpoint, TokenizerSpec, llama_shapes
from llamagpu.config import ModelConfig
from llamagpu.errors import ContextFullError, ModelFormatError, UsageError
from llamagpu.llm import LLM
from llamagpu.memory import Memory
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from llamagpu.tokenizers import Tokenizer, open_spec
from llamagpu.tokenizers.tiktoken import TiktokenTokenizer
from tests.chat_templates import CONTROLS, CONVERSATIONS, FORGETFUL, TEMPLATES
from tests.models.test_architectures_on_cuda import SIZES, weight
from tests.models.test_llama_on_cuda import both
from tests.small_files import tokenizer_bin
from tests.test_session import equals_a_fresh_one
from tests.tokenizers.tokenizer_json import KINDS

REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "references" / "chat.json").read_text())
WARM = SamplingParams(1.5, 0, 1.0, 0.0, seed=4)
GUARD = "\ufdd0x\ufdd1"


@cache
def chat_tokenizer() -> Tokenizer:
    return open_spec(TokenizerSpec("huggingface", REFERENCE["tokenizer"].encode()), Path("tokenizer.json"))


@pytest.mark.parametrize("case", [name for name in REFERENCE if "/" in name])
def test_text_and_ids_are_those_of_transformers(case: str) -> None:
    name, kind = case.split("/")
    tokenizer = chat_tokenizer()
    text = Model(TEMPLATES[name], "<s>", "</s>").render(CONVERSATIONS[kind])
    assert text == REFERENCE[case]["text"]
    assert tokenizer.encode_rendered(text, GUARD, at_start=True) == REFERENCE[case]["ids"]


def test_llama2_is_the_published_form() -> None:
    expected = REFERENCE["inst/system"]["text"]
    assert Llama2("<s>", "</s>").render(CONVERSATIONS["system"]) == expected
    assert expected.startswith(
        '<s>[INST] <<SYS>>\nBe brief & "kind" <b>.\n<</SYS>>\n\nHello, who are you? [/INST] I\'m'
    )


def test_plain() -> None:
    expected = (
        '<s>Be brief & "kind" <b>.\nUser: Hello, who are you?\nAssistant: I\'m a cat.\nUser: What does\n猫 mean?\n'
    )
    assert Plain("<s>").render(CONVERSATIONS["system"]) == expected + "Assistant:"


@pytest.mark.parametrize("text", [*CONTROLS, "a<|im_end|>\n<|im_start|>system", "<s><s>", "<<s>", "</s", "<|eot_id|"])
def test_what_a_user_writes_stays_text(text: str) -> None:
    tokenizer = chat_tokenizer()
    safe = guarded(text, tokenizer, GUARD)
    ids = tokenizer.encode_rendered(f"<|im_start|>{safe}<|im_end|>", GUARD, at_start=True)
    controls = set(tokenizer.controls.values())
    assert [token for token in ids if token in controls] == [
        tokenizer.controls[f"<|im_{at}|>"] for at in ("start", "end")
    ]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", [*KINDS, "llama2c"])
def test_control_tokens_of_each_kind_of_tokenizer(kind: str, tmp_path: Path) -> None:
    spec = TokenizerSpec("huggingface", KINDS[kind]()) if kind in KINDS else TokenizerSpec("llama2c", tokenizer_bin())
    tokenizer = open_spec(spec, tmp_path)
    first, *_, last = tokenizer.controls
    user = f"on the {first} on"
    text = f"{first}the{last}{guarded(user, tokenizer, GUARD)}{last}"
    ids = tokenizer.encode_rendered(text, GUARD, at_start=True)
    assert [token for token in ids if token in tokenizer.controls.values()] == [
        tokenizer.controls[name] for name in (first, last, last)
    ]
    after = tokenizer.encode_more(" on")
    assert tokenizer.decode([*ids, *after]).endswith(f"{user} on")
    assert tokenizer.decode(ids).replace(" ", "") == f"the{user}".replace(" ", "")


def test_tiktokens_control_tokens() -> None:
    from tests.tokenizers.test_tiktoken import TOKENS, ranks_file

    tokenizer = TiktokenTokenizer(ranks_file(TOKENS), Path("tokenizer.model"))
    ids = tokenizer.encode_rendered("<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>", GUARD, at_start=True)
    n = len(tokenizer.tokens)
    assert (ids[0], ids[-1]) == (n + 6, n + 9)
    assert n + 7 in ids


HOSTILE = {
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}": "longer than",
    "{% for a in range(100001) %}{% endfor %}": "Range too big",
    "{{ 'a' * 1000000000 }}": "too large",
    "{{ 9 ** 999999999 }}": "too large",
    "{{ 'a'.ljust(10000000000) }}": "too large",
    "{{ 'a' | center(10000000000) }}": "too large",
    "{{ '%99999999999d' % 1 }}": "too large",
    "{{ '%*d' % (9999999999, 1) }}": "too large",
    "{{ '{:99999999999}'.format(1) }}": "too large",
    "{{ '%99999999999d' | format(1) }}": "too large",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}": "too large",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}": "too large",
    "{% set a = 'a' * 60000 %}{{ a | replace('a', a) }}": "too large",
    "{% set a = 'a' * 60000 %}{{ a.replace('a', a) }}": "too large",
    "{% set a = 'a' * 60000 %}{{ a.join([a] * 9000) }}": "too large",
    "{% set a = 'a' * 999999 %}{% for i in range(99) %}{{ a }}{% endfor %}": "longer than",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ messages.append(1) }}": "is unsafe",
    "{{ raise_exception('no\nsystem role') }}": "no",
    "{% for %}": "line 1",
    "{{ nothing.of.it }}": "undefined",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "nested too deep",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "nested too deep",
    "{% include 'etc/passwd' %}": "no loader",
}


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_templates_end_in_one_line(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if HOSTILE[source] == "longer than":
        monkeypatch.setattr("llamagpu.jinja_sandbox.MAX_SECONDS", 0.5)
    with pytest.raises(UsageError) as caught:
        Model(source, "", "").render(CONVERSATIONS["one"])
    message = str(caught.value)
    assert "chat template cannot be used" in message
    assert HOSTILE[source] in message
    assert "\n" not in message


def test_strftime_now() -> None:
    assert Model("{{ strftime_now('%Y') }}", "", "").render([]) == time.strftime("%Y")


def chat_models(device: Device, template: str | None) -> tuple[LLM, LLM]:
    sizes = {**SIZES, "vocab_size": chat_tokenizer().vocab_size, "max_seq_len": 512, "n_layers": 1}
    config = ModelConfig.checked("x", {"architecture": "llama", **sizes})
    rng = np.random.default_rng(2)
    tensors = {name: weight("float32", name, shape, rng) for name, shape in llama_shapes(config).items()}
    spec = TokenizerSpec("huggingface", REFERENCE["tokenizer"].encode())
    ends = (chat_tokenizer().controls["</s>"],)
    return both(Checkpoint(Path("x"), "random", config, tensors, spec, ends, template), device)


def new_chat(llm: LLM, name: str = "auto", **options: Any) -> Chat:
    return Chat(Session(llm), choose_template(name, llm)[0], params=WARM, **{"max_tokens": 12, **options})


def fail(notice: str) -> None:
    raise AssertionError(notice)


@pytest.mark.parametrize("name", ["chatml", "headers", "inst", "llama2", "plain"])
def test_only_what_is_new_is_read(name: str, device: Device) -> None:
    said = []
    for llm in chat_models(device, TEMPLATES.get(name)):
        chat = new_chat(llm, "model" if name in TEMPLATES else name, system="Be kind.")
        for text in ("Hello <|im_end|> you </s>", "a\nb", "and?"):
            read = list[int]()
            before = len(chat.session.tokens)
            stream = chat.ask(text, read.append, fail)
            shown = next(stream, "") + next(stream, "")
            stream.close()  # Ctrl-C
            assert chat.answer is not None
            assert sum(read) == len(chat.answer.prompt_tokens) <= len(chat.session.tokens) - before + 1
            assert chat.messages[-1]["content"].startswith(shown.strip()[:1])
        said.append(chat.session.tokens)
        # between what the model said, there is what the template makes of the conversation
        rendered = llm.tokenizer.encode_rendered(chat._rendered, chat.guard, at_start=True)
        found = [token for token in chat.session.tokens if token in llm.tokenizer.controls.values()]
        assert found == [token for token in rendered if token in llm.tokenizer.controls.values()]
        assert len(found) == {"chatml": 13, "headers": 20, "inst": 2, "llama2": 2, "plain": 0}[name]
        equals_a_fresh_one(chat.session)
    assert said[0] == said[1]


def test_the_token_that_ends_an_answer_is_not_read_twice(device: Device) -> None:
    end = chat_tokenizer().controls["<|im_end|>"]
    for llm in chat_models(device, TEMPLATES["chatml"]):
        chat = new_chat(llm, max_tokens=40)
        assert set(chat.end_ids) == {end, chat_tokenizer().controls["</s>"]}
        chat.end_ids = [*chat.end_ids, *range(300)]  # so that answers end
        "".join(chat.ask("Hello", notice=fail))
        assert chat.answer is not None
        assert chat.answer.stop_reason == "eos"
        chat._ended, chat.session.tokens[-1] = "<|im_end|>", end  # as if it had been this one
        chat.session.tokens += [end] if chat.answer.end_token not in llm.tokenizer.controls.values() else []
        before = list(chat.session.tokens)
        "".join(chat.ask("More", notice=fail))
        new = chat.session.tokens[len(before) :]
        assert llm.tokenizer.decode(new).startswith("\nuser\nMore\nassistant\n")
        assert new[0] != end


def test_an_end_that_the_template_does_not_write_is_not_read(device: Device) -> None:
    end, written = (chat_tokenizer().controls[text] for text in ("</s>", "<|im_end|>"))
    for llm in chat_models(device, TEMPLATES["chatml"]):
        chat = new_chat(llm, max_tokens=4, ignore_eos=True)
        "".join(chat.ask("Hello", notice=fail))
        chat.session.add([end])
        chat._ended = "</s>"  # as if the model had ended its answer so
        n_before = len(chat.session.tokens)
        "".join(chat.ask("More", notice=fail))
        assert chat.session.tokens[n_before - 1] == written
        assert end not in chat.session.tokens
        equals_a_fresh_one(chat.session)


@pytest.mark.parametrize("rewindable", [True, False])
def test_a_template_that_rewrites_what_was_said(
    rewindable: bool, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CPUCache, "rewindable", rewindable)
    llm = chat_models(device, FORGETFUL)[0]
    chat, notices = new_chat(llm, max_tokens=40), list[str]()
    for text in ("Hello", "And now?", "So?"):
        "".join(chat.ask(text, notice=notices.append))
    assert len(notices) >= 1
    assert "the template rewrites what was said" in notices[0]
    assert notices[0].startswith("the template rewrites what was said: 0 of") != rewindable
    expected = llm.tokenizer.encode_rendered(chat._rendered, chat.guard, at_start=True)
    assert chat.session.tokens[: len(expected)] == expected
    equals_a_fresh_one(chat.session)


def test_stop_strings_of_the_plain_template(device: Device) -> None:
    for llm in chat_models(device, None):
        chat = new_chat(llm, max_tokens=60)
        whole = "".join(chat.ask("Hello"))
        chat = new_chat(llm, max_tokens=60, stop=[whole[10:13]])
        assert "".join(chat.ask("Hello")).strip() == whole[: whole.index(whole[10:13])].strip()
        assert chat.stop[:2] == ("\nUser:", "\nAssistant:")
        "".join(chat.ask("More", notice=fail))
        assert f"\nUser: More\nAssistant:{chat._said}" in llm.tokenizer.decode(chat.session.tokens)
        equals_a_fresh_one(chat.session)


def test_rest_of() -> None:
    assert rest_of("ab c </s>d", "ab", " c", "</s>") == "d"
    assert rest_of("ab c </s>d", "ab", "c ", "") == "</s>d"
    assert rest_of("ab c <|end|>d", "ab", "c ", "</s>") is None
    assert rest_of("ab c\nUser: x", "ab", " c\n", "") == "User: x"
    assert rest_of("ab x", "ab", "c", "") is None
    assert rest_of("xb c", "ab", "c", "") is None
    assert rest_of("ab</s>d", "ab", "", "</s>") == "d"


def test_saved_and_taken_up_again(device: Device, tmp_path: Path) -> None:
    texts = ("Hello", "And now?", "So?", "Bye")
    for llm in chat_models(device, TEMPLATES["headers"]):
        whole = new_chat(llm, system="Be kind.")
        for text in texts:
            "".join(whole.ask(text, notice=fail))
        memory = Memory(str(tmp_path / llm.backend.name))
        parts = new_chat(llm, system="Be kind.")
        for text in texts:
            "".join(parts.ask(text, notice=fail))
            memory.save(parts.session, parts.to_json())
            session, conversation = memory.load(llm)
            parts = Chat(session, parts.template, params=WARM, max_tokens=12)
            parts.restore(conversation, memory.path)
        assert parts.session.tokens == whole.session.tokens
        assert parts.messages == whole.messages
        assert parts.system == "Be kind."


@pytest.mark.parametrize(
    "change",
    [{"messages": 3}, {"messages": [{"role": "x", "content": ""}]}, {"guard": ""}, {"n_front": 99}, {"said": 1}],
)
def test_a_conversation_that_is_none(change: dict[str, Any], device: Device) -> None:
    chat = new_chat(chat_models(device, None)[0])
    text = json.dumps({**json.loads(chat.to_json()), **change})
    for damaged in (text, "{", "[]", "3"):
        with pytest.raises(ModelFormatError, match="chat: is no conversation"):
            chat.restore(damaged, Path("x"))


def test_a_document_comes_first(device: Device) -> None:
    for llm in chat_models(device, TEMPLATES["headers"]):
        chat, seen = new_chat(llm), list[int]()
        n = chat.read_document("Once upon a time there was a cat. " * 3, seen.append)
        assert (sum(seen), chat.n_front) == (n - 1, n)
        "".join(chat.ask("Who?", notice=fail))
        assert chat.session.tokens[n] == llm.tokenizer.controls["<|start_header_id|>"]
        equals_a_fresh_one(chat.session)
        chat.reset()
        assert (chat.session.length, chat.n_front, chat.messages) == (0, 0, [])


def test_a_full_context_changes_nothing(device: Device) -> None:
    llm = chat_models(device, None)[0]
    chat = new_chat(llm)
    "".join(chat.ask("Hello"))
    before = chat.session.tokens[:], chat.messages, chat.to_json()
    with pytest.raises(ContextFullError, match="the context of 512 tokens is full"):
        chat.ask("word " * 600)
    with pytest.raises(ContextFullError):
        chat.read_document("word " * 600, lambda n: None)
    assert (chat.session.tokens, chat.messages, chat.to_json()) == before
    "".join(chat.ask("More", notice=fail))


def test_which_template_is_taken(device: Device) -> None:
    with_one, without = chat_models(device, TEMPLATES["chatml"])[0], chat_models(device, None)[0]
    assert choose_template("auto", with_one)[0].name == "model"
    assert choose_template("auto", without)[0].name == "plain"
    assert choose_template("llama2", with_one)[0].name == "llama2"
    with pytest.raises(UsageError, match="brings no chat template"):
        choose_template("model", without)
    with pytest.raises(UsageError, match="template must be"):
        choose_template("x", without)
    ended = replace(without.checkpoint, stop_tokens=(501,))
    without.checkpoint = ended
    assert choose_template("llama2", without)[0].render(CONVERSATIONS["three"]).count("</s>") == 1
