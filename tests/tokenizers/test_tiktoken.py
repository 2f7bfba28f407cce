"""Llama 3's kind of tokenizer, against the tokenizers library and against merging by hand."""

from __future__ import annotations

import base64
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import llamagpu
from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.tokenizers import StreamDecoder, find_beside, open_spec, read_spec
from llamagpu.tokenizers.tiktoken import MAX_RUN, TiktokenTokenizer, cut
from tests.small_files import Shape
from tests.tokenizers.test_tokenizers import random_texts
from tests.torch_files import write_meta

# Meta's, as published with Llama 3.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained_tokens(n: int) -> list[bytes]:
    """The 256 bytes, and n joins of tokens before them: a vocabulary such as BPE training makes."""
    rng = random.Random(0)
    text = (
        " ".join(random_texts(400, seed=9)) + " the then there Once upon a time, don't we'll 1984 12345\n\n  \t " * 20
    )
    words = [word.encode() for word in text.split(" ")] + [b" " + word.encode() for word in text.split(" ")]
    tokens = [bytes([byte]) for byte in range(256)]
    rng.shuffle(tokens)
    known = set(tokens)
    pieces = [[bytes([byte]) for byte in word] for word in words if word]
    while len(tokens) < 256 + n:
        counts: dict[tuple[bytes, bytes], int] = {}
        for piece in pieces:
            for pair in pairwise(piece):
                counts[pair] = counts.get(pair, 0) + 1
        for pair in sorted(counts, key=lambda pair: (-counts[pair], pair))[:40]:
            if b"".join(pair) not in known and len(tokens) < 256 + n:
                tokens.append(b"".join(pair))
                known.add(tokens[-1])
        pieces = [merged(piece, known) for piece in pieces]
    return tokens


def merged(piece: list[bytes], known: set[bytes]) -> list[bytes]:
    out: list[bytes] = []
    for token in piece:
        if out and out[-1] + token in known:
            out[-1] += token
        else:
            out.append(token)
    return out


