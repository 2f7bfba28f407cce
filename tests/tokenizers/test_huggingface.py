"""tokenizer.json: ids are the tokenizers library's, texts stream, nothing hostile comes through."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed: pip install tokenizers")
import tokenizers

from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import model_path
from llamagpu.tokenizers import StreamDecoder, open_spec, read_spec
from llamagpu.tokenizers.huggingface import HuggingFaceTokenizer
from llamagpu.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.tokenizers.test_tokenizers import KNOWN_IDS, random_texts
from tests.tokenizers.tokenizer_json import (
    KINDS,
    from_sentencepiece,
    llama2_like,
    llama3_like,
    qwen2_like,
)

PATH = Path("tokenizer.json")
SENTENCEPIECE_LIKE = ("Llama 2", "Mistral")


def opened(kind: str) -> tuple[HuggingFaceTokenizer, tokenizers.Tokenizer]:
    """Ours, and the library's own, told that special tokens in a text are text."""
    data = KINDS[kind]()
    library = tokenizers.Tokenizer.from_buffer(data)
    library.encode_special_tokens = True
    return HuggingFaceTokenizer(data, PATH), library


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_the_librarys(kind: str) -> None:
    ours, library = opened(kind)
    for text in random_texts(1000):
        ids = ours.encode(text)
        assert ids == library.encode(text).ids, repr(text)
        whole = ours.decode(ids)
        assert whole == library.decode(ids), repr(text)
        if kind == "Mistral" and text[:1] in (
            " ",
            "▁",
        ):  # its Metaspace adds no second space, and decoding takes one off
            assert whole == text.replace("▁", " ")[1:]
        elif kind in SENTENCEPIECE_LIKE:
            assert whole == text.replace("▁", " ")
        else:
            assert whole == (unicodedata.normalize("NFC", text) if kind == "Qwen 2" else text)
        stream = StreamDecoder(ours)
        assert "".join(map(stream.feed, ids)) + stream.finish() == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_comes_when_all_its_bytes_are_there(kind: str) -> None:
    ours, _ = opened(kind)
    ids = ours.encode("𐍈", add_bos=False)  # in no vocabulary: four bytes
    assert len(ids) >= 4
    stream = StreamDecoder(ours)
    assert [stream.feed(token) for token in ids] == [""] * (len(ids) - 1) + ["𐍈"]
    cut = StreamDecoder(ours)
    assert "".join(map(cut.feed, ids[:-1])) == ""
    assert cut.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("kind", "bos", "space"), [("Llama 3", "<|begin_of_text|>", False), ("Qwen 2", None, False),
                               ("Llama 2", "<s>", True), ("Mistral", "<s>", True)],
)  # fmt: skip
def test_what_goes_before_a_text(kind: str, bos: str | None, space: bool) -> None:
    ours, library = opened(kind)
    assert ours.bos_id == (None if bos is None else library.token_to_id(bos))
    assert ours.eos_id is None
    assert ours.adds_leading_space is space
    assert ours.encode("") == ([] if bos is None else [ours.bos_id])
    assert ours.encode("the cat", add_bos=False) == library.encode("the cat", add_special_tokens=False).ids
    assert ours.vocab_size == library.get_vocab_size()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_are_text(kind: str) -> None:
    ours, library = opened(kind)
    special = [about.content for about in library.get_added_tokens_decoder().values() if about.special]
    for content in special:
        token = library.token_to_id(content)
        assert token not in ours.encode_text(f"a {content} b")
        assert token is not None
        assert ours.token_bytes(token) == b""
        assert ours.decode(ours.encode(f"a {content} b")) == f"a {content} b"


def test_other_added_tokens_have_their_text() -> None:
    ours, library = opened("Qwen 2")
    think = library.token_to_id("<think>")
    assert think is not None
    assert think in ours.encode("a <think> b")
    assert ours.token_bytes(think) == b"<think>"
    assert ours.token_bytes(ours.vocab_size) == b""
    assert ours.token_bytes(1 << 40) == b""


@pytest.mark.parametrize("kind", SENTENCEPIECE_LIKE)
def test_byte_tokens(kind: str) -> None:
    ours, library = opened(kind)
    for byte in range(256):
        assert library.id_to_token(3 + byte) == f"<0x{byte:02X}>"
        assert ours.token_bytes(3 + byte) == bytes([byte])


def test_ids_are_those_of_the_sentencepiece_model_that_a_file_was_made_from() -> None:
    spec = open_checkpoint(model_path("demo")).tokenizer
    assert spec is not None
    model = SentencePieceTokenizer(spec.data, Path("demo"))
    ours = HuggingFaceTokenizer(from_sentencepiece(model), PATH)
    assert (ours.vocab_size, ours.bos_id) == (model.vocab_size, model.bos_id)
    for text in random_texts(1000, seed=3):
        assert ours.encode(text) == model.encode(text), repr(text)
        assert ours.decode(ours.encode(text)) == model.decode(model.encode(text))


def test_ids_of_llama_2(data: Path) -> None:
    model = SentencePieceTokenizer((data / "tokenizer" / "tokenizer.model").read_bytes(), PATH)
    ours = HuggingFaceTokenizer(from_sentencepiece(model), PATH)
    for text, ids in KNOWN_IDS.items():
        assert ours.encode(text) == ids


