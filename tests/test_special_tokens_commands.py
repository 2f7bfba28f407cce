"""Special tokens in whole models: what run, chat, tokenize and convert make of them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llamagpu
from llamagpu import commands, inspect_commands
from llamagpu.chat import Chat
from llamagpu.chat_command import chat
from llamagpu.chat_templates import choose_template
from llamagpu.convert_command import convert
from llamagpu.errors import UsageError
from llamagpu.formats import native, open_checkpoint
from llamagpu.model_text import open_text
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.formats.gguf_files import File, small_model
from tests.formats.test_huggingface import small_folder, with_text_files
from tests.tokenizers.test_gguf import byte_level_keys

TEMPLATE = (
    "{% if 'system' == messages[0].role %}{{ raise_exception('no system') }}{% endif %}{{ bos_token }}{{ style }}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}[assistant]"
)
CONFIG = {
    "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>",
    "add_bos_token": False, "tokenizer_class": "LlamaTokenizerFast", "chat_template": TEMPLATE,
}  # fmt: skip
SAID = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the cat"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return with_text_files(small_folder(tmp_path / "model"), tokenizer_config=CONFIG)


def test_a_chat_reads_what_chat_ids_says(model: Path) -> None:
    llm = llamagpu.load(model, device="cpu")
    told: list[str] = []
    template = choose_template("auto", llm, {"style": "<|eot_id|>calm"})[0]
    talk = Chat(Session(llm), template, "Be kind.", SamplingParams(temperature=0), max_tokens=1)
    for text in ("the cat", "on the mat"):
        list(talk.ask(text, notice=told.append))
    assert len(told) == 1, "once, however long the talk is"
    ids = llm.chat_ids(SAID, {"style": "<|eot_id|>calm"}, notice=told.append)
    assert talk.session.tokens[: len(ids)] == ids
    assert [token for token in ids if token >= 500] == [500, 502], "what is given never becomes a control token"
    with pytest.warns(UserWarning, match="system prompt"):
        assert llm.chat_ids(SAID) != ids


def test_a_text_begins_once_where_a_document_comes_first(model: Path) -> None:
    """Plain texts have no start token here, and the template writes one."""
    llm = llamagpu.load(model, device="cpu")
    talk = Chat(Session(llm), choose_template("auto", llm)[0], None, SamplingParams(temperature=0), max_tokens=1)
    n = talk.read_document("on the mat", lambda n: None)
    list(talk.ask("the cat"))
    tokens = talk.session.tokens
    assert tokens[:n] == [500, *llm.tokenizer.encode("on the mat")]
    assert tokens.count(500) == 1
    assert tokens[n : n + 5] == llm.tokenizer.encode("[user]the cat")[:5]


def test_an_answer_ends_at_the_end_that_is_named_by_text(model: Path) -> None:
    llm = llamagpu.load(model, device="cpu")
    assert llm.generate("the", max_tokens=1).end_ids == {502}


def test_tokenize_messages(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(SAID))
    expected = open_text(model).chat_ids(SAID, {"style": "x"}, notice=lambda line: None)
    inspect_commands.tokenize(str(model), messages=str(file), template_args='{"style": "x"}')
    out, err = capsys.readouterr()
    assert out.split() == [str(token) for token in expected]
    assert err.count("\n") == 1
    assert "system prompt" in err
    inspect_commands.tokenize(str(model), messages=str(file), template="plain")
    assert capsys.readouterr().out.split()[0] != "500", "a plain text begins with no start token here"
    inspect_commands.tokenize(str(model), "the<|eot_id|>", special=True)
    assert capsys.readouterr().out.split()[-1] == "502"
    (model / "model.safetensors").unlink()
    inspect_commands.tokenize(str(model), messages=str(file), template_args='{"style": "x"}')
    assert capsys.readouterr().out.split() == [str(token) for token in expected], "without weights, too"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "TEXT is missing"),
    "both": ({"text": "a", "messages": "x"}, "not both"),
    "of no use": ({"text": "a", "template_args": "{}"}, "are for --messages"),
    "special": ({"messages": "GOOD", "special": True}, "are for a TEXT"),
    "no bos": ({"messages": "GOOD", "bos": False}, "are for a TEXT"),
    "no file": ({"messages": "there is none"}, "--messages there is none: No such file"),
    "no JSON": ({"messages": "FILE"}, "--messages .* is not valid JSON"),
    "no object": ({"messages": "GOOD", "template_args": "[1]"}, "must be a JSON object"),
    "damaged": ({"messages": "GOOD", "template_args": "{"}, "--template_args is not valid JSON"),
    "messages": ({"messages": "GOOD", "template_args": '{"messages": []}'}, "cannot have 'messages'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_commands(case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    flags, message = WRONG[case]
    files = {"FILE": tmp_path / "a.json", "GOOD": tmp_path / "b.json"}
    files["FILE"].write_text("[")
    files["GOOD"].write_text(json.dumps(SAID))
    given: dict[str, Any] = {name: str(files[value]) if value in files else value for name, value in flags.items()}
    with pytest.raises(UsageError, match=message):
        inspect_commands.tokenize(str(model), **given)


def test_run_special(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = "the<|eot_id|>cat<|begin_of_text|>"
    commands.run(str(model), typed, max_tokens=1, device="cpu")
    notices = capsys.readouterr().err
    assert notices.count("<|eot_id|>") == 1
    assert "--special" in notices
    assert "<|begin_of_text|>" not in notices
    commands.run(str(model), typed, max_tokens=1, device="cpu", special=True)
    assert "--special" not in capsys.readouterr().err
    llm = llamagpu.load(model, device="cpu")
    read = llm.generate(typed, max_tokens=1, special=True).prompt_tokens
    assert [token for token in read if token >= 500] == [502, 500]
    assert max(llm.generate(typed, max_tokens=1).prompt_tokens) < 500


def test_chat_with_template_args(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
    chat(str(model), device="cpu", max_tokens=2, system="Be kind.", template_args='{"style": "x"}')
    notices = capsys.readouterr().err
    assert notices.count("system prompt") == 1
    with pytest.raises(UsageError, match="template_args"):
        chat(str(model), device="cpu", template_args="3")


def test_a_saved_talk_keeps_its_template_args(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrites = []
    for args in ('{"style": "x"}', None, '{"style": "y"}', None, "{}"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
        chat(str(model), device="cpu", max_tokens=2, template_args=args, session=str(tmp_path / "a.memory"))
        rewrites.append("the template rewrites" in capsys.readouterr().err)
    assert rewrites == [False, False, True, False, True]


def as_model_bin(model: Path, folder: Path) -> Path:
    convert(str(model), str(folder / "model.bin"))
    return folder / "model.bin"


def as_folder(model: Path, folder: Path) -> Path:
    convert(str(model), str(folder / "written"), format="huggingface")
    return folder / "written"


@pytest.mark.parametrize("steps", [(as_model_bin,), (as_folder,), (as_model_bin, as_folder)])
def test_what_is_converted_reads_the_same(
    steps: tuple[Callable[[Path, Path], Path], ...], model: Path, tmp_path: Path
) -> None:
    expected, path = open_text(model), model
    for step in steps:
        path = step(path, tmp_path)
    text = open_text(path)
    assert text.chat_ids(SAID, notice=lambda line: None) == expected.chat_ids(SAID, notice=lambda line: None)
    assert text.tokenizer.names == expected.tokenizer.names
    assert (text.tokenizer.bos_id, text.tokenizer.eos_id) == (None, 502)
    if path.is_dir():
        about = json.loads((path / "tokenizer_config.json").read_text())
        assert about == CONFIG
        assert (path / "chat_template.jinja").read_text() == TEMPLATE
        config = json.loads((path / "config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (500, 502)


def test_a_model_bin_of_version_1_opens(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of it the tokenizer alone is asked: what goes before a text is also what templates get."""
    describe = native.describe

    def older(checkpoint: Any) -> dict[str, str]:
        metadata = describe(checkpoint)
        del metadata[native.SPECIAL_TOKENS]
        return metadata | {"llamagpu.format_version": "1"}

    monkeypatch.setattr(native, "describe", older)
    tokenizer = open_text(as_model_bin(model, tmp_path)).tokenizer
    assert tokenizer.names == {"bos_token": "<|begin_of_text|>"}
    assert tokenizer.bos_id == 500


