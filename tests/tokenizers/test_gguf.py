"""Vocabularies inside GGUF files: SentencePiece's against the library itself, byte-level BPE through tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer as HuggingFaceTokenizer

from llamagpu.errors import ModelFormatError
from llamagpu.formats.gguf_header import Header
from llamagpu.formats.gguf_splits import SPLITS
from llamagpu.tokenizers.gguf import huggingface_json, open_gguf_tokenizer
from llamagpu.tokenizers.rwkv_world import RWKVWorldTokenizer
from tests.formats.gguf_files import File, Keys, small_vocabulary, spm_keys
from tests.tokenizers.test_tokenizers import random_texts
from tests.tokenizers.vocabularies import world_file, world_tokens

PATH = Path("vocabulary.gguf")


def opened(keys: Keys) -> Any:
    return open_gguf_tokenizer(File(keys, {}).to_bytes(), PATH)


def llama2_keys(data: Path) -> tuple[Keys, sentencepiece.SentencePieceProcessor]:
    """The vocabulary of Llama 2 as llama.cpp's converter takes it out of its tokenizer.model."""
    library = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizer" / "tokenizer.model"))
    n = library.vocab_size()

    def kind(token: int) -> int:
        asks = [library.is_unknown, library.is_control, lambda token: False, library.is_unused, library.is_byte]
        return next((i for i, ask in enumerate(asks, 2) if ask(token)), 1)

    pieces = [library.id_to_piece(token).encode() for token in range(n)]
    return spm_keys(pieces, [library.get_score(i) for i in range(n)], [kind(i) for i in range(n)]), library


def test_llama2_ids_equal_sentencepieces(data: Path) -> None:
    keys, library = llama2_keys(data)
    tokenizer = opened(keys)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (32000, 1, 2)
    for text in random_texts(1000):
        ids = tokenizer.encode(text)
        assert ids == [1, *library.encode(text)]
        assert tokenizer.decode(ids) == text.replace("\u2581", " ")
    assert tokenizer.encode("I believe the meaning of life is") == [1, 306, 4658, 278, 6593, 310, 2834, 338]


def test_what_the_keys_of_a_sentencepiece_vocabulary_say() -> None:
    keys = small_vocabulary()
    plain = opened(keys)
    assert plain.encode("the th") == [1, 266, 267]
    assert plain.encode("<s>猫é") == [1, 259, 63, 118, 65, 268, 198, 172]
    assert plain.decode([1, 266, 267, 2]) == "the th"
    assert opened(keys | {"tokenizer.ggml.add_space_prefix": ("bool", False)}).encode("the th") == [1, 265, 264, 267]
    assert opened(keys | {"tokenizer.ggml.add_bos_token": ("bool", False)}).bos_id is None
    assert opened(keys | {"tokenizer.ggml.bos_token_id": ("u32", 2**32 - 1)}).bos_id is None
    other = opened(keys | {"tokenizer.ggml.bos_token_id": ("u32", 280), "tokenizer.ggml.eos_token_id": ("u32", 1)})
    assert (other.bos_id, other.eos_id) == (280, 1)
    assert other.token_bytes(280) == b"", "a token that begins a text is a control token, whatever its type says"


def test_vocabularies_as_llama_cpp_mends_them() -> None:
    """No unknown token, empty tokens, user-defined ones."""
    keys = small_vocabulary()
    pieces, types = list(keys["tokenizer.ggml.tokens"][2]), list(keys["tokenizer.ggml.token_type"][2])
    types[0], pieces[290], pieces[291] = 3, b"", b""
    pieces[295], types[295] = b"<|tool|>", 4
    tokenizer = opened(spm_keys(pieces, keys["tokenizer.ggml.scores"][2], types))
    assert tokenizer.encode("the<|tool|>th") == [1, 266, 295, 265]


