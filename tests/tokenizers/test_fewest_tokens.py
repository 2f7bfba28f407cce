"""A lower bound on the tokens of a text, told without encoding it: it must be one, and good enough to refuse by."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamagpu.llm import DEMO, load
from llamagpu.tokenizers import Tokenizer
from llamagpu.tokenizers.bytes import BytesTokenizer
from llamagpu.tokenizers.gpt2 import Gpt2Tokenizer
from llamagpu.tokenizers.greedy import GreedyTokenizer
from llamagpu.tokenizers.huggingface import HuggingFaceTokenizer
from llamagpu.tokenizers.llama2c import Llama2cTokenizer
from llamagpu.tokenizers.rwkv_world import RWKVWorldTokenizer
from llamagpu.tokenizers.sentencepiece import SentencePieceTokenizer
from llamagpu.tokenizers.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, model_proto
from llamagpu.tokenizers.tiktoken import TiktokenTokenizer
from llamagpu.tokenizers.whole_text import NFC_SHRINKS
from tests.small_files import tokenizer_bin
from tests.tokenizers import tokenizer_json, vocabularies
from tests.tokenizers.test_tiktoken import TOKENS, ranks_file

PATH = Path("test")
# What is taken apart, put together, dropped or squeezed by one tokenizer or another.
PARTS = [
    "a", " the", "  ", " " * 40, "\t", "\n\n\n", "\r\n", "é", "e\u0301", "\u212b", "\u1fef" * 9, "ﬁ", "\u3000",
    "\u1100\u1161\u11a8" * 5, "\u2581" * 9, "猫", "🙂", "\0", "\x1b", "\U0010fffd" * 5, "<s>", "<|endoftext|>", "1984",
    "\u00ad", "\u200b", "\ufeff", "A\u030a", "\u03a9\u0313\u0300\u0345", "\u2126\u0313\u0300\u0345", "\u212a" * 7,
    "\u1fbe\u0308\u0301", "\u2581",
]  # fmt: skip


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> Tokenizer:
    values = json.loads(data)
    change(values)
    return HuggingFaceTokenizer(json.dumps(values).encode(), PATH)


def sentencepiece(has_bytes: bool = True, charsmap: bytes = b"", remove_spaces: bool = False) -> bytes:
    pieces = [
        b"<unk>",
        b"<s>",
        b"</s>",
        "\u2581".encode(),
        b"a",
        "\u2581the".encode(),
        "\u2581\u2581\u2581\u2581".encode(),
    ]
    types = [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL, NORMAL, NORMAL]
    if has_bytes:
        pieces += [b"<0x%02X>" % byte for byte in range(256)]
        types += [BYTE] * 256
    proto = model_proto(pieces, [-float(i) for i in range(len(pieces))], types, 1, 2, add_dummy_prefix=True)
    return proto.replace(b"\x18\x01\x20\x00", b"\x18\x01\x20\x01") if remove_spaces else proto


KNOWN: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: BytesTokenizer(b"", PATH),
    "llama2c": lambda: Llama2cTokenizer(tokenizer_bin(), PATH),
    "rwkv_world": lambda: RWKVWorldTokenizer(vocabularies.world_file(vocabularies.world_tokens()), PATH),
    "tiktoken": lambda: TiktokenTokenizer(ranks_file(TOKENS), PATH),
    "gpt2": lambda: Gpt2Tokenizer(ranks_file(vocabularies.gpt2_tokens()), PATH),
    "sentencepiece": lambda: SentencePieceTokenizer(sentencepiece(), PATH),
    "the built-in model's": lambda: load(DEMO, device="cpu").tokenizer,
}


def random_texts(n: int) -> list[str]:
    rng = random.Random(5)
    return ["".join(rng.choices(PARTS, k=rng.randint(1, 60))) for _ in range(n)] + [part * 50 for part in PARTS]


@pytest.mark.parametrize("kind", [*KNOWN, *tokenizer_json.KINDS])
def test_no_text_has_fewer(kind: str) -> None:
    tokenizer = KNOWN[kind]() if kind in KNOWN else HuggingFaceTokenizer(tokenizer_json.KINDS[kind](), PATH)
    for text in random_texts(150):
        fewest = tokenizer.fewest_tokens(text)
        assert 0 < fewest <= len(tokenizer.encode(text, add_bos=False)) or not text.replace("\u2581", "")
        guard = "\ufdd0"
        rendered = tokenizer.encode_rendered(text.replace("endof", f"end{guard}of"), guard, at_start=True)
        assert fewest <= len(rendered)
    assert tokenizer.fewest_tokens("猫 sat on the mat. " * 1000) >= 1000 * 20 / (NFC_SHRINKS * 128)


def squeezing() -> dict[str, Tokenizer]:
    """Tokenizers that may leave out some of a text."""
    byte_level, sp_like = tokenizer_json.qwen2_like(), tokenizer_json.llama2_like()

    def normalizer(**step: Any) -> Callable[[dict[str, Any]], object]:
        return lambda values: values.update(normalizer=step)

    def adds(**flags: bool) -> Callable[[dict[str, Any]], object]:
        def change(values: dict[str, Any]) -> None:
            n = max(values["model"]["vocab"].values()) + 200
            values["added_tokens"].append(tokenizer_json.added_token(n, "<x>", special=False) | flags)

        return change

    return {
        "strip": changed(byte_level, normalizer(type="Strip", strip_left=True, strip_right=True)),
        "NFKC": changed(byte_level, normalizer(type="NFKC")),
        "lowercase": changed(byte_level, normalizer(type="Lowercase")),
        "accents": changed(byte_level, normalizer(type="StripAccents")),
        "replace": changed(byte_level, normalizer(type="Replace", pattern={"Regex": " {2,}"}, content=" ")),
        "a token that takes spaces": changed(byte_level, adds(rstrip=True)),
        "no bytes": changed(sp_like, lambda values: values["model"].update(byte_fallback=False)),
        "words": changed(byte_level, lambda values: values.update(pre_tokenizer={"type": "Whitespace"})),
        "greedy": GreedyTokenizer(sentencepiece(), PATH),
        "sentencepiece without bytes": SentencePieceTokenizer(sentencepiece(has_bytes=False), PATH),
        "sentencepiece without spaces": SentencePieceTokenizer(sentencepiece(remove_spaces=True), PATH),
    }  # fmt: skip


def test_nothing_is_told_where_a_text_may_shrink() -> None:
    for name, tokenizer in squeezing().items():
        assert tokenizer.fewest_tokens("a b" * 1000) == 0, name
    assert changed(tokenizer_json.qwen2_like(), lambda values: None).fewest_tokens("a b" * 1000) > 0


def test_how_much_composing_may_shrink_a_text() -> None:
    """Each letter against the longest text that becomes it, as Python's own tables have it."""
    longest: dict[str, int] = {}
    letters = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.decomposition(c)] + ["\uac00", "\uac01"]
    for letter in letters:  # single letters that stand for others
        composed = unicodedata.normalize("NFC", letter)
        if len(composed) == 1:
            longest[composed] = max(longest.get(composed, 0), len(letter.encode()))
    most = 0.0
    for letter in letters:
        if unicodedata.normalize("NFC", letter) == letter:
            for form in (letter, *partly_taken_apart(letter)):
                most = max(most, sum(longest.get(c, len(c.encode())) for c in form) / len(letter.encode()))
    assert 3 < most <= NFC_SHRINKS


def partly_taken_apart(letter: str) -> list[str]:
    forms: list[str] = []
    parts = unicodedata.decomposition(letter)
    while parts and not parts.startswith("<"):
        first, *rest = (chr(int(part, 16)) for part in parts.split())
        forms.append(first + "".join(rest) + (forms[-1][1:] if forms else ""))
        parts = unicodedata.decomposition(first)
    return [*forms, unicodedata.normalize("NFD", letter)]
