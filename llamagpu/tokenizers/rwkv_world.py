r"""RWKV World's vocabulary: one token a line, as ``ID LITERAL LENGTH``, such as ``261 '\n\n' 2``.

LITERAL is a text or bytes as Python writes them, LENGTH the number of bytes. Ids are 1, 2, 3, ..., and 0, which has no
line, ends a text. A text is cut from its beginning, each time into the longest token that fits.
"""

from __future__ import annotations

import re
from array import array
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from llamagpu.errors import ModelFormatError
from llamagpu.tokenizers.base import Tokenizer

END = 0  # of a text
MAX_TOKENS = 1 << 18
MAX_LINE_BYTES = 1 << 13
MAX_TOKEN_BYTES = 1 << 10
REMEDY = "the file is damaged or no RWKV World vocabulary: fetch it again, or give another tokenizer"
FIRST_LINE = re.compile(rb"1 b?(['\"])[^\n]{1,40}?\1 \d{1,4}\r?\n")
SINGLE, DOUBLE = rb"'([^'\\\r\n]*(?:\\[^\r\n][^'\\\r\n]*)*)'", rb'"([^"\\\r\n]*(?:\\[^\r\n][^"\\\r\n]*)*)"'
LINE = re.compile(rb"(\d{1,9}) (b?)(?:" + SINGLE + rb"|" + DOUBLE + rb") (\d{1,9})\r?")
ESCAPE = re.compile(rb"\\(?:([\\'\"ntr])|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U(00(?:0[0-9A-Fa-f]|10)[0-9A-Fa-f]{4})|)")
LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


class RWKVWorldTokenizer(Tokenizer):
    """A vocabulary file of RWKV World. Raises ModelFormatError if ``data`` is anything else.

    No token goes before a text, as in RWKV's own code; but a model cannot begin with nothing, and so an empty prompt is
    the end of the text before it: token 0. Models have a few rows more than there are tokens; those stand for nothing.
    """

    bos_id, eos_id, adds_leading_space = None, END, False

    def __init__(self, data: bytes, path: Path) -> None:
        self.texts, self.ends = parse(data, path)
        self.vocab_size = len(self.ends)

    def encode(self, text: str, add_bos: bool = True, special: bool = False) -> list[int]:
        return super().encode(text, special=special) or ([END] if add_bos else [])

    def token_bytes(self, token: int) -> bytes:
        return self.texts[self.ends[token - 1] : self.ends[token]] if 0 < token < self.vocab_size else b""

    @property
    def longest_piece(self) -> int:
        return max(end - start for start, end in pairwise(self.ends))

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Token to id; the first of equals."""
        return {self.token_bytes(token): token for token in range(self.vocab_size - 1, 0, -1)}

    @cached_property
    def lengths(self) -> dict[bytes, list[int]]:
        """How long tokens are that begin with the same two bytes, longest first."""
        lengths: dict[bytes, set[int]] = {}
        for token in self.ids:
            if len(token) > 1:
                lengths.setdefault(token[:2], set()).add(len(token))
        return {front: sorted(found, reverse=True) for front, found in lengths.items()}

    def encode_text(self, text: str) -> list[int]:
        data, known, lengths = text.encode(), self.ids, self.lengths
        ids: list[int] = []
        at, size = 0, len(data)
        while at < size:
            for n in lengths.get(data[at : at + 2], ()):
                token = known.get(data[at : at + n])
                if token is not None and at + n <= size:
                    break
            else:
                n, token = 1, known[data[at : at + 1]]
            ids.append(token)
            at += n
        return ids


def parse(data: bytes, path: Path) -> tuple[bytes, array[int]]:
    """The bytes of all tokens, one after the other, and where each ends: of token 0, which has none, at 0."""

    def refuse(problem: str) -> ModelFormatError:
        line = data[at : at + 40].split(b"\n")[0]
        return ModelFormatError(path, f"line {len(ends)}", f"{problem}: {line!r}", REMEDY)

    texts, ends = bytearray(), array("I", [0])
    single: set[bytes] = set()
    at, size = 0, len(data)
    while at < size:
        end = data.find(b"\n", at, at + MAX_LINE_BYTES)
        match = LINE.fullmatch(data, at, end if end >= 0 else min(size, at + MAX_LINE_BYTES))
        if match is None or (end < 0 and match.end() < size):
            raise refuse("is no ID, LITERAL and LENGTH of a token")
        if int(match[1]) != len(ends):
            raise refuse(f"has id {int(match[1])}, not {len(ends)}: ids go up by one from 1")
        if len(ends) >= MAX_TOKENS:
            raise refuse(f"is beyond the {MAX_TOKENS} tokens that a vocabulary may have")
        try:
            token = unescape(match[4] if match[3] is None else match[3], bool(match[2]))
        except ValueError:
            raise refuse("has a LITERAL that Python would not write") from None
        if not 1 <= len(token) <= MAX_TOKEN_BYTES:
            raise refuse(f"has a token of {len(token)} bytes, must be 1 to {MAX_TOKEN_BYTES}")
        if int(match[5]) != len(token):
            raise refuse(f"says {int(match[5])} bytes, and its token has {len(token)}")
        texts += token
        ends.append(len(texts))
        if len(token) == 1:
            single.add(token)
        at = size if end < 0 else end + 1
    for byte in range(256):
        if bytes([byte]) not in single:
            problem = f"has no token for the byte {byte:#04x}, so that not every text can be written"
            raise ModelFormatError(path, "vocabulary", problem, REMEDY)
    return bytes(texts), ends


def unescape(literal: bytes, is_bytes: bool) -> bytes:
    """What stands between the quotes of a Python literal, as bytes. Raises ValueError for what Python never writes.

    is_bytes: of a bytes literal, in which \\x80 is a byte; in a text it is a character.
    """
    if is_bytes and not literal.isascii():
        raise ValueError
    if not is_bytes:
        literal.decode()  # raises a kind of ValueError, and so does a lone half of a pair of surrogates below

    def value(match: re.Match[bytes]) -> bytes:
        letter, x, u, long = match.groups()
        if letter:
            return LETTERS.get(letter, letter)
        if is_bytes and not x:
            raise ValueError
        number = int(x or u or long or b"", 16)  # of nothing, where this is no escape: a ValueError
        return bytes([number]) if is_bytes else chr(number).encode()

    return ESCAPE.sub(value, literal)
