from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

import llamagpu
from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import model_path
from llamagpu.tokenizers import StreamDecoder, Tokenizer, find_beside, open_spec, read_spec
from llamagpu.tokenizers.llama2c import Llama2cTokenizer
from llamagpu.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.small_files import PIECES, tokenizer_bin

KNOWN_IDS = {  # of the Llama 2 vocabulary, from llama2.c's own tests
    "": [1],
    "I believe the meaning of life is": [1, 306, 4658, 278, 6593, 310, 2834, 338],
    "Simply put, the theory of relativity states that ": [
        1, 3439, 17632, 1925, 29892, 278, 6368, 310, 14215, 537, 5922, 393, 29871,
    ],
}  # fmt: skip


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of words, spaces, scripts, emoji, controls and any other code point but surrogates."""
    rng = random.Random(seed)
    words = [
        "the",
        "Once",
        "upon",
        " ",
        "  ",
        "\n",
        "\t",
        "<s>",
        "</s>",
        "<0x41>",
        "<unk>",
        "▁",
        "é",
        "ß",
        "猫",
        "🙂",
        "1984",
    ]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 25)):
            kind = rng.randrange(5)
            if kind == 0:
                parts.append(rng.choice(words))
            elif kind == 1:
                parts.append(
                    "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ETAOIN,.!") for _ in range(rng.randrange(12)))
                )
            elif kind == 2:
                parts.append(chr(rng.randrange(0x20, 0x3000)))
            elif kind == 3:
                parts.append(chr(rng.choice([rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x110000)])))
            else:
                parts.append(" " * rng.randrange(4))
        texts.append("".join(parts))
    return texts


def to_raw_byte_dialect(data: bytes) -> bytes:
    """The llama2.rs form of a llama2.c tokenizer.bin: ids 3 to 258 as the UTF-8 of U+0000 to U+00FF."""
    out, at, token = [data[:4]], 4, 0
    while at < len(data):
        score, length = struct.unpack_from("<fI", data, at)
        piece = data[at + 8 : at + 8 + length]
        at += 8 + length
        if 3 <= token < 259:
            piece = chr(token - 3).encode()
        out.append(struct.pack("<fI", score, len(piece)) + piece)
        token += 1
    return b"".join(out)


def to_tokenizer_bin(tokenizer: SentencePieceTokenizer) -> bytes:
    """llama2.c's tokenizer.bin of a SentencePiece model, as its tokenizer.py writes it."""
    processor = tokenizer.processor
    entries = []
    for token in range(tokenizer.vocab_size):
        piece = {1: "\n<s>\n", 2: "\n</s>\n"}.get(token, processor.id_to_piece(token)).replace("\u2581", " ").encode()
        entries.append(struct.pack("<fI", processor.get_score(token), len(piece)) + piece)
    longest = max(len(entry) - 8 for entry in entries)
    return struct.pack("<I", longest) + b"".join(entries)


@pytest.fixture(scope="module")
def demo() -> SentencePieceTokenizer:
    spec = open_checkpoint(model_path("demo")).tokenizer
    assert spec is not None
    return SentencePieceTokenizer(spec.data, Path("demo"))


def three_forms(model: SentencePieceTokenizer, binary: bytes) -> list[Tokenizer]:
    return [
        model,
        Llama2cTokenizer(binary, Path("tokenizer.bin")),
        Llama2cTokenizer(to_raw_byte_dialect(binary), Path("tokenizer.bin")),
    ]


def check_that_all_agree(tokenizers: list[Tokenizer], texts: list[str]) -> None:
    for text in texts:
        expected = tokenizers[0].encode(text)
        decoded = tokenizers[0].decode(expected)
        assert decoded == text.replace("▁", " ")
        for other in tokenizers[1:]:
            assert other.encode(text) == expected, repr(text)
            assert other.decode(expected) == decoded


