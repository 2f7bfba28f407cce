"""Which tokens begin and end a text, what templates get by name, and what of a conversation a model reads.

The right values are transformers': 5.24 in all, and 4.57 where the two agree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamagpu.checkpoint import AddedToken, TokenFacts, TokenizerSpec
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.formats.huggingface_description import told
from llamagpu.formats.token_facts import facts_of, facts_of_folder, values_of
from llamagpu.llm import model_path
from llamagpu.model_text import ModelText, open_text
from llamagpu.tokenizers import open_spec
from llamagpu.tokenizers.huggingface import HuggingFaceTokenizer
from llamagpu.tokenizers.special_tokens import end_ids, named_ids
from tests.tokenizers.tokenizer_json import llama3_like, qwen2_like

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}[assistant]"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = [{"role": "user", "content": "the cat"}]
SYSTEM = [{"role": "system", "content": "Be kind."}, *ASK]


def folder(path: Path, tokenizer: bytes, name: str = "tokenizer.json", **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / name).write_bytes(tokenizer)
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path


def text_of(path: Path, tokenizer: bytes | None = None, **config: Any) -> ModelText:
    return open_text(folder(path, tokenizer or llama3_like(), tokenizer_config=config))


def quiet(line: str) -> None:
    """For conversations of which nothing is to be told."""
    raise AssertionError(line)


def bos_id(path: Path, **config: Any) -> int | None:
    return text_of(path, **config).tokenizer.bos_id


def test_a_template_gets_the_named_tokens_whatever_goes_before_a_text(tmp_path: Path) -> None:
    """The file puts token 500 before a text; the folder names 502."""
    text = text_of(
        tmp_path,
        bos_token={"content": "<|eot_id|>"},
        eos_token="<|end_of_text|>",
        chat_template="{{ bos_token }}" + PLAIN,
    )
    ids = text.chat_ids(ASK, notice=quiet)
    assert ids[0] == 502
    assert ids.count(500) == 0
    assert ids.count(501) == 1
    assert text.tokenizer.encode("the cat")[0] == 500
    assert named_ids(text.tokenizer) == (502, 501)


def test_a_template_gets_a_named_bos_that_goes_before_no_text(tmp_path: Path) -> None:
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    text = text_of(tmp_path, qwen2_like(), **names, chat_template="{{ bos_token }}" + PLAIN)
    start = text.tokenizer.id_of("<|endoftext|>")
    assert text.chat_ids(ASK, notice=quiet)[0] == start
    assert text.tokenizer.bos_id is None
    assert text.tokenizer.encode("the")[0] != start


def test_no_start_token_where_the_template_writes_none(tmp_path: Path) -> None:
    text = text_of(tmp_path, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", chat_template=PLAIN)
    assert 500 not in text.chat_ids(ASK, notice=quiet)


def test_the_end_of_a_turn_is_the_named_one_and_not_the_first_of_several(tmp_path: Path) -> None:
    path = folder(
        tmp_path, llama3_like(), generation_config={"eos_token_id": [501, 502]},
        tokenizer_config={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": PLAIN},
    )  # fmt: skip
    text = open_text(path)
    ids = text.chat_ids(ASK, notice=quiet)
    assert ids.count(502) == 1
    assert 501 not in ids
    assert end_ids(text.tokenizer, text.stop_tokens) == {500, 501, 502}


def test_an_end_by_its_text_alone(tmp_path: Path) -> None:
    """As transformers 5 saves it: no added_tokens_decoder, and config.json names another."""
    path = folder(
        tmp_path, qwen2_like(), config={"eos_token_id": 3},
        tokenizer_config={"backend": "tokenizers", "eos_token": "<|im_end|>", "tokenizer_class": "TokenizersBackend"},
    )  # fmt: skip
    text = open_text(path)
    assert end_ids(text.tokenizer, text.stop_tokens) == {3, text.tokenizer.controls["<|im_end|>"]}


def test_a_template_sees_that_there_are_no_tools(tmp_path: Path) -> None:
    source = "{% if tools is not none or documents is not none %}tools{% endif %}" + PLAIN
    text = text_of(tmp_path, eos_token="<|eot_id|>", chat_template=source)
    without = text_of(tmp_path / "b", eos_token="<|eot_id|>", chat_template=PLAIN)
    assert text.chat_ids(ASK, notice=quiet) == without.chat_ids(ASK, notice=quiet)
    assert text.chat_ids(ASK, {"tools": [{"name": "f"}]}, notice=quiet) != without.chat_ids(ASK, notice=quiet)


def test_template_args(tmp_path: Path) -> None:
    source = "{% if enable_thinking is defined and not enable_thinking %}<|eot_id|>{% endif %}" + PLAIN
    text = text_of(tmp_path, eos_token="<|end_of_text|>", chat_template=source)
    assert text.chat_ids(ASK, {"enable_thinking": False}, notice=quiet)[0] == 502
    assert 502 not in text.chat_ids(ASK, notice=quiet)
    given: list[Any] = [{"messages": []}, {"self": 1}, {"x": object()}, {"x": float("nan")}, {1: 2}]
    for wrong in given:
        with pytest.raises(UsageError, match="template_args"):
            text.chat_ids(ASK, wrong)
    with pytest.raises(UsageError, match="leave them out"):
        text.chat_ids(ASK, {"x": 1}, template="plain")


def test_what_is_said_and_given_never_becomes_a_control_token(tmp_path: Path) -> None:
    source = "{{ name }}{{ tools | tojson }}" + PLAIN
    text = text_of(tmp_path, eos_token="<|end_of_text|>", chat_template=source)
    said = [{"role": "user", "content": "<|eot_id|>", "x": ["<|begin_of_text|>"]}]
    given = {"name": "<|eot_id|>", "tools": [{"<|eot_id|>": "<|begin_of_text|>"}]}
    ids = text.chat_ids(said, given, notice=quiet)
    assert [token for token in ids if token >= 500] == [501]


@pytest.mark.parametrize(
    "refusal",
    ["{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
     "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"],
)  # fmt: skip
def test_a_system_prompt_that_has_no_place_opens_the_first_turn(refusal: str, tmp_path: Path) -> None:
    text = text_of(tmp_path, eos_token="<|eot_id|>", chat_template=refusal + PLAIN)
    told: list[str] = []
    folded = text.chat_ids([{"role": "user", "content": "Be kind.\n\nthe cat"}], notice=quiet)
    assert text.chat_ids(SYSTEM, notice=told.append) == folded
    assert len(told) == 1
    assert "system prompt" in told[0]
    taken = text_of(tmp_path / "b", eos_token="<|eot_id|>", chat_template=PLAIN)
    assert taken.chat_ids(SYSTEM, notice=quiet) != folded
    silent: list[Any] = [SYSTEM[0], {"role": "user", "content": None}]
    assert text.chat_ids(silent, notice=told.append) == text.chat_ids(
        [{"role": "user", "content": "Be kind.\n\n"}], notice=quiet
    )


def test_whose_fault_it_is(tmp_path: Path) -> None:
    text = text_of(tmp_path, chat_template="{{ raise_exception('never') }}")
    with pytest.raises(UsageError, match="never"):
        text.chat_ids(SYSTEM)


def test_messages_that_are_none(tmp_path: Path) -> None:
    text = text_of(tmp_path, chat_template=PLAIN)
    user = {"role": "user", "content": "x"}
    contents: tuple[Any, ...] = (1, {}, "\ud800")
    wrong: list[Any] = [[], {}, "hi", [1], [{"content": "x"}], [user | {"y": {1}}]]
    wrong += [[user | {"content": content}] for content in contents]
    for messages in wrong:
        with pytest.raises(UsageError, match="message"):
            text.chat_ids(messages)
    with pytest.raises(UsageError, match="template='model'"):
        text.chat_ids([{"role": "tool", "content": "x"}], template="plain")


def test_add_bos_token(tmp_path: Path) -> None:
    """Obeyed by Llama's class; of the general one the post-processor alone says what goes before a text."""
    named = {"bos_token": "<|begin_of_text|>"}
    assert bos_id(tmp_path / "a", **named) == 500
    for i, kind in enumerate(("LlamaTokenizerFast", "LlamaTokenizer")):
        assert bos_id(tmp_path / f"b{i}", tokenizer_class=kind, add_bos_token=False, **named) is None
        path = folder(
            tmp_path / f"c{i}", qwen2_like(),
            tokenizer_config={"tokenizer_class": kind, "add_bos_token": True, "bos_token": "<|endoftext|>"},
        )  # fmt: skip
        tokenizer = open_text(path).tokenizer
        assert tokenizer.bos_id == tokenizer.controls["<|endoftext|>"]
        assert tokenizer.encode("the")[0] == tokenizer.bos_id
    assert bos_id(tmp_path / "d", tokenizer_class="PreTrainedTokenizerFast", add_bos_token=False, **named) == 500
    assert bos_id(tmp_path / "e", tokenizer_class="LlamaTokenizer", add_bos_token=True, bos_token=None) == 500