def ranks_file(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte, as tokenizer.json writes them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def by_hand(word: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Byte-pair encoding as defined: the pair whose join has the lowest rank, the leftmost of equals, until none."""
    parts = [bytes([byte]) for byte in word]
    while True:
        joins = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not joins:
            return parts
        i = min(joins)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def with_the_tokenizers_library(tokens: list[bytes], pattern: str = PATTERN) -> Tokenizer:
    """The same vocabulary as a tokenizer.json: each token is made of the two that it is merged from last."""
    ranks, shown = {token: rank for rank, token in enumerate(tokens)}, byte_characters()

    def text(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    merges = []
    for rank, token in enumerate(tokens[256:], 256):
        before = {known: number for known, number in ranks.items() if number < rank}
        parts = by_hand(token, before)
        if len(parts) == 2:
            merges.append((text(parts[0]), text(parts[1])))
    library = Tokenizer(
        models.BPE({text(token): rank for rank, token in enumerate(tokens)}, merges, ignore_merges=True)
    )
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    return library


TOKENS = trained_tokens(500)


@pytest.fixture(scope="module")
def tokenizer() -> TiktokenTokenizer:
    return TiktokenTokenizer(ranks_file(TOKENS), Path("tokenizer.model"))


def test_ids_are_those_of_the_tokenizers_library(tokenizer: TiktokenTokenizer) -> None:
    library = with_the_tokenizers_library(TOKENS)
    longest = 0
    texts = ["I'LL don't we've 12345 1 the  the   the\r\n\r\n x\t\ty .!?\n", *random_texts(1000)]
    for text in texts:
        ids = tokenizer.encode(text, add_bos=False)
        assert ids == library.encode(text).ids, repr(text)
        assert tokenizer.decode(ids) == text
        longest = max([longest, *(len(tokenizer.token_bytes(token)) for token in ids)])
    assert longest >= 4


def test_merging_is_by_the_lowest_rank(tokenizer: TiktokenTokenizer) -> None:
    ranks = {token: rank for rank, token in enumerate(TOKENS)}
    rng = random.Random(2)
    for _ in range(300):
        word = "".join(rng.choice("thenrscoua") for _ in range(rng.randrange(1, 30)))
        expected = [
            ranks[part] for part in ([word.encode()] if word.encode() in ranks else by_hand(word.encode(), ranks))
        ]
        assert tokenizer.encode(word, add_bos=False) == expected


def test_control_tokens_follow_the_ranks(tokenizer: TiktokenTokenizer) -> None:
    n = len(TOKENS)
    assert tokenizer.vocab_size == n + 256
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (n, n + 1, (n + 8, n + 9))
    assert tokenizer.encode("") == [n]
    assert tokenizer.encode("a")[0] == n
    for text in ("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"):
        ids = tokenizer.encode(text, add_bos=False)
        assert max(ids) < n  # a text is text
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([n, *tokenizer.encode("the", add_bos=False), n + 9, n + 255, 10**9]) == "the"
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_decoding_in_a_stream_equals_decoding_at_once(tokenizer: TiktokenTokenizer) -> None:
    rng = random.Random(3)
    for text in random_texts(100, seed=4):
        ids = tokenizer.encode(text)
        decoder = StreamDecoder(tokenizer)
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == tokenizer.decode(ids) == text
    for _ in range(100):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(30)]
        decoder = StreamDecoder(tokenizer)
        whole = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == whole


def meta_cut(text: str) -> list[str]:
    """As the comment in Meta's code has it: no more than 25,000 of one kind in a row, in parts of 400,000."""
    parts = []
    for start in range(0, len(text), 400_000):
        part, count = "", 0
        for char in text[start : start + 400_000]:
            same = bool(part) and part[-1].isspace() == char.isspace()
            count = count + 1 if same or not part else 1
            if count > 25_000:
                parts.append(part)
                part, count = "", 1
            part += char
        parts.append(part)
    return parts


def test_long_runs_are_cut_where_meta_cuts_them(tokenizer: TiktokenTokenizer) -> None:
    for text in [
        "a" * 25_000, "a" * 25_001, " " * 60_000 + "b" * 70_000, "ab " * 9000 + "c" * 25_001 + "  x",
        "\n" * 390_000 + "y" * 30_000, "a" * 100_000,
    ]:  # fmt: skip
        assert list(cut(text)) == meta_cut(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert MAX_RUN == 25_000
    start = time.process_time()
    assert tokenizer.decode(tokenizer.encode(" " * 1_000_000)) == " " * 1_000_000  # the library alone overflows
    assert time.process_time() - start < 10


def test_it_is_told_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks_file(TOKENS))
    spec = read_spec(path)
    assert spec.kind == "tiktoken"
    opened = open_spec(spec, path)
    assert opened.vocab_size == len(TOKENS) + 256
    found = find_beside(tmp_path / "model.pth", opened.vocab_size)
    assert found is not None
    assert found[2] == path
    assert find_beside(tmp_path / "model.pth", opened.vocab_size - 1) is None


def test_lines_in_any_order(tokenizer: TiktokenTokenizer) -> None:
    lines = ranks_file(TOKENS).splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    other = TiktokenTokenizer(b"\n".join([b"".join(lines[:300]), b"".join(lines[300:])]), Path("t"))
    assert other.tokens == tokenizer.tokens


def test_a_model_of_meta_with_it(tmp_path: Path) -> None:
    """Text in, text out; <|eot_id|> ends it."""
    n = len(TOKENS)
    folder = write_meta(tmp_path / "model", Shape(vocab_size=n + 256), max_seq_len=32, rope_theta=5e5)
    (folder / "tokenizer.model").write_bytes(ranks_file(TOKENS))
    llm = llamagpu.load(folder, "cpu")
    generation = llm.generate("Once upon", max_tokens=10, temperature=0)
    text = "".join(generation)
    assert generation.prompt_tokens[0] == n
    assert text == llm.tokenizer.decode(generation.tokens)
    assert generation.stop_reason == "max_tokens"
    llm.tokenizer.stop_ids = (generation.tokens[3],)
    again = llm.generate("Once upon", max_tokens=10, temperature=0)
    assert "".join(again) == llm.tokenizer.decode(generation.tokens[: generation.tokens.index(generation.tokens[3])])
    assert again.stop_reason == "eos"


GOOD = ranks_file(TOKENS)
BAD: dict[str, tuple[bytes, str]] = {
    "a byte is missing": (ranks_file([token for token in TOKENS if token != b"\n"]), "0x0a"),
    "a token twice": (GOOD + b"QQ== %d\n" % len(TOKENS), "token twice"),
    "a rank twice": (GOOD + b"QUJDREVGR0g= 5\n", "rank 5 twice"),
    "a rank left out": (GOOD + b"QUJDREVGR0g= %d\n" % (len(TOKENS) + 1), "one after another"),
    "a vast rank": (GOOD + b"QUJDREVGR0g= 999999999999999999\n", "line"),
    "a negative rank": (GOOD + b"QUJDREVGR0g= -1\n", "line"),
    "an empty token": (GOOD + b" %d\n" % len(TOKENS), "line"),
    "no base64": (GOOD + b"!!!! %d\n" % len(TOKENS), "line"),
    "padding amiss": (GOOD + b"QUJ %d\n" % len(TOKENS), "line"),
    "a long token": (GOOD + base64.b64encode(bytes(5000)) + b" %d\n" % len(TOKENS), "line"),
    "three words": (GOOD + b"QUJD 1 2\n", "line"),
    "cut short": (GOOD[:-4], ""),
    "only one line": (b"QQ== 0\n", "byte"),
    "bytes in between": (GOOD[:100] + bytes(50) + GOOD[100:], "line"),
    "lines without end": (b"QQ== 0\n" * 600_000, "lines"),
}


@pytest.mark.parametrize(("data", "problem"), BAD.values(), ids=BAD)
def test_damaged_ranks_are_refused(data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(ModelFormatError) as caught:
        open_spec(TokenizerSpec("tiktoken", data), path)
    assert time.process_time() - start < 1
    assert read_spec(path).kind == "tiktoken"
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert problem in message
