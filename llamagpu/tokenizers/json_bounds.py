"""How much a tokenizer.json may make of a text, told from its definition before the library reads it.

A definition is a row of steps that rewrite a text, and some make it longer: three that write a hundred letters for each
make a million of one. The library does what it is told, and its allocator ends the program when memory is gone. So the
steps are read here first, and a definition that no model has is refused. What is left is a factor, by which a text is
judged before it is encoded.

Only the steps are parsed: the vocabulary, nearly all of the file, is stepped over.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llamagpu.errors import UsageError
from llamagpu.formats.gguf_splits import SPLITS

MAX_GROWTH = 100  # of the longest text that steps make of a character; published models have at most 18
MAX_GROWN, USUAL_GROWTH = 1 << 22, 32  # a text that grows more than usual may become so many characters
MAX_STEPS, MAX_DEPTH = 64, 8
MAX_TEXT = 1 << 10  # characters of what one step puts in, and of names that are written for many tokens
MAX_PATTERN = 1 << 13  # characters of a regular expression
MAX_SPECIAL = 16  # tokens around a text
MAX_FIELD, MAX_VALUES = 1 << 22, 1 << 16  # bytes, and values, of one field; a table of letters is half a megabyte
# Of the whole file: bytes, and commas, since the library takes two hundred bytes for each entry of a vocabulary and
# each merge. The largest files of models have a quarter of both.
MAX_FILE, MAX_ENTRIES = 1 << 27, 1 << 22
MAX_BRACKETS = 1 << 20  # that are stepped over one by one

FIELDS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# What is behind the model where a field is: its name and no number, which is how a token of that name stands in a
# vocabulary; or letters that are written as escapes, which nothing that writes JSON does.
NAMES, ESCAPES = [f'{name}"'.encode() for name in FIELDS], (b"\\u006", b"\\u007")
NOT_A_TOKEN = re.compile(rb"\s*+:\s*+[^\s\d]")
TEXT = rb'"(?:[^"\\]++|\\.)*+"'
FLAT = rb'[^"{}\[\]]++|' + TEXT
KEY = re.compile(rb"\s*+(" + TEXT + rb")\s*+:\s*+", re.DOTALL)
SCALAR = re.compile(TEXT + rb'|[^",{}\[\]\s]++', re.DOTALL)
INSIDE = re.compile(rb"(?:" + FLAT + rb"|[\[{](?:" + FLAT + rb")*+[\]}])*+", re.DOTALL)
AFTER = re.compile(rb"\s*+([,}])")

# Growth of the steps that are not written out below. Of letters that a user writes, Unicode's forms make a few more now
# and then; of those that a definition puts in, up to 18.
NORMALIZERS = {"NFC": 1, "NFD": 1, "NFKC": 1, "NFKD": 1, "Lowercase": 1, "Nmt": 1, "Strip": 1, "StripAccents": 1,
               "BertNormalizer": 3, "ByteLevel": 4}  # fmt: skip
UNICODE_GROWTH = 18
PRE_TOKENIZERS = ("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace",
                  "Punctuation", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit")  # fmt: skip
REWRITING, REWRITING_GROWTH = ("ByteLevel", "Metaspace"), 4  # each after the first
NAMES_OF_MODELS = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")
# Regular expressions whose time is known to be in proportion to the text.
KNOWN_PATTERNS = frozenset(
    [pattern for split in SPLITS.values() for pattern in split.patterns]
    + [r"\s+", r" {2,}", r"\p{N}{1,3}", r"\p{N}", r"[0-9]", r"[一-龥぀-ゟ゠-ヿ]+", r"[\r\n]", r"\n"]
)

Fail = Callable[[str, str], Exception]  # of a field and what is wrong with it


@dataclass
class Bounds:
    """What becomes of n characters: at most n * factor + more. is_known: whether all regular expressions are.

    n counts each character as Unicode takes it apart: é is two.
    """

    factor: int = 1
    more: int = 0
    is_known: bool = True

    def check(self, text: str) -> None:
        """Raises UsageError for a text of which too much would be made."""
        grown = len(text) * self.factor + self.more
        if grown > max(USUAL_GROWTH * len(text), MAX_GROWN):
            raise UsageError(
                f"the model's tokenizer may make {grown} characters of this text of {len(text)}: give a shorter one"
            )


def bounds_of(data: bytes, fail: Fail) -> Bounds:
    """Of a whole tokenizer.json. Raises what ``fail`` makes for one that grows without measure."""
    if len(data) > MAX_FILE or (len(data) > MAX_ENTRIES and data.count(b",") > MAX_ENTRIES):
        raise fail("length", f"is {len(data)} bytes, or more than {MAX_ENTRIES} entries: more than any model's")
    reader = Reader(fail)
    for name, value in fields(data, fail):
        if name in FIELDS:
            reader.read(name, value)
    return Bounds(reader.factor, reader.more, reader.is_known)


def check_model(model: object, fail: Fail) -> None:
    """Of the library's model: names that it writes for each character that it does not know."""
    for name in NAMES_OF_MODELS:
        text = getattr(model, name, None)
        if isinstance(text, str) and len(text) > MAX_TEXT:
            raise fail(name, f"has {len(text)} characters")


