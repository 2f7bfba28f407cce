"""What a tokenizer's definition may make of a text is bounded before its library sees it, and waiting has an end."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tokenizers import NormalizedString, Tokenizer

from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.tokenizers import json_bounds, open_spec, sentencepiece_proto, watched_call
from llamagpu.tokenizers.huggingface import HuggingFaceTokenizer
from llamagpu.tokenizers.json_bounds import bounds_of, fields, longest_of_charsmap
from llamagpu.tokenizers.sentencepiece_proto import charsmaps, model_proto, number, text, values
from tests.tokenizers.tokenizer_json import KINDS, LEGACY_NORMALIZER, llama3_like, pile_like

ROOT = Path(__file__).parent.parent.parent
PATH = Path("tokenizer.json")
LONG = "a" * 100


def changed(**parts: Any) -> bytes:
    return json.dumps({**json.loads(llama3_like()), **parts}, ensure_ascii=False).encode()


def sequence(*steps: dict[str, Any], name: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def replace(pattern: str, content: str, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def template(single: list[Any], ids: list[int]) -> dict[str, Any]:
    tokens = {"x": {"id": "x", "ids": ids, "tokens": ["a"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}


def charsmap(longest: str) -> bytes:
    return (1024).to_bytes(4, "little") + b"\0" * 1024 + b"a\0" + longest.encode() + b"\0"


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": False}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
A, X = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "x", "type_id": 0}}
DEEP: dict[str, Any] = {"type": "NFC"}
for _ in range(12):
    DEEP = sequence(DEEP)
BOMBS = {
    "regex": ("normalizer", sequence(*[replace(".", LONG)] * 3)),
    "text": ("normalizer", sequence(*[replace("a", LONG, "String")] * 3)),
    "one": ("normalizer", replace("a", "a" * 500, "String")),
    "long": ("normalizer", replace("a", "a" * 10_000, "String")),
    "empty matches": ("normalizer", sequence(*[replace("x*", "y")] * 40)),
    "empty text": ("normalizer", replace("", "y", "String")),
    "prepend": ("normalizer", sequence({"type": "Prepend", "prepend": "b" * 1000}, replace(".", LONG))),
    "prepended": ("normalizer", {"type": "Prepend", "prepend": "b" * 1_000_000}),
    "bytes": ("normalizer", sequence(*[{"type": "ByteLevel"}] * 20)),
    "nested": ("normalizer", sequence(sequence(replace(".", LONG)), sequence(sequence(replace(".", LONG))))),
    "forms": ("normalizer", sequence(*[replace(".", "ﷺ"), {"type": "NFKD"}] * 3)),
    "table": ("normalizer", {"type": "Precompiled",
                             "precompiled_charsmap": base64.b64encode(charsmap("b" * 500)).decode()}),
    "many": ("normalizer", sequence(*[{"type": "NFC"}] * 100)),
    "deep": ("normalizer", DEEP),
    "unknown": ("normalizer", {"type": "Grow"}),
    "no type": ("normalizer", {"pattern": {"String": "a"}, "content": LONG}),
    "letters": ("pre_tokenizer", sequence(*[BYTE_LEVEL] * 20, name="pretokenizers")),
    "spaces": ("pre_tokenizer", sequence(*[METASPACE, {"type": "Digits", "individual_digits": True}] * 20,
                                         name="pretokenizers")),
    "a long pattern": ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a|b)" * 10_000},
                                         "behavior": "Isolated", "invert": False}),
    "copies": ("post_processor", template([X, *[A] * 1000], [500])),
    "copies of copies": ("post_processor", sequence(*[template([A, A], [])] * 30, name="processors")),
    "tokens": ("post_processor", template([X, A], [500] * 10_000)),
    "pieces": ("post_processor", template([*[X] * 100, A], [500])),
    "decoder": ("decoder", sequence(*[replace("a", LONG, "String")] * 3, name="decoders")),
}  # fmt: skip


def refused(data: bytes) -> ModelFormatError:
    with pytest.raises(ModelFormatError) as caught:
        HuggingFaceTokenizer(data, PATH)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", BOMBS)
def test_definitions_that_grow_are_refused(name: str) -> None:
    field, step = BOMBS[name]
    assert refused(changed(**{field: step})).field == f"tokenizer.json {field}"


@pytest.mark.parametrize("name", ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"])
def test_names_of_the_model_are_short(name: str) -> None:
    model = json.loads(llama3_like())["model"] | {"merges": [], name: "a" * 5000}
    model["vocab"]["a" * 5000] = 600
    assert refused(changed(model=model)).field == f"tokenizer.json {name}"


def test_a_file_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (json_bounds.MAX_FILE, json_bounds.MAX_ENTRIES, sentencepiece_proto.MAX_FIELDS) == (
        1 << 27,
        1 << 22,
        1 << 20,
    )
    monkeypatch.setattr(json_bounds, "MAX_ENTRIES", 10_000)
    assert refused(b'{"model":{"merges":[' + b'"a b",' * 10_001 + b'"a b"]}}').field == "tokenizer.json length"
    monkeypatch.setattr(json_bounds, "MAX_FILE", 1000)
    assert refused(llama3_like()).field == "tokenizer.json length"
    monkeypatch.setattr(sentencepiece_proto, "MAX_FIELDS", 1000)
    with pytest.raises(ModelFormatError, match="more than 1000 pieces"):
        open_spec(TokenizerSpec("sentencepiece", b"\x0a\x03\x0a\x01a" * 1001), Path("tokenizer.model"))


def test_where_a_field_stands_and_how_it_is_written_is_no_way_around() -> None:
    bomb = b", " + json.dumps({"normalizer": BOMBS["regex"][1]}).encode()[1:]
    plain = llama3_like()
    parts = json.loads(plain)
    del parts["normalizer"]
    behind = json.dumps(parts).encode()[:-1] + bomb
    assert list(json.loads(behind))[-1] == "normalizer"
    for data in (behind, behind.replace(b"normalizer", b"\\u006eormalizer"), behind.replace(b'": ', b'"\n\t : ')):
        assert refused(data).field == "tokenizer.json normalizer"
    assert "normalizer" in refused(plain[:-1] + bomb).field  # there twice: the last one counts
    twice = replace(".", "b")
    text = json.dumps({"normalizer": twice})[:-2] + f', "content": "{LONG * 9}"}}}}'
    assert "has a name twice" in refused(text.encode()[:-1] + b", " + plain[1:]).problem


def test_the_outer_object_is_stepped_over_as_json_reads_it() -> None:
    def fail(field: str, problem: str) -> Exception:
        return ValueError(f"{field} {problem}")

    odd = {
        "a": [[], [{}], {"b": ']}"\\'}],
        "c": "\\",
        "d": -1.5e3,
        "e": None,
        'f"': {"g": [1, [2, [3]]]},
        "h": "é\u2028",
    }
    everything = {**odd, "model": {"vocab": {'"normalizer"': 1, "}": 2}, "merges": [["a", "b"]]}, **odd, "decoder": []}
    for indent, ascii_only in ((None, True), (2, False)):
        data = json.dumps(everything, indent=indent, ensure_ascii=ascii_only).encode()
        assert {name: json.loads(value) for name, value in fields(data, fail)} == everything
        for end in range(len(data)):  # cut anywhere, it ends: in an error, or at a model with nothing behind it
            names = list[str]()
            with suppress(ValueError):
                names += [name for name, _ in fields(data[:end], fail)]
            assert names == [] or (names == list(odd) and data.find(b'"model"') < end)
    with_token = b'{"a": 1, "model": {"vocab": {"decoder": 1, "normalizer" :2}, "merges": ["decoder"]}}'
    assert [name for name, _ in fields(with_token, fail)] == ["a"]  # a token of that name is none
    for nothing in (b"", b"[]", b"{", b'{"a"', b"{1:2}", b'{"a":}', b'{"a":1 2}', b"{}"):
        with pytest.raises(ValueError, match="content"):
            list(fields(nothing, fail))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="nested more"):
        list(fields(b'{"a":' + b"[" * 3_000_000, fail))
    assert time.perf_counter() - start < 10


def test_what_models_have_is_taken() -> None:
    for kind in KINDS.values():
        bounds = HuggingFaceTokenizer(kind(), PATH).bounds
        assert (bounds.factor <= 4, bounds.more <= 4, bounds.is_known) == (True, True, True)
    assert HuggingFaceTokenizer(pile_like(), PATH).bounds.is_known
    xlm = sequence({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap("b" * 18)).decode()},
                   replace(" {2,}", " "))  # fmt: skip
    albert = sequence(replace("``", '"', "String"), replace("''", '"', "String"), {"type": "NFKD"},
                      {"type": "StripAccents"}, {"type": "Lowercase"})  # fmt: skip
    clip = sequence({"type": "NFC"}, replace(r"\s+", " "), {"type": "Lowercase"})
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True}  # fmt: skip
    lines = sequence(replace("\n", "<n>", "String"), replace("\t", "<tab>", "String"), replace(" ", "▁", "String"))
    for step, factor in ((xlm, 36), (albert, 1), (clip, 2), (bert, 3), (lines, 15), (LEGACY_NORMALIZER, 1)):
        assert bounds_of(changed(normalizer=step), ModelError).factor == factor


def ModelError(field: str, problem: str) -> Exception:
    return AssertionError(f"{field} {problem}")


def test_the_library_makes_no_more_than_the_bound() -> None:
    random.seed(1)
    steps = [replace(".", "ab"), replace("a*", "b"), replace("a", "xyz", "String"), replace("b", "é", "String"),
             {"type": "Prepend", "prepend": "ab"}, {"type": "NFKD"}, {"type": "NFC"}, {"type": "ByteLevel"},
             {"type": "Lowercase"}, replace("ab|$", "x"), replace("(?=a)", "yy"), replace("", "z")]  # fmt: skip
    n_seen = 0
    for _ in range(300):
        definition = sequence(*random.choices(steps, k=random.randrange(1, 5)))
        data = changed(normalizer=definition)
        try:
            bounds = bounds_of(data, lambda field, problem: KeyError(field))
        except KeyError:
            continue
        normalizer = Tokenizer.from_buffer(data).normalizer
        for sample in ("", "a", "aaab Abé", "éa" * 20):
            normalized = NormalizedString(sample)
            try:
                normalizer.normalize(normalized)
            except BaseException as error:  # the library's own, of some steps in a row
                if type(error).__name__ != "PanicException":
                    raise
                continue
            n_seen += 1
            n = len(unicodedata.normalize("NFKD", sample))
            assert len(normalized.normalized) <= bounds.factor * n + bounds.more, (definition, sample)
    assert n_seen > 300


def test_a_text_that_would_grow_too_much_is_refused() -> None:
    tokenizer = HuggingFaceTokenizer(changed(normalizer=replace("a", "b" * 90, "String")), PATH)
    assert len(tokenizer.encode("a" * 100, add_bos=False)) >= 1
    with pytest.raises(UsageError, match="may make 4500000 characters"):
        tokenizer.encode("a" * 50_000)


def split(pattern: str) -> bytes:
    steps = ({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL)
    return changed(pre_tokenizer=sequence(*steps, name="pretokenizers"))


SQUARE = r"\s+(?!\S)|a+(?!a)c"


def test_waiting_for_a_regular_expression_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = HuggingFaceTokenizer(split(SQUARE), PATH)
    assert not tokenizer.bounds.is_known
    plain = HuggingFaceTokenizer(llama3_like(), PATH)
    assert tokenizer.decode(tokenizer.encode("a cat", add_bos=False)).strip() == "a cat"
    assert tokenizer.encode("", add_bos=True) == plain.encode("", add_bos=True)
    monkeypatch.setattr(watched_call, "SECONDS", 0.3)
    start = time.perf_counter()
    with pytest.raises(ModelFormatError, match="pattern: makes a text take longer"):
        tokenizer.encode("a" * 20_000)
    with pytest.raises(ModelFormatError, match="pattern"):
        tokenizer.encode_rendered("a", "guard", at_start=True)
    assert time.perf_counter() - start < 10
    assert tokenizer.token_bytes(64) == b"a"
    exponential = HuggingFaceTokenizer(split("(a|aa)+[bc]"), PATH)  # the library counts its steps, and gives up
    with pytest.raises(ModelFormatError, match=r"cannot encode this text|takes? longer"):
        exponential.encode("a" * 200)


PROGRAM = """
import resource, sys
from pathlib import Path
from llamagpu.tokenizers.huggingface import HuggingFaceTokenizer
tokenizer = HuggingFaceTokenizer(Path(sys.argv[1]).read_bytes(), Path("x"))
print("ready", flush=True)
if sys.argv[3:]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    tokenizer.encode("a" * int(sys.argv[2]))
except KeyboardInterrupt:
    print(tokenizer.encode("a"), flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_works_within_the_library(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(split(SQUARE))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "t.json"), "90000"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("[500, 262]\n", "", 0)
    assert time.monotonic() - start < 20


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of memory is Linux's")
@pytest.mark.parametrize("known", [True, False])
def test_a_library_that_aborts_leaves_one_line(known: bool, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(llama3_like() if known else split(r"\s|\S"))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "t.json"), "3000000", "limit"], cwd=ROOT,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.stdout == "ready\n"
    assert result.stderr.splitlines()[-1:] == [
        "llamagpu: error: the tokenizers library gave up, most likely for want of memory: a shorter text needs less"
    ]
    assert (len(result.stderr.splitlines()), result.returncode) == (1, 1)