@pytest.mark.parametrize(("kind", "ends"), [(3, True), (4, False)])
def test_the_usual_ends_end_the_texts_of_a_gguf_file(kind: int, ends: bool, tmp_path: Path) -> None:
    """Qwen's files name <|im_end|> alone, and a text that is no chat ends with another token."""
    keys = byte_level_keys("qwen2", add_bos_token=("bool", False))
    tokens, types = (keys[f"tokenizer.ggml.{name}"][2] for name in ("tokens", "token_type"))
    tokens[-1], types[-1] = "<|endoftext|>", kind
    n, file = len(tokens), small_model("qwen2")[0]
    (tmp_path / "model.gguf").write_bytes(File({**file.keys, **keys}, file.tensors).to_bytes())
    native.write(tmp_path / "model.bin", open_checkpoint(tmp_path / "model.gguf"))
    for name in ("model.gguf", "model.bin"):
        answer = llamagpu.load(tmp_path / name, device="cpu").generate("the", max_tokens=1)
        assert answer.end_ids == ({n - 2, n - 1} if ends else {n - 2})


def test_what_a_gguf_file_names(tmp_path: Path) -> None:
    keys = byte_level_keys("qwen2", add_bos_token=("bool", False))
    tokens = keys["tokenizer.ggml.tokens"][2]
    n, file = len(tokens), small_model("qwen2")[0]
    keys["tokenizer.ggml.padding_token_id"] = ("u32", n - 1)
    keys["tokenizer.chat_template"] = ("str", TEMPLATE)
    path = tmp_path / "model.gguf"
    path.write_bytes(File({**file.keys, **keys}, file.tensors).to_bytes())
    facts = open_checkpoint(path).tokenizer
    assert facts is not None
    text = open_text(path)
    assert text.tokenizer.names == {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<tool>"}
    ids = text.chat_ids(SAID[1:], notice=lambda line: None)
    assert (ids[0], ids.count(n - 3), ids.count(n - 2)) == (n - 3, 1, 1)
    assert text.tokenizer.bos_id is None, "which the file says"
    written = open_text(as_folder(path, tmp_path))
    assert written.chat_ids(SAID[1:], notice=lambda line: None) == ids
    assert written.tokenizer.encode("the") == text.tokenizer.encode("the")