def alphabet() -> list[str]:
    """How GPT-2 writes the 256 bytes: printable ones as themselves, the others as characters from U+0100."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]


def written(text: str) -> str:
    return "".join(alphabet()[byte] for byte in text.encode())


def byte_level_keys(pre: str, merges: tuple[str, ...] = (), **more: tuple[Any, ...]) -> Keys:
    """Bytes, then what the merges make, a whole word without merges, and control and user-defined tokens."""
    merges = merges or ("t h", "Ġ th", "th e", "Ġth e")
    made = [merge.replace(" ", "") for merge in merges]
    tokens = [*alphabet(), *made, "Ġhello", "<|begin|>", "<|end|>", "<tool>"]
    types = [1] * (len(tokens) - 3) + [3, 3, 4]
    return {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", pre),
        "tokenizer.ggml.tokens": ("arr", "str", tokens),
        "tokenizer.ggml.merges": ("arr", "str", list(merges)),
        "tokenizer.ggml.token_type": ("arr", "i32", types),
        "tokenizer.ggml.bos_token_id": ("u32", len(tokens) - 3),
        "tokenizer.ggml.eos_token_id": ("u32", len(tokens) - 2),
        **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
    }


def library_tokenizer(keys: Keys) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_buffer(huggingface_json(Header(File(keys, {}).to_bytes(), PATH)))


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_ids(pre: str) -> None:
    tokenizer = library_tokenizer(byte_level_keys(pre))
    assert tokenizer.get_vocab_size() == 264
    begins = ["<|begin|>"] if SPLITS[pre].bos else []
    encoded = tokenizer.encode("the the")
    assert encoded.tokens == [*begins, "the", "Ġthe"]
    assert encoded.ids[len(begins) :] == [258, 259]
    text = "the 猫 <tool>é\r\n\n  x"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|end|><tool>", add_special_tokens=False).ids == [262, 263]
    assert tokenizer.encode(" hello", add_special_tokens=False).ids == (
        [260] if SPLITS[pre].ignore_merges else [alphabet().index(c) for c in "Ġhello"]
    ), "a word that no merges make: it is its token where merges are ignored"


def test_ids_that_are_no_tokens_are_none() -> None:
    """llama.cpp warns of them and goes on; type 0 is its word for none."""
    keys = byte_level_keys("llama-bpe", bos_token_id=("u32", 264), eos_token_id=("u32", 4000))
    assert (opened(keys).bos_id, opened(keys).encode("the")) == (None, [258])
    types = keys["tokenizer.ggml.token_type"][2]
    keys["tokenizer.ggml.token_type"] = ("arr", "i32", [0 if kind == 1 else kind for kind in types])
    assert opened(keys).encode("the the") == [258, 259]


def test_a_byte_level_vocabulary_as_it_is_used() -> None:
    """Opened as any tokenizer: ids equal the library's, control tokens in a text are text, texts stream."""
    keys = byte_level_keys("llama-bpe")
    ours, library = opened(keys), library_tokenizer(keys)
    assert (ours.vocab_size, ours.bos_id) == (264, 261)
    for text in random_texts(300):
        ids = ours.encode(text)
        if text:
            assert ids == library.encode(text).ids
        assert ours.decode(ids) == text
    assert ours.encode("the<|end|>")[:2] == [261, 258]
    assert 262 not in ours.encode("the<|end|>")
    assert ours.token_bytes(262) == b""
    assert ours.decode(ours.encode("<|end|>")) == "<|end|>"