def test_the_file_is_told_by_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(llama2_like())
    spec = read_spec(path)
    assert spec.kind == "huggingface"
    assert open_spec(spec, path).encode("the cat") == HuggingFaceTokenizer(llama2_like(), path).encode("the cat")


def edited(data: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(data) | changes).encode()


def with_model(data: bytes, **changes: Any) -> bytes:
    return edited(data, model=json.loads(data)["model"] | changes)


def test_truncation_and_padding_are_not_for_us() -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    ours = HuggingFaceTokenizer(edited(llama3_like(), truncation=truncation, padding=padding), PATH)
    text = "Once upon a time there was a little cat"
    assert ours.encode(text) == HuggingFaceTokenizer(llama3_like(), PATH).encode(text)


def test_an_end_token_that_a_file_puts_after_every_text_is_known_but_not_put() -> None:
    post = json.loads(llama2_like())["post_processor"]
    post["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    post["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    ours = HuggingFaceTokenizer(edited(llama2_like(), post_processor=post), PATH)
    assert (ours.bos_id, ours.eos_id) == (1, 2)
    assert ours.encode("the cat") == HuggingFaceTokenizer(llama2_like(), PATH).encode("the cat")


def two_in_front() -> dict[str, Any]:
    post: dict[str, Any] = json.loads(llama2_like())["post_processor"]
    post["single"].insert(0, post["single"][0])
    return post


def unknown_in_front() -> dict[str, Any]:
    post: dict[str, Any] = json.loads(llama2_like())["post_processor"]
    post["special_tokens"]["<s>"]["ids"] = [9999]
    return post


STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}  # as LEGACY_DECODER has it
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("content", lambda: b"{}"),
    "no JSON": ("content", lambda: b"{ this is none"),
    "cut short": ("content", lambda: llama3_like()[:-20]),
    "nested deep": ("content", lambda: b'{"a":' * 100_000),
    "no UTF-8": ("content", lambda: llama3_like().replace("Ġ".encode(), b"\xff")),
    "another model": ("model", lambda: edited(llama3_like(), model={"type": "WordLevel", "vocab": {"a": 0},
                                                                    "unk_token": "a"})),
    "an empty vocabulary": ("vocab", lambda: edited(llama3_like(), added_tokens=[], post_processor=None,
                                                    model={"type": "BPE", "vocab": {}, "merges": []})),
    "a vast id": ("vocab", lambda: with_model(qwen2_like(), vocab=json.loads(qwen2_like())["model"]["vocab"]
                                              | {"far": 2**32 - 1})),
    "an id beyond 32 bits": ("content", lambda: with_model(qwen2_like(), vocab={"a": 2**32})),
    "a merge of nothing": ("content", lambda: with_model(qwen2_like(), merges=[["no", "where"]])),
    "an unknown token that is none": ("content", lambda: with_model(
        edited(llama2_like(), added_tokens=[]), vocab={"b": 0}, merges=[], unk_token="nowhere")),
    "random tokens": ("dropout", lambda: with_model(qwen2_like(), dropout=0.5)),
    "no decoder": ("decoder", lambda: edited(llama2_like(), decoder=None)),
    "another decoder": ("decoder", lambda: edited(llama2_like(), decoder={"type": "WordPiece", "prefix": "##",
                                                                          "cleanup": True})),
    "a decoder of both kinds": ("decoder", lambda: edited(
        llama2_like(), decoder={"type": "Sequence", "decoders": [json.loads(llama3_like())["decoder"], STRIP]})),
    "a decoder that strips the end": ("decoder", lambda: edited(
        llama2_like(), decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, STRIP | {"stop": 1}]})),
    "a decoder that strips each token": ("decoder", lambda: edited(llama2_like(), decoder=STRIP)),
    "a decoder that replaces words": ("decoder", lambda: edited(
        llama2_like(), decoder={"type": "Replace", "pattern": {"String": "the"}, "content": "a"})),
    "two tokens in front": ("post_processor", lambda: edited(llama2_like(), post_processor=two_in_front())),
    "no token in front": ("post_processor", lambda: edited(llama2_like(), post_processor=unknown_in_front())),
    "a regex that cannot be": ("content", lambda: edited(llama3_like(), pre_tokenizer={
        "type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False})),
}  # fmt: skip


@pytest.mark.parametrize(("field", "make"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(field: str, make: Callable[[], bytes]) -> None:
    with pytest.raises(ModelFormatError) as caught:
        HuggingFaceTokenizer(make(), PATH)
    assert field in caught.value.field
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("tokenizer.json: ")


def test_a_panic_of_the_library_is_an_error_like_others(capfd: pytest.CaptureFixture[str]) -> None:
    """A regular expression may run away; the library panics, which is no Exception in Python."""
    cut = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    ours = HuggingFaceTokenizer(edited(qwen2_like(), pre_tokenizer=cut), PATH)
    with pytest.raises(ModelFormatError, match="cannot encode this text"):
        ours.encode("a" * 40 + "!")
    assert capfd.readouterr().err == ""  # the library would print of it