def test_llama2_ids_are_the_known_ones(data: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.bin"):
        path = data / "tokenizer" / name
        tokenizer = open_spec(read_spec(path), path)
        assert tokenizer.vocab_size == 32000
        for text, ids in KNOWN_IDS.items():
            assert tokenizer.encode(text) == ids


def test_llama2_forms_agree_on_1000_random_texts(data: Path) -> None:
    folder = data / "tokenizer"
    model = SentencePieceTokenizer((folder / "tokenizer.model").read_bytes(), folder)
    check_that_all_agree(three_forms(model, (folder / "tokenizer.bin").read_bytes()), random_texts(1000))


def test_the_raw_byte_dialect_has_its_known_length(data: Path) -> None:
    binary = (data / "tokenizer" / "tokenizer.bin").read_bytes()
    assert (len(binary), len(to_raw_byte_dialect(binary))) == (433869, 432717)


def test_built_in_forms_agree_on_1000_random_texts(demo: SentencePieceTokenizer) -> None:
    check_that_all_agree(three_forms(demo, to_tokenizer_bin(demo)), random_texts(1000, seed=1))


@pytest.mark.parametrize("raw_byte_dialect", [False, True])
def test_merging_by_hand(raw_byte_dialect: bool) -> None:
    tokenizer = Llama2cTokenizer(tokenizer_bin(raw_byte_dialect=raw_byte_dialect), Path("t"))
    ids = {piece: 259 + i for i, piece in enumerate(PIECES)}
    assert tokenizer.encode("the", add_bos=False) == [ids[" the"]]
    assert tokenizer.encode("on the", add_bos=False) == [ids[" on"], ids[" the"]]
    # "ab" scores below "th" but no pair here competes; "x" is no piece, so it becomes its byte.
    assert tokenizer.encode("abx", add_bos=False) == [ids[" "], ids["ab"], 3 + ord("x")]
    assert tokenizer.encode("猫ü", add_bos=False) == [ids[" "], ids["猫"], 3 + 0xC3, 3 + 0xBC]
    # A control or byte token's own text is text.
    assert 1 not in tokenizer.encode("<s>", add_bos=False)
    assert 3 + 0x41 not in tokenizer.encode("<0x41>", add_bos=False)
    assert tokenizer.decode([1, ids[" the"], 2]) == "the"


def test_the_leftmost_of_equal_scores_is_merged_first() -> None:
    entries = tokenizer_bin(262)
    more = b"".join(struct.pack("<fI", -5.0, len(p)) + p for p in (b"xx", b"x"))
    tokenizer = Llama2cTokenizer(struct.pack("<I", 2) + entries[4:] + more, Path("t"))
    assert tokenizer.encode("xxx", add_bos=False)[-2:] == [262, 263]


def test_decoding_in_a_stream_equals_decoding_at_once(demo: SentencePieceTokenizer) -> None:
    rng = random.Random(3)
    for text in random_texts(200, seed=2):
        ids = demo.encode(text)
        decoder = StreamDecoder(demo)
        pieces = [decoder.feed(token) for token in ids]
        assert "".join(pieces) + decoder.finish() == demo.decode(ids) == text.replace("▁", " ")
        assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text
    for _ in range(200):  # any ids, also such as are no UTF-8
        ids = [rng.randrange(demo.vocab_size) for _ in range(30)]
        decoder = StreamDecoder(demo, at_start=False)
        whole = b"".join(map(demo.token_bytes, ids)).decode("utf-8", "replace")
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == whole


def test_a_character_comes_whole_or_not_at_all(demo: SentencePieceTokenizer) -> None:
    byte_tokens = [3 + byte for byte in "🙂".encode()]
    decoder = StreamDecoder(demo, at_start=False)
    assert [decoder.feed(token) for token in byte_tokens] == ["", "", "", "🙂"]
    assert decoder.finish() == ""
    decoder.feed(byte_tokens[0])
    assert decoder.finish() == "\ufffd"


def test_only_the_first_space_is_taken_off(demo: SentencePieceTokenizer) -> None:
    assert demo.decode(demo.encode("  two spaces")) == "  two spaces"
    assert StreamDecoder(demo, at_start=False).feed(demo.encode("the")[1]) == " the"


def test_text_that_is_no_unicode_is_refused(demo: SentencePieceTokenizer) -> None:
    with pytest.raises(UsageError, match="character 3"):
        demo.encode("abc\udc80")


def test_a_tokenizer_is_found_beside_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    assert find_beside(model, 300) is None
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin(280))
    assert find_beside(model, 300) is None  # another model's
    (tmp_path / "tok300.bin").write_bytes(tokenizer_bin(300))
    found = find_beside(model, 300)
    assert found is not None
    assert (found[0], found[2]) == (TokenizerSpec("llama2c", tokenizer_bin(300)), tmp_path / "tok300.bin")
    (tmp_path / "tokenizer.model").write_text("aGVsbG8= 0\n" * 100)  # another model's, of another kind
    again = find_beside(model, 300)
    assert again is not None
    assert again[2] == found[2]
    (tmp_path / "tok300.bin").unlink()
    with pytest.raises(ModelFormatError, match=r"tokenizer\.model"):
        find_beside(model, 300)


def test_ids_beyond_the_tokenizer_stand_for_nothing(demo: SentencePieceTokenizer) -> None:
    """Models pad their vocabulary."""
    small = Llama2cTokenizer(tokenizer_bin(265), Path("t"))
    assert small.decode([265, 259 + 1, 99999]) == "a"
    assert demo.decode([demo.vocab_size, 99999]) == ""


def test_without_a_start_token_a_one_token_prompt_keeps_the_space_after_it(small_model: Path) -> None:
    llm = llamagpu.load(small_model)
    llm.tokenizer.bos_id = None
    generation = llm.generate("the", max_tokens=10, temperature=0)
    text = "".join(generation)
    assert len(generation.prompt_tokens) == 1
    assert "the" + text == llm.tokenizer.decode([*generation.prompt_tokens, *generation.tokens])


def test_a_long_text_is_encoded_in_reasonable_steps(demo: SentencePieceTokenizer) -> None:
    text = "Once upon a time there was a word. " * 3000
    tokenizer = Llama2cTokenizer(to_tokenizer_bin(demo), Path("t"))
    assert tokenizer.decode(tokenizer.encode(text)) == text  # quadratic merging would take hours
