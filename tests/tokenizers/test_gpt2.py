"""GPT-2's tokenizer: ids are those of tiktoken's encode_ordinary with GPT-2's published expression."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

import llamagpu.tokenizers
from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import find_tokenizer
from llamagpu.tokenizers import StreamDecoder, find_beside, open_spec, read_spec
from llamagpu.tokenizers.gpt2 import MAX_SPACES, Gpt2Tokenizer, cut_spaces
from tests.tokenizers.test_tiktoken import ranks_file
from tests.tokenizers.test_tokenizers import random_texts
from tests.tokenizers.vocabularies import END, gpt2_pair, gpt2_tokens

TOKENS = gpt2_tokens()
PAIR = gpt2_pair(TOKENS)
HUGGING_FACE = {"vocab.json": PAIR["encoder.json"], "merges.txt": PAIR["vocab.bpe"]}
RANKS = ranks_file(TOKENS)


@pytest.fixture(scope="module")
def tokenizer() -> Gpt2Tokenizer:
    return Gpt2Tokenizer(RANKS, Path("gpt2.tiktoken"))


@pytest.fixture(scope="module")
def library() -> tiktoken.Encoding:
    ranks = {token: rank for rank, token in enumerate(TOKENS)}
    return tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END: len(TOKENS)},
        explicit_n_vocab=len(TOKENS) + 1,
    )  # fmt: skip


def put(folder: Path, files: dict[str, bytes]) -> Path:
    """The first of the files."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / next(iter(files))


def test_ids_are_tiktokens(tokenizer: Gpt2Tokenizer, library: tiktoken.Encoding) -> None:
    longest = 0
    texts = [
        "",
        "I'VE don't  12345  \n\n the\r\n\t x  ",
        " ",
        "  ",
        "a  ",
        f"{END}a",
        f"the {END}",
        "'s's'",
        "\x1c\x85 x",
    ]
    for text in [*texts, *random_texts(1000)]:
        ids = tokenizer.encode(text)
        assert ids == library.encode_ordinary(text), repr(text)
        assert tokenizer.decode(ids) == text
        assert len(TOKENS) not in ids, "special text is ordinary text"
        longest = max([longest, *(len(tokenizer.token_bytes(token)) for token in ids)])
    assert longest >= 4
    assert tokenizer.decode(tokenizer.encode("the")) == "the"


def test_what_is_special(tokenizer: Gpt2Tokenizer, library: tiktoken.Encoding) -> None:
    n = len(TOKENS)
    assert tokenizer.vocab_size == library.n_vocab == n + 1
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (None, None, ())
    assert tokenizer.encode("") == []
    assert tokenizer.controls == {END: n}
    assert tokenizer.encode_rendered(f"a{END}b", "\0", at_start=True) == library.encode(
        f"a{END}b", allowed_special="all"
    )
    ids = [*tokenizer.encode("the"), n, *tokenizer.encode(" cat")]
    assert tokenizer.decode(ids) == library.decode(ids) == f"the{END} cat"
    assert tokenizer.decode([n + 1, n + 46, 10**9]) == ""


def test_decoding_in_a_stream_equals_decoding_at_once(tokenizer: Gpt2Tokenizer, library: tiktoken.Encoding) -> None:
    rng = random.Random(3)
    for text in random_texts(100, seed=4):
        ids = tokenizer.encode(text)
        decoder = StreamDecoder(tokenizer)
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == text
    for _ in range(100):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(30)]
        decoder = StreamDecoder(tokenizer)
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == library.decode(ids)


def test_long_texts(tokenizer: Gpt2Tokenizer, library: tiktoken.Encoding) -> None:
    """As the library, but where it overflows: spaces by the million."""
    for text in ["a" * 510_000, " " * 400_000 + "x", "the cat \n " * 52_000]:
        assert list(cut_spaces(text)) == [text]
        assert tokenizer.encode(text) == library.encode_ordinary(text)
    for text in [" " * 1_200_000 + "x", "ab" + " \t" * 300_000 + "c" + "\n" * 500_001]:
        parts = list(cut_spaces(text))
        assert "".join(parts) == text
        assert len(parts) > 1
        assert all(part[-1].isspace() for part in parts[:-1])
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert MAX_SPACES == 500_000