def sentencepiece_model(blob: bytes) -> bytes:
    pieces = [b"<unk>", b"<s>", b"</s>", "▁".encode(), b"a", b"b"]
    data = model_proto(pieces, [0.0] * 6, [2, 3, 3, 1, 1, 1], 1, 2, True)
    return data + text(3, number(9, 1) + text(2, blob))  # a second one is merged with the first


def test_tables_of_letters_of_sentencepiece() -> None:
    assert longest_of_charsmap(charsmap("ä" * 18)) == 18
    assert list(charsmaps(sentencepiece_model(b"xy"))) == [b"xy"]
    assert [piece[2:3] for piece in values(sentencepiece_model(b""), 1)][-2:] == [b"a", b"b"]
    with pytest.raises(ModelFormatError, match="makes 500 characters of one"):
        open_spec(TokenizerSpec("sentencepiece", sentencepiece_model(charsmap("b" * 500))), Path("tokenizer.model"))
    tokenizer = open_spec(TokenizerSpec("sentencepiece", sentencepiece_model(b"")), Path("tokenizer.model"))
    assert tokenizer.encode("ab") == [1, 3, 4, 5]
    for damaged in (b"\x0a", b"\x1a\xff", b"\x1a\x05a", b"\x0b", b"\x80" * 20):
        with pytest.raises(ValueError, match="no protobuf"):
            list(charsmaps(damaged))
