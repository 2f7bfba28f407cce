"""Whether a tokenizer.json keeps the whole of a text, so that its length says how many tokens it has at least."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers.models import BPE

from llamagpu.tokenizers.byte_letters import BYTE_OF_LETTER

# Bytes that become one in Unicode's composed form: three for most of Korean, 7 of 2 for a Greek iota with two marks.
NFC_SHRINKS = 4
KEEPING = ("ByteLevel", "Digits", "Metaspace")
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def longest_piece(library: Library) -> int:
    """The most bytes of a text that become one token; 0 where a step may take something out of it."""
    model, vocabulary = library.model, library.get_vocab(with_added_tokens=False)
    added = library.get_added_tokens_decoder().values()
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return 0
    if any(token.lstrip or token.rstrip for token in added):  # takes any number of spaces with it
        return 0
    shrinks, is_byte_level = 1, False
    for step in steps(library.normalizer, "normalizers"):
        if step["type"] == "NFC":
            shrinks = NFC_SHRINKS
        elif step["type"] == "ByteLevel":
            is_byte_level = True
        elif not (step["type"] == "Prepend" or (step["type"] == "Replace" and is_space_to_letter(step))):
            return 0
    for step in steps(library.pre_tokenizer, "pretokenizers"):
        is_byte_level = is_byte_level or step["type"] == "ByteLevel"
        if step["type"] not in KEEPING and (step["type"] != "Split" or step["behavior"] == "Removed"):
            return 0
    needed = BYTE_OF_LETTER if is_byte_level else BYTE_TOKENS
    if not (is_byte_level or model.byte_fallback) or not all(letter in vocabulary for letter in needed):
        return 0  # a letter that is not known would be left out
    pieces = [len(piece if is_byte_level else piece.replace("\u2581", " ").encode()) for piece in vocabulary]
    return shrinks * max(pieces + [len(token.content.encode()) for token in added])


def steps(part: Any, name: str) -> Iterator[dict[str, Any]]:
    """Of a normalizer or pre-tokenizer, those within others too."""
    waiting = [json.loads(part.__getstate__())] if part is not None else []
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step[name]
        else:
            yield step


def is_space_to_letter(step: dict[str, Any]) -> bool:
    return bool(step["pattern"] == {"String": " "} and step["content"] == "\u2581")