@pytest.mark.parametrize("files", [PAIR, HUGGING_FACE], ids=["OpenAI's", "Hugging Face's"])
def test_a_pair_of_files(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given by either of the two; ranks are those that tiktoken makes of it."""
    put(tmp_path, files)
    ids, merges = (tmp_path / name for name in files)
    spec = read_spec(ids)
    assert spec == read_spec(merges) == TokenizerSpec("gpt2", RANKS)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    published = data_gym_to_mergeable_bpe_ranks(str(merges), str(ids))
    assert open_spec(spec, ids).encode("the") == [published[b"the"]]
    assert [token for token, _ in sorted(published.items(), key=lambda item: item[1])] == TOKENS
    windows = {name: data.replace(b"\n", b"\r\n") for name, data in files.items()}
    assert read_spec(put(tmp_path, windows)) == spec


def test_a_tiktoken_file_is_gpt2s_by_the_number_of_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llamagpu.tokenizers.KINDS_BY_RANKS[50256] == "gpt2"
    path = put(tmp_path, {"gpt2.tiktoken": RANKS})
    assert read_spec(path).kind == "tiktoken"
    monkeypatch.setitem(llamagpu.tokenizers.KINDS_BY_RANKS, len(TOKENS), "gpt2")
    assert read_spec(path) == TokenizerSpec("gpt2", RANKS)
    assert read_spec(put(tmp_path, {"gpt2.tiktoken": RANKS[:-1]})).kind == "gpt2"
    assert read_spec(put(tmp_path, {"gpt2.tiktoken": RANKS + b"eHh4eHg= %d\n" % len(TOKENS)})).kind == "tiktoken"
    lines = b"".join(b"QUFB %d\n" % i for i in range(50256))
    monkeypatch.undo()
    assert read_spec(put(tmp_path, {"r50k_base.tiktoken": lines})).kind == "gpt2"


@pytest.mark.parametrize("files", [PAIR, HUGGING_FACE, {"gpt2.tiktoken": RANKS}], ids=["pair", "other pair", "ranks"])
def test_it_is_found_beside_a_model_of_a_few_more_rows(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MicroRWKV has 50,304 for 50,257."""
    monkeypatch.setitem(llamagpu.tokenizers.KINDS_BY_RANKS, len(TOKENS), "gpt2")
    path, n = put(tmp_path, files), len(TOKENS) + 1
    for n_rows, fits in [(n, True), (n + 47, True), (n - 1, False), (n + 5000, False)]:
        found = find_beside(tmp_path / "ckpt.pt", n_rows)
        assert (found is not None) == fits
        assert found is None or (found[0].kind, found[2]) == ("gpt2", path)


def test_the_error_names_the_files_that_would_do(small_model: Path) -> None:
    (small_model.parent / "tokenizer.bin").unlink()
    with pytest.raises(UsageError, match=r"encoder\.json, vocab\.json, gpt2\.tiktoken"):
        find_tokenizer(open_checkpoint(small_model), None)


def with_ids(change: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    ids = json.loads(PAIR["encoder.json"])
    change(ids)
    return PAIR | {"encoder.json": json.dumps(ids).encode()}


def with_merges(change: Callable[[list[str]], object]) -> dict[str, bytes]:
    lines = PAIR["vocab.bpe"].decode().split("\n")
    change(lines)
    return PAIR | {"vocab.bpe": "\n".join(lines).encode()}


LAST = len(TOKENS)
BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "no merges": ({"encoder.json": PAIR["encoder.json"]}, "vocab.bpe: path: is missing beside encoder.json"),
    "no ids": ({"merges.txt": PAIR["vocab.bpe"]}, "vocab.json: path: is missing beside merges.txt"),
    "other names": ({"my.json": PAIR["encoder.json"]}, "must be named encoder.json and vocab.bpe, vocab.json and"),
    "another model's": (with_ids(lambda ids: ids.pop(END)), "<|endoftext|>: is not the last"),
    "the end first": (with_ids(lambda ids: ids.update({END: 0, "!": LAST})), "<|endoftext|>: is not the last"),
    "the end as a text": (with_ids(lambda ids: ids.update({END: str(LAST)})), "<|endoftext|>: is not the last"),
    "an id twice": (with_ids(lambda ids: ids.update({"A": 33})), f"ids: are not 0 to {LAST}"),
    "an id left out": (with_ids(lambda ids: ids.update({"A": 10**9})), f"ids: are not 0 to {LAST}"),
    "a negative id": (with_ids(lambda ids: ids.update({"A": -1})), f"ids: are not 0 to {LAST}"),
    "an id that is none": (with_ids(lambda ids: ids.update({"A": 1.5})), f"ids: are not 0 to {LAST}"),
    "true": (with_ids(lambda ids: ids.update({'"': True})), f"ids: are not 0 to {LAST}"),
    "a token too many": (with_ids(lambda ids: ids.update({"QQQQ": LAST, END: LAST + 1})), "which is not 256 and the"),
    "a merge too many": (with_merges(lambda lines: lines.insert(9, "Z Z")), "which is not 256 and the"),
    "a merge left out": (with_merges(lambda lines: lines.pop(9)), "which is not 256 and the"),
    "merges in disorder": (with_merges(lambda lines: lines.insert(3, lines.pop(9))), "token 258: is"),
    "merges of three": (with_merges(lambda lines: lines.insert(9, lines.pop(9) + " x")), "token 264: is"),
    "no letter": (with_ids(lambda ids: ids.update({"猫": ids.pop("A")})), "hold '猫', which stands for no byte"),
    "a byte twice": (with_ids(lambda ids: ids.update({"QQQQ": ids.pop("A")})), "no token for the byte 0x41"),
    "an empty token": (with_ids(lambda ids: ids.update({"": ids.pop("A")})), "no token in base64"),
    "cut short": (PAIR | {"encoder.json": PAIR["encoder.json"][:-9]}, "JSON: is no valid JSON"),
    "nested deep": ({"encoder.json": b'{"a":1,"b":' + b"[" * 100_000, "vocab.bpe": b""}, "JSON: "),
    "merges that are no UTF-8": (PAIR | {"vocab.bpe": b"#version\n\xff"}, "vocab.bpe: text: is no UTF-8"),
    "no lines": (PAIR | {"vocab.bpe": b""}, "vocab.bpe: length: is 0 bytes"),
    "huge": (PAIR | {"vocab.bpe": b"#version\n" + b"a b\n" * 2_000_000}, "too many for a vocab.bpe"),
}


@pytest.mark.parametrize(("files", "problem"), BAD.values(), ids=BAD)
def test_damaged_pairs_are_refused(files: dict[str, bytes], problem: str, tmp_path: Path) -> None:
    path = put(tmp_path, files)
    with pytest.raises(ModelFormatError) as caught:
        open_spec(read_spec(path), path)
    message = str(caught.value)
    assert problem in message
    assert message.startswith(f"{tmp_path}")
    assert message.isprintable()