def fields(data: bytes, fail: Fail) -> Iterator[tuple[str, bytes]]:
    """Names and values of the outer object, up to the model where nothing that matters is behind it."""
    at = len(data) - len(data.lstrip())
    if data[at : at + 1] != b"{":
        raise fail("content", "is no object")
    at += 1
    while True:
        key = KEY.match(data, at)
        if key is None:
            raise fail("content", f"is no JSON at byte {at}")
        start = key.end()
        try:
            name = json.loads(key[1])
        except ValueError:
            raise fail("content", f"has a name that is none at byte {at}") from None
        if name == "model" and not any_field(data, start):
            return
        at = end_of_value(data, start, fail)
        yield name, data[start:at]
        after = AFTER.match(data, at)
        if after is None:
            raise fail("content", f"is no JSON at byte {at}")
        if after[1] == b"}":
            return
        at = after.end()


def any_field(data: bytes, start: int) -> bool:
    """Whether a field may be there from ``start`` on, told without reading the vocabulary."""
    if any(data.find(escape, start) >= 0 for escape in ESCAPES):
        return True
    for name in NAMES:
        at = data.find(name, start)
        while at >= 0:
            at += len(name)
            if NOT_A_TOKEN.match(data, at):
                return True
            at = data.find(name, at)
    return False


def end_of_value(data: bytes, start: int, fail: Fail) -> int:
    if data[start : start + 1] not in (b"{", b"["):
        scalar = SCALAR.match(data, start)
        if scalar is None:
            raise fail("content", f"is no JSON at byte {start}")
        return scalar.end()
    at, depth = start + 1, 1
    for _ in range(MAX_BRACKETS):
        inside = INSIDE.match(data, at)
        at = inside.end() if inside is not None else at
        bracket = data[at : at + 1]
        depth += 1 if bracket in (b"{", b"[") else -1
        at += 1
        if not bracket or bracket == b'"':
            raise fail("content", f"is no JSON at byte {at - 1}")
        if depth == 0:
            return at
    raise fail("content", "is nested more than any tokenizer.json")