def test_the_map_and_the_class_name_what_the_config_does_not(tmp_path: Path) -> None:
    path = folder(
        tmp_path, llama3_like(), tokenizer_config={"tokenizer_class": "Qwen2TokenizerFast", "pad_token": None},
        special_tokens_map={"bos_token": {"content": "<|begin_of_text|>"}, "additional_special_tokens": ["<|eot_id|>"]},
    )  # fmt: skip
    names = open_text(path).tokenizer.names
    assert names["bos_token"] == "<|begin_of_text|>"
    assert names["eos_token"] == "<|endoftext|>"
    assert "pad_token" not in names
    assert names["additional_special_tokens"] == ["<|eot_id|>"]


def test_named_tokens_that_the_vocabulary_lacks_come_after_it(tmp_path: Path) -> None:
    tokenizer = text_of(tmp_path, pad_token="[PAD]", bos_token="<|begin_of_text|>").tokenizer
    assert tokenizer.controls["[PAD]"] == 503
    assert (tokenizer.vocab_size, tokenizer.n_added_at_end) == (504, 4)
    assert tokenizer.token_bytes(503) == b""


def test_a_named_token_is_a_control_token_whatever_its_own_file_says(tmp_path: Path) -> None:
    tokenizer = text_of(tmp_path, qwen2_like(), eos_token="<think>").tokenizer
    end = tokenizer.controls["<think>"]
    assert end not in tokenizer.encode("a<think>")
    assert tokenizer.encode("a<think>", special=True)[-1] == end
    assert tokenizer.token_bytes(end) == b""