def test_whether_a_byte_level_text_begins_with_bos() -> None:
    for pre, says, expected in [
        ("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False), ("qwen2", True, True)
    ]:  # fmt: skip
        more: Keys = {} if says is None else {"add_bos_token": ("bool", says)}
        assert library_tokenizer(byte_level_keys(pre, **more)).encode("a").tokens == ["<|begin|>"] * expected + ["a"]
    keys = byte_level_keys("llama-bpe")
    del keys["tokenizer.ggml.bos_token_id"]
    assert library_tokenizer(keys).encode("a").tokens == ["a"]


# What the published expressions say of texts that tell them apart.
PIECES = [
    ("llama-bpe", "I'VE 12345 don't  s!\n x", ["I", "'VE", " ", "123", "45", " don", "'t", " ", " s", "!\n", " x"]),
    ("qwen2", "I'VE 123 don't", ["I", "'VE", " ", "1", "2", "3", " don", "'t"]),
    ("gpt-2", "I'VE 12345 don't  x\n\ny", ["I", "'", "VE", " 12345", " don", "'t", " ", " x", "\n", "\n", "y"]),
    ("smollm", "a 123b", ["a", " ", "1", "2", "3", "b"]),
    ("tekken", "HelloWorld camelCase 12", ["Hello", "World", " camel", "Case", " ", "1", "2"]),
    ("default", "a+=b 12345", ["a", "+=", "b", " ", "123", "45"]),
    ("falcon", "a`b 12345 $x", ["a", "`", "b", " ", "123", "45", " ", "$", "x"]),
    ("gpt-neox", "I'VE 12345 e\u0301", ["I", "'", "VE", " 12345", " é"]),
    ("mpt", "a 123", ["a", " 123"]),
    ("command-r", "a 12b e\u0301", ["a", " ", "1", "2", "b", " é"]),
    ("deepseek-llm", "abc 12\nλ 漢字、 don't", ["abc", " ", "1", "2", "\n", "λ", " ", "漢字", "、", " don", "'", "t"]),
    ("deepseek-coder", "x_1 = 漢字\n", ["x", "_", "1", " =", " ", "漢字", "\n"]),
    ("deepseek-v3", "x_y 12345 漢字かな!\n  z", ["x", "_y", " ", "123", "45", " ", "漢字かな", "!\n", " ", " z"]),
    ("falcon3", "I'VE 1234", ["I", "'VE", " ", "123", "4"]),
    ("gpt-4o", "HTTPServer'S 1234 a/\n/b", ["HTTPServer'S", " ", "123", "4", " a", "/\n/", "b"]),
    ("llama4", "don't", ["don't"]),
    ("chatglm-bpe", "I'VE 1234", ["I", "'VE", " ", "123", "4"]),
    ("qwen35", "हिन्दी 12", ["हिन्दी", " ", "1", "2"]),
    ("kimi-k2", "漢字abcDef 12345", ["漢字", "abc", "Def", " ", "123", "45"]),
    ("bloom", "Hello, world. x", ["Hello", ",", " world", ".", " x"]),
    ("superbpe", "a b12345", ["a b", "12", "345"]),
    ("tiny_aya", "1234567 Ab", ["1", "234", "567", " Ab"]),
    ("seed-coder", "a!\nb 12", ["a", "!", "\n", "b", " ", "1", "2"]),
    ("bailingmoe", "don't 12", ["don", "'t", " ", "1", "2"]),
    ("exaone-moe", "a b c1", ["a b c", "1"]),
    ("minicpm5", "a1234", ["a", "123", "4"]),
    ("viking", "ab12, c", ["ab", "1", "2", ",", " c"]),
    ("chameleon", "a  b.1", ["a", "  ", "b", ".", "1"]),
    ("no such name", "a+=b 12345", ["a", "+=", "b", " ", "123", "45"]),
]  # fmt: skip


@pytest.mark.parametrize(("pre", "text", "pieces"), PIECES, ids=[case[0] for case in PIECES])
def test_how_text_is_split(pre: str, text: str, pieces: list[str]) -> None:
    library = library_tokenizer(byte_level_keys(pre))
    split = library.pre_tokenizer.pre_tokenize_str(
        library.normalizer.normalize_str(text) if library.normalizer else text
    )
    assert [piece for piece, _ in split] == [written(piece) for piece in pieces]


@pytest.mark.parametrize(("pre", "name"), [("llama-bpe", "llama-bpe"), ("qwen2", "qwen2")])
def test_llama_cpps_cases_are_split_no_finer_than_they_are_encoded(pre: str, name: str, data: Path) -> None:
    """The vocabularies of these cases are not at hand; but a token never reaches over the end of a piece, so there are
    at least as many tokens as pieces, and a piece of one byte is one token."""
    texts = (data / "tokenizer" / f"ggml-vocab-{name}.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    outputs = (data / "tokenizer" / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    split = library_tokenizer(byte_level_keys(pre)).pre_tokenizer
    n_exact = 0
    for text, output in zip(texts, outputs, strict=False):
        pieces = [piece for piece, _ in split.pre_tokenize_str(text)]
        assert "".join(pieces) == written(text)
        assert len(pieces) <= len(output.split())
        n_exact += len(pieces) == len(output.split())
    assert n_exact >= 20, "texts of common words: each piece is a token"


def world_keys(tokens: list[bytes], n_rows: int) -> Keys:
    """As llama.cpp's converter writes RWKV World: token 0 for control, bytes as Python does, and unused rows."""
    texts = ["<s>", *(repr(token)[2:-1] for token in tokens)]
    unused = [f"[PAD{i}]" for i in range(n_rows - len(texts))]
    return {
        "tokenizer.ggml.model": ("str", "rwkv"),
        "tokenizer.ggml.tokens": ("arr", "str", [*texts, *unused]),
        "tokenizer.ggml.token_type": ("arr", "i32", [3] + [1] * len(tokens) + [5] * len(unused)),
        "tokenizer.ggml.eos_token_id": ("u32", 0),
    }


def test_rwkv_world_is_that_of_its_own_file() -> None:
    tokens = world_tokens()
    ours, own = opened(world_keys(tokens, len(tokens) + 7)), RWKVWorldTokenizer(world_file(tokens), PATH)
    assert (ours.texts, ours.ends, ours.eos_id) == (own.texts, own.ends, 0)
    for text in ["[PAD402] <s>", *random_texts(100)]:
        assert ours.encode(text) == own.encode(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"tokens": ("arr", "str", ["<s>", "a\\q", *"b" * 255])},
            r"no text as Python writes bytes at token 1: b'a\\\\q'",
        ),
        ({"tokens": ("arr", "str", ["<s>", "é", *"b" * 255])}, "no text as Python writes bytes at token 1"),
        ({"tokens": ("arr", "str", ["<s>", *"b" * 256])}, "no token for the byte 0x00"),
        ({"tokens": ("arr", "str", ["<s>", "", *"b" * 255])}, "a token of 0 bytes"),
        ({"token_type": ("arr", "i32", [1] * 257)}, "are not those of RWKV World"),
        ({"token_type": ("arr", "i32", [3, 5, *[1] * 255])}, "are not those of RWKV World"),
        ({"token_type": ("arr", "i32", [5] * 257)}, "are not those of RWKV World"),
    ],
)
def test_rwkv_vocabularies_that_make_no_sense(change: dict[str, tuple[Any, ...]], problem: str) -> None:
    keys = world_keys([bytes([byte]) for byte in range(256)], 257)
    assert opened(keys).encode("a") == [98]
    with pytest.raises(ModelFormatError, match=problem):
        opened(keys | {f"tokenizer.ggml.{name}": value for name, value in change.items()})


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"pre": ("str", "gemma4")}, "tokenizer", "pre-tokenizer gemma4, whose tokens are not byte-level"),
        ({"model": ("str", "unigram")}, "tokenizer.ggml.model", "is 'unigram'; llama, gpt2 and rwkv are read"),
        ({"model": ("str", "t5")}, "tokenizer.ggml.model", "is 't5'"),
        ({"model": ("str", "bert")}, "tokenizer.ggml.model", "is 'bert'"),
        ({"model": ("u32", 7)}, "tokenizer.ggml.model", "is not a text"),
        ({"tokens": None}, "tokenizer.ggml.tokens", "has 0 tokens"),
        ({"tokens": ("arr", "i32", [1] * 264)}, "tokenizer.ggml.tokens", "not an array of texts"),
        ({"tokens": ("arr", "str", ["a"] * 264)}, "tokenizer", "the same token twice"),
        ({"tokens": ("arr", "str", [b"\xff"] * 264)}, "tokenizer.ggml.tokens", "no UTF-8"),
        ({"token_type": ("arr", "i32", [1])}, "tokenizer.ggml.token_type", "has 1 elements, tokens has 264"),
        ({"token_type": ("arr", "i32", [9] * 264)}, "tokenizer.ggml.token_type", "not 0 to 6"),
        ({"token_type": ("arr", "f32", [1] * 264)}, "tokenizer.ggml.token_type", "not an array of whole numbers"),
        ({"merges": None}, "tokenizer", "holds no merges"),
        ({"merges": ("arr", "str", ["ab"])}, "tokenizer", "not of two tokens"),
        ({"merges": ("arr", "str", [" a"])}, "tokenizer", "not of two tokens"),
        ({"add_bos_token": ("str", "yes")}, "tokenizer.ggml.add_bos_token", "is not true or false"),
    ],
)
def test_byte_level_vocabularies_that_make_no_sense(
    change: dict[str, tuple[Any, ...] | None], field: str, problem: str
) -> None:
    changed = byte_level_keys("llama-bpe") | {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(ModelFormatError, match=problem) as caught:
        opened({key: value for key, value in changed.items() if value is not None})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"scores": ("arr", "f32", [1.0] * 299)}, "are not 300 finite numbers"),
        ({"scores": ("arr", "f32", [float("nan")] * 300)}, "are not 300 finite numbers"),
        ({"scores": ("arr", "str", ["1"] * 300)}, "not an array of numbers"),
        ({"token_type": ("arr", "i32", [1] * 299)}, "has 299 elements"),
        ({"tokens": ("arr", "str", ["a"] * 300)}, "no valid SentencePiece model"),
        ({"tokens": ("arr", "str", [b"\xff%d" % i for i in range(300)])}, "no valid SentencePiece model"),
        ({"token_type": ("arr", "i32", [2, 3, 3, *[6] * 255, *[1] * 42])}, "no valid SentencePiece model"),
    ],
)
def test_sentencepiece_vocabularies_that_make_no_sense(change: dict[str, tuple[Any, ...] | None], problem: str) -> None:
    changed = small_vocabulary() | {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(ModelFormatError, match=problem):
        opened({key: value for key, value in changed.items() if value is not None})


def test_a_large_vocabulary_is_valid_json() -> None:
    """Merges may hold spaces within no token, and tokens any character."""
    keys = byte_level_keys("qwen2", merges=('" \\', "Ā ā"))
    content = json.loads(huggingface_json(Header(File(keys, {}).to_bytes(), PATH)))
    assert content["model"]["merges"] == [['"', "\\"], ["Ā", "ā"]]
    assert content["normalizer"] == {"type": "NFC"}