class Reader:
    """Goes through the steps of one field after another, and adds up what they may make of a text."""

    def __init__(self, fail: Fail) -> None:
        self.fail = fail
        self.factor, self.more, self.is_known = 1, 0, True
        self.field, self.n_steps, self.n_rewriting = "", 0, 0
        self.puts_in = False  # letters that are no ASCII
        self.tasks = {
            "normalizer": self.normalizer, "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.post_processor, "decoder": self.decoder,
        }  # fmt: skip

    def read(self, field: str, value: bytes) -> None:
        self.field, self.n_steps, self.n_rewriting, self.puts_in = field, 0, 0, False
        before = self.factor, self.more
        if len(value) > MAX_FIELD or sum(value.count(c) for c in (b",", b"[", b"{")) > MAX_VALUES:
            raise self.error(f"has {len(value)} bytes, more than any model's")
        try:
            step = json.loads(value, object_pairs_hook=self.once)
        except (ValueError, RecursionError):
            raise self.error("is no valid JSON") from None
        if step is not None:
            self.step(step, 0)
        if field == "decoder":  # of a token, not of a text
            self.factor, self.more = before

    def once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise self.error("has a name twice")
        return values

    def step(self, step: Any, depth: int) -> None:
        kind = step.get("type") if isinstance(step, dict) else None
        if not isinstance(kind, str):
            raise self.error("has a step without a type")
        self.n_steps += 1
        if self.n_steps > MAX_STEPS or depth > MAX_DEPTH:
            raise self.error(f"has more than {MAX_STEPS} steps, or they are nested deeper than {MAX_DEPTH}")
        if kind == "Sequence":
            lists = [value for value in step.values() if isinstance(value, list)]
            if len(lists) != 1:
                raise self.error("has a sequence that is no list of steps")
            for inner in lists[0]:
                self.step(inner, depth + 1)
        else:
            self.tasks[self.field](kind, step)
        if self.factor > MAX_GROWTH or self.more > MAX_TEXT * MAX_STEPS:
            raise self.error(f"makes more than {MAX_GROWTH} characters of one")

    def normalizer(self, kind: str, step: Mapping[str, Any]) -> None:
        if kind == "Replace":
            self.replace(step)
        elif kind == "Prepend":
            self.more += len(self.text(step, "prepend"))
        elif kind == "Precompiled":
            self.grow(longest_of_charsmap(self.charsmap(step)))
            self.puts_in = True
        elif kind in NORMALIZERS:
            self.grow(UNICODE_GROWTH if kind.startswith("NF") and self.puts_in else NORMALIZERS[kind])
            self.puts_in = kind == "ByteLevel" or (self.puts_in and not kind.startswith("NF"))
        else:
            raise self.error(f"is of type {kind[:40]!r}, which this version does not know")

    def pre_tokenizer(self, kind: str, step: Mapping[str, Any]) -> None:
        if kind not in PRE_TOKENIZERS:
            raise self.error(f"is of type {kind[:40]!r}, which this version does not know")
        if kind == "Split":
            self.pattern(step)
        if kind in REWRITING:
            self.n_rewriting += 1
            self.grow(REWRITING_GROWTH if self.n_rewriting > 1 else 1)

    def post_processor(self, kind: str, step: Mapping[str, Any]) -> None:
        if kind != "TemplateProcessing":
            return  # the others put one token before a text and one after
        single, tokens = step.get("single"), step.get("special_tokens")
        if not isinstance(single, list) or not isinstance(tokens, dict | list):
            raise self.error("is no list of pieces")
        n_texts = sum(isinstance(piece, dict) and "Sequence" in piece for piece in single)
        if n_texts > 1 or len(single) - n_texts > MAX_SPECIAL:
            raise self.error(f"puts the text {n_texts} times, and {len(single) - n_texts} tokens around it")
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            ids = token.get("ids") if isinstance(token, dict) else None
            if not isinstance(ids, list) or len(ids) > MAX_SPECIAL:
                raise self.error(f"has a special token that is none, or more than {MAX_SPECIAL}")

    def decoder(self, kind: str, step: Mapping[str, Any]) -> None:
        if kind == "Replace":
            self.replace(step)

    def replace(self, step: Mapping[str, Any]) -> None:
        content, pattern = self.text(step, "content"), self.pattern(step)
        if pattern is None:
            found = step["pattern"]["String"]
            if not found:
                raise self.error("replaces the empty text")
            self.grow(-(-len(content) // len(found)))
        else:  # a regular expression may find nothing, before each character
            always_something = pattern != "" and not re.search(r"[*?|{(^$\\]", pattern)
            self.grow(len(content) + (not always_something))
            self.more += len(content)
        self.puts_in = self.puts_in or not content.isascii()

    def pattern(self, step: Mapping[str, Any]) -> str | None:
        """The regular expression of a step; None where it is a text that is to be found as it stands."""
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and len(pattern) == 1:
            kind, text = next(iter(pattern.items()))
            if kind in ("String", "Regex") and isinstance(text, str) and len(text) <= MAX_PATTERN:
                self.is_known = self.is_known and (kind == "String" or text in KNOWN_PATTERNS)
                return text if kind == "Regex" else None
        raise self.error(f"has a pattern that is none, or longer than {MAX_PATTERN} characters")

    def text(self, step: Mapping[str, Any], name: str) -> str:
        text = step.get(name)
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise self.error(f"has a {name} that is no text, or longer than {MAX_TEXT} characters")
        return text

    def charsmap(self, step: Mapping[str, Any]) -> bytes:
        try:
            return base64.b64decode(step.get("precompiled_charsmap") or "")
        except (ValueError, TypeError):
            raise self.error("has a precompiled_charsmap that is no base64") from None

    def grow(self, factor: int) -> None:
        factor = max(1, factor)
        self.factor, self.more = self.factor * factor, self.more * factor

    def error(self, problem: str) -> Exception:
        return self.fail(self.field, problem)


def longest_of_charsmap(blob: bytes) -> int:
    """The most characters that SentencePiece's table of letters makes of one: the longest of its texts.

    The table is the length of an index (u32), the index, and texts that each end with a zero byte.
    """
    texts = blob[4 + int.from_bytes(blob[:4], "little") :]
    return max((len(text.decode("utf-8", "replace")) for text in texts.split(b"\0")), default=0)
