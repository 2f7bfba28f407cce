"""RWKV World's vocabulary: against trying every length at every place, and against Python's own reading of literals."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from typing import Any

import pytest

import llamagpu
from llamagpu.checkpoint import TokenizerSpec
from llamagpu.convert_command import convert
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.tokenizers import StreamDecoder, find_beside, open_spec, read_spec
from llamagpu.tokenizers.rwkv_world import MAX_TOKENS, RWKVWorldTokenizer, unescape
from tests.small_files import Shape, random_weights, v0_bytes
from tests.tokenizers.test_tokenizers import random_texts
from tests.tokenizers.vocabularies import gpt2_pair, gpt2_tokens, literal, world_file, world_tokens

PATH = Path("rwkv_vocab_v20230424.txt")
TOKENS = world_tokens()


@pytest.fixture(scope="module")
def tokenizer() -> RWKVWorldTokenizer:
    return RWKVWorldTokenizer(world_file(TOKENS), PATH)


def longest_first(text: str) -> list[int]:
    """As it is defined: at each place every length is tried, from the rest of the text down."""
    data, ids = text.encode(), {token: i for i, token in enumerate(TOKENS, 1)}
    out = []
    while data:
        token = next(data[:n] for n in range(min(len(data), 20), 0, -1) if data[:n] in ids)
        out.append(ids[token])
        data = data[len(token) :]
    return out


def test_ids_are_those_of_the_longest_tokens(tokenizer: RWKVWorldTokenizer) -> None:
    longest = 0
    for text in ["", "the", " there", "the\n\n\n", "''\"'\\", " " * 30, "🙂🙂", *random_texts(1000)]:
        ids = tokenizer.encode(text, add_bos=False)
        assert ids == longest_first(text), repr(text)
        assert tokenizer.decode(ids) == text
        assert 0 not in ids
        longest = max([longest, *(len(tokenizer.token_bytes(token)) for token in ids)])
    assert longest >= 9
    assert max(map(len, TOKENS)) <= 20


def test_tokens_are_what_python_reads(tokenizer: RWKVWorldTokenizer) -> None:
    lines = world_file(TOKENS).decode().rstrip("\n").split("\n")
    assert sum(" b'" in line or ' b"' in line for line in lines) > 128
    for line in lines:
        token, (text, _) = int(line.split(" ")[0]), line.split(" ", 1)[1].rsplit(" ", 1)
        value = ast.literal_eval(text)
        assert tokenizer.token_bytes(token) == (value.encode() if isinstance(value, str) else value)
    as_bytes = "".join(f"{i} {token!r} {len(token)}\r\n" for i, token in enumerate(TOKENS, 1))
    other = RWKVWorldTokenizer(as_bytes.encode(), PATH)  # the form of 2025
    assert (other.texts, other.ends) == (tokenizer.texts, tokenizer.ends)
    without_last_newline = RWKVWorldTokenizer(world_file(TOKENS)[:-1], PATH)
    assert without_last_newline.texts == tokenizer.texts


def test_every_character_is_read_as_python_writes_it() -> None:
    rng = random.Random(0)
    characters = [*range(0x3100), *(rng.randrange(0x3100, 0x110000) for _ in range(20_000))]
    for number in characters:
        if not 0xD800 <= number < 0xE000:
            written = literal(chr(number).encode())
            assert unescape(written[1:-1].encode(), is_bytes=False) == chr(number).encode(), written
    for _ in range(2000):
        data = rng.randbytes(rng.randrange(1, 12))
        written = repr(data)
        assert unescape(written[2:-1].encode(), is_bytes=True) == data, written


def test_what_is_no_token_stands_for_nothing(tokenizer: RWKVWorldTokenizer) -> None:
    n = len(TOKENS)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (n + 1, None, 0)
    assert tokenizer.decode([0, *tokenizer.encode("the 猫"), n + 1, 65535, 10**9]) == "the 猫"
    assert tokenizer.token_bytes(n) == TOKENS[-1]


def test_an_empty_prompt_is_the_end_of_the_text_before(tokenizer: RWKVWorldTokenizer) -> None:
    assert tokenizer.encode("") == [0]
    assert tokenizer.encode("", add_bos=False) == tokenizer.encode_more("") == []
    assert tokenizer.encode("a") == tokenizer.encode("a", add_bos=False)


def test_decoding_in_a_stream_equals_decoding_at_once(tokenizer: RWKVWorldTokenizer) -> None:
    rng = random.Random(3)
    for text in random_texts(200, seed=4):
        ids = tokenizer.encode(text)
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.feed(token) for token in ids]
        assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)
    for _ in range(300):  # any ids: tokens that are parts of characters, in any order
        ids = [rng.randrange(tokenizer.vocab_size + 3) for _ in range(30)]
        decoder = StreamDecoder(tokenizer)
        whole = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == whole
    halves = [TOKENS.index("🙂".encode()[:3]) + 1, TOKENS.index("🙂".encode()[3:]) + 1]
    assert tokenizer.encode("🙂") == halves
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(token) for token in halves] == ["", "🙂"]


def test_of_equal_tokens_the_first_is_used() -> None:
    other = RWKVWorldTokenizer(world_file([*TOKENS, b" the"]), PATH)
    assert other.encode(" the") == [TOKENS.index(b" the") + 1]
    assert other.token_bytes(len(TOKENS) + 1) == b" the"


@pytest.mark.parametrize("name", ["rwkv_vocab_v20230424.txt", "rwkv_vocab_v20250216.txt"])
def test_it_is_told_by_its_first_line_and_found_beside_a_model(name: str, tmp_path: Path) -> None:
    """Models have a few more rows than there are tokens: 65,536 for 65,530."""
    path = tmp_path / name
    path.write_bytes(world_file(TOKENS))
    spec = read_spec(path)
    assert spec == TokenizerSpec("rwkv_world", path.read_bytes())
    n = open_spec(spec, path).vocab_size
    for n_rows, fits in [(n, True), (n + 6, True), (n - 1, False), (n + 5000, False)]:
        found = find_beside(tmp_path / "model.pth", n_rows)
        assert (found is not None) == fits
        assert found is None or found[2] == path
    (tmp_path / "model").mkdir()
    assert find_beside(tmp_path / "model", n) is not None


@pytest.mark.parametrize("kind", ["rwkv_world", "gpt2"])
def test_a_model_is_converted_with_it_and_speaks(kind: str, tmp_path: Path) -> None:
    """Found beside a model with a few more rows; inside a model.bin it needs no file."""
    files = {"rwkv_vocab_v20230424.txt": world_file(TOKENS)} if kind == "rwkv_world" else gpt2_pair(gpt2_tokens())
    (tmp_path / "source").mkdir()
    for name, data in files.items():
        (tmp_path / "source" / name).write_bytes(data)
    n = open_spec(read_spec(tmp_path / "source" / next(iter(files))), tmp_path).vocab_size
    source, out = tmp_path / "source" / "model.bin", tmp_path / "model.bin"
    source.write_bytes(v0_bytes(Shape(vocab_size=n + 6), random_weights(Shape(vocab_size=n + 6))))
    convert(str(source), str(out))
    checkpoint = open_checkpoint(out)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.kind == kind
    texts, ids = [], []
    for path in (source, out):
        llm = llamagpu.load(path, "cpu")
        generation = llm.generate("the 猫", max_tokens=12, temperature=0)
        texts.append("".join(generation))
        ids.append([*generation.prompt_tokens, *generation.tokens])
        assert llm.tokenizer.decode(ids[-1]) == "the 猫" + texts[-1]
    assert (texts[0], ids[0]) == (texts[1], ids[1])
    if kind == "rwkv_world":
        assert llm.generate("", max_tokens=2).prompt_tokens == [0]
    else:
        with pytest.raises(UsageError, match="the prompt is empty and this model has no start token"):
            llm.generate("", max_tokens=2)


LINES = world_file(TOKENS).split(b"\n")


def changed(number: int, line: bytes) -> bytes:
    return b"\n".join([*LINES[: number - 1], line, *LINES[number:]])


BAD: dict[str, tuple[Any, str]] = {
    "no literal": (changed(300, b"300 abc 3"), "line 300: is no ID"),
    "an expression": (changed(300, b"300 'a'*9 9"), "line 300: is no ID"),
    "a call": (changed(300, b"300 __import__('os') 2"), "line 300: is no ID"),
    "quotes that differ": (changed(300, b"300 'ab\" 2"), "line 300: is no ID"),
    "a quote within": (changed(300, b"300 'a'b' 3"), "line 300: is no ID"),
    "a quote that is escaped": (changed(300, b"300 'ab\\' 3"), "line 300: is no ID"),
    "text after the length": (changed(300, b"300 'ab' 2 3"), "line 300: is no ID"),
    "two spaces": (changed(300, b"300  'ab' 2"), "line 300: is no ID"),
    "no length": (changed(300, b"300 'ab'"), "line 300: is no ID"),
    "an empty line": (changed(300, b""), "line 300: is no ID"),
    "a line without end": (changed(300, b"300 '" + b"a" * 100_000 + b"' 100000"), "line 300: is no ID"),
    "nested deep": (changed(300, b"300 " + b"[" * 5000 + b" 2"), "line 300: is no ID"),
    "a vast id": (changed(300, b"9" * 5000 + b" 'ab' 2"), "line 300: is no ID"),
    "a vast length": (changed(300, b"300 'ab' " + b"9" * 5000), "line 300: is no ID"),
    "another length": (changed(300, b"300 'ab' 3"), "says 3 bytes, and its token has 2"),
    "a length in characters": (changed(300, "300 '猫' 1".encode()), "says 1 bytes, and its token has 3"),
    "an empty token": (changed(300, b"300 '' 0"), "0 bytes, must be 1 to 1024"),
    "a long token": (changed(300, b"300 '" + b"a" * 1025 + b"' 1025"), "1025 bytes, must be 1 to 1024"),
    "an id twice": (changed(300, b"299 'ab' 2"), "has id 299, not 300"),
    "an id left out": (changed(300, b"301 'ab' 2"), "has id 301, not 300"),
    "ids from 0": (b"0 '\\x00' 1\n" + b"\n".join(LINES), "has id 0, not 1"),
    "an escape of C": (changed(300, b"300 'a\\a' 2"), "that Python would not write"),
    "an octal escape": (changed(300, b"300 '\\101' 1"), "that Python would not write"),
    "a name": (changed(300, b"300 '\\N{DIGIT ONE}' 1"), "that Python would not write"),
    "a short escape": (changed(300, b"300 '\\x4' 1"), "that Python would not write"),
    "half a pair": (changed(300, b"300 '\\ud83d' 3"), "that Python would not write"),
    "beyond Unicode": (changed(300, b"300 '\\U00110000' 4"), "that Python would not write"),
    "no UTF-8": (changed(300, b"300 '\xff' 1"), "that Python would not write"),
    "bytes that are no ASCII": (changed(300, "300 b'é' 2".encode()), "that Python would not write"),
    "bytes with a character": (changed(300, b"300 b'\\u00e9' 2"), "that Python would not write"),
    "a byte missing": (changed(5, b"5 'ab' 2"), "no token for the byte 0x04, so that not every text"),
    "cut short": (world_file(TOKENS)[:-3], f"line {len(TOKENS)}"),
    "one line": (b"1 '\\x00' 1\n", "no token for the byte 0x01"),
    "too many": (lambda: b"".join(b"%d 'ab' 2\n" % i for i in range(1, MAX_TOKENS + 2)), f"beyond the {MAX_TOKENS}"),
}


@pytest.mark.parametrize(("data", "problem"), BAD.values(), ids=BAD)
def test_damaged_vocabularies_are_refused(data: Any, problem: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        RWKVWorldTokenizer(data if isinstance(data, bytes) else data(), PATH)
    message = str(caught.value)
    assert problem in message
    assert message.startswith(f"{PATH}: ")
    assert message.isprintable()
    assert len(message) < 400