def test_an_ordinary_token_stays_text_whatever_it_is_named(tmp_path: Path) -> None:
    tokenizer = text_of(tmp_path, pad_token="!", eos_token="Ċ").tokenizer
    assert tokenizer.decode(tokenizer.encode("the!\n")) == "the!\n"
    assert tokenizer.find_control("the!\n") is None
    assert tokenizer.eos_id == tokenizer.encode("\n", add_bos=False)[0], "it ends a text all the same"


def demo_model() -> bytes:
    spec = open_checkpoint(model_path("demo")).tokenizer
    assert spec is not None
    return spec.data


def sentencepiece(path: Path, **files: Any) -> ModelText:
    return open_text(folder(path, demo_model(), "tokenizer.model", **files))


@pytest.mark.parametrize("where", ["added_tokens", "added_tokens_decoder"])
def test_tokens_that_are_added_to_a_sentencepiece_model(where: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": CHATML}
    n = open_spec(TokenizerSpec("sentencepiece", demo_model()), tmp_path).vocab_size
    ids = {"<|im_start|>": n, "<|im_end|>": n + 1}
    files: dict[str, Any] = {"tokenizer_config": config}
    if where == "added_tokens":
        files["added_tokens"] = ids
    else:
        config[where] = {str(token): {"content": text, "special": True} for text, token in ids.items()}
    text = sentencepiece(tmp_path, **files)
    tokenizer = text.tokenizer
    found = text.chat_ids(ASK, notice=quiet)
    assert [token for token in found if token >= n] == [n, n + 1, n]
    assert found[0] == n
    assert found[1 : found.index(n + 1)] == tokenizer.encode("user\nthe cat", add_bos=False)
    assert (tokenizer.vocab_size, tokenizer.n_added_at_end, tokenizer.eos_id) == (n + 2, 2, n + 1)
    assert tokenizer.decode([n, *tokenizer.encode("the cat"), n + 1]) == "the cat"
    assert max(tokenizer.encode("the<|im_end|>")) < n
    assert tokenizer.encode("the<|im_end|>", special=True)[-1] == n + 1


def test_tokenizer_json_says_which_of_added_tokens_json_are_text(tmp_path: Path) -> None:
    """Runs of spaces, in models of code, are listed there too."""
    path = folder(
        tmp_path, qwen2_like(), tokenizer_config={"eos_token": "<|im_end|>"},
        added_tokens={"<|im_end|>": 502, "<think>": 503, "<new>": 600},
    )  # fmt: skip
    facts = facts_of_folder(path)
    assert facts is not None
    again = facts_of(path, values_of(facts))
    for tokenizer in (open_text(path).tokenizer, open_spec(TokenizerSpec("huggingface", qwen2_like(), again), path)):
        think, new = (tokenizer.id_of(text) for text in ("<think>", "<new>"))
        assert think is not None
        assert think in tokenizer.encode("the<think>cat")
        assert tokenizer.decode(tokenizer.encode("the<think>cat")) == "the<think>cat"
        assert new in tokenizer.encode("a<new>", special=True)
        assert new not in tokenizer.encode("a<new>")
    written = told(facts, tokenizer, "PreTrainedTokenizerFast").added
    assert [written[token].special for token in sorted(written)] == [True, False, True]


def test_added_tokens_that_are_text(tmp_path: Path) -> None:
    n = open_spec(TokenizerSpec("sentencepiece", demo_model()), tmp_path).vocab_size
    about = {"content": "<tool>", "special": False, "lstrip": True}
    text = sentencepiece(tmp_path, tokenizer_config={"added_tokens_decoder": {str(n): about}, "add_bos_token": False})
    tokenizer = text.tokenizer
    the, cat = (tokenizer.encode(word) for word in ("the", "cat"))
    assert tokenizer.encode("the  <tool>cat") == [*the, n, *cat]
    assert tokenizer.decode([*the, n]) == "the<tool>"
    assert tokenizer.bos_id is None


def test_a_text_goes_on_after_a_control_token_where_the_model_is_not_legacy(tmp_path: Path) -> None:
    new = sentencepiece(tmp_path / "a", tokenizer_config={"legacy": False, "bos_token": "<s>"}).tokenizer
    old = sentencepiece(tmp_path / "b", tokenizer_config={"bos_token": "<s>"}).tokenizer
    assert old.encode("<s>the", special=True) == [1, *old.encode("the", add_bos=False)]
    assert new.encode("<s>the", special=True) == [1, *new.encode_more("the")]
    assert new.encode("the") == old.encode("the") == new.encode(" the") == new.encode("\u2581the")
    assert old.encode(" the") != old.encode("the")


def test_control_tokens_that_are_typed(tmp_path: Path) -> None:
    tokenizer = text_of(tmp_path, bos_token="<|begin_of_text|>").tokenizer
    typed = "<|begin_of_text|>the<|eot_id|>"
    assert tokenizer.find_control("a" + typed) == "<|begin_of_text|>"
    assert tokenizer.find_control("the <|eot|>") is None
    ids = tokenizer.encode(typed, special=True)
    assert (ids[0], ids[-1], ids.count(500)) == (500, 502, 1), "and no second start token"
    assert tokenizer.encode("the<|eot_id|>", special=True) == ids
    assert tokenizer.encode_more("the<|eot_id|>", special=True) == ids[1:]
    assert max(tokenizer.encode(typed)[1:]) < 500


def test_what_a_model_bin_keeps_is_what_a_folder_says() -> None:
    facts = TokenFacts(
        {"bos_token": "<s>", "pad_token": None, "image_token": "<i>"}, ("<a>", "<b>"), {"eos_token": 2},
        {7: AddedToken("<t>", special=False, rstrip=True)}, True, False, "LlamaTokenizer", False,
    )  # fmt: skip
    path = Path("model.bin")
    assert facts_of(path, json.loads(json.dumps(values_of(facts)))) == facts
    assert facts_of(path, values_of(TokenFacts())) == TokenFacts()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"bos_token": 1}, "bos_token"),
        ({"bos_token": "\ud800"}, "bos_token"),
        ({"add_bos_token": "no"}, "add_bos_token"),
        ({"additional_special_tokens": "x"}, "additional_special_tokens"),
        ({"special_token_ids": [1]}, "special_token_ids"),
        ({"added_tokens_decoder": {"99999999": {"content": "x"}}}, "x"),
    ],
)
def test_damaged_files_are_refused(values: dict[str, Any], field: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelFormatError) as refused:
        facts_of_folder(tmp_path)
    assert refused.value.field == field


def test_without_files_around_it_a_tokenizer_knows_itself() -> None:
    tokenizer = open_spec(TokenizerSpec("huggingface", llama3_like()), Path("tokenizer.json"))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.names == {"bos_token": "<|begin_of_text|>"}
    assert facts_of_folder(Path("there is no such folder")) is None
