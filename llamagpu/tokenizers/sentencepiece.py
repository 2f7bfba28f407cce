"""SentencePiece's tokenizer.model, through the sentencepiece library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import sentencepiece

from llamagpu.checkpoint import AddedToken
from llamagpu.errors import ModelFormatError, first_line
from llamagpu.tokenizers.base import Tokenizer
from llamagpu.tokenizers.json_bounds import longest_of_charsmap
from llamagpu.tokenizers.last_words import last_words
from llamagpu.tokenizers.sentencepiece_proto import charsmaps

MAX_GROWTH = 32  # of the longest text that the table of letters makes of one; Unicode's has 18
SPACES = "  a   a "  # which some models take for one each, or none
REMEDY = "the file is damaged or no tokenizer.model: fetch it again, or give another tokenizer"


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer.model (a protobuf). Raises ModelFormatError if ``data`` is anything else.

    Tokens that the files beside it add have ids after its pieces, or those of pieces.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        self.added: dict[int, AddedToken] = {}
        try:
            longest = max(map(longest_of_charsmap, charsmaps(data)), default=0)
            self.rewrites = any(charsmaps(data))
            if longest > MAX_GROWTH:
                raise ValueError(f"it makes {longest} characters of one")
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=data)
            self.vocab_size = self.n_pieces = self.processor.vocab_size()
            for token in range(self.vocab_size):
                self.token_bytes(token)  # a piece may be no UTF-8, or a byte token that names no byte
        except (RuntimeError, OSError, ValueError) as error:
            problem = f"is no valid SentencePiece model ({first_line(error)})"
            raise ModelFormatError(path, "tokenizer", problem, REMEDY) from None
        bos, eos = self.processor.bos_id(), self.processor.eos_id()
        self.bos_id = bos if bos >= 0 else None
        self.eos_id = eos if eos >= 0 else None
        self.adds_leading_space = "".join(self.processor.encode("a", out_type=str)).startswith("\u2581")

    @cached_property
    def controls(self) -> Mapping[str, int]:
        processor = self.processor
        pieces = {processor.id_to_piece(i): i for i in range(self.n_pieces) if processor.is_control(i)}
        return pieces | {about.text: token for token, about in self.added.items() if about.special}

    def add_tokens(self, added: Mapping[int, AddedToken], controls: Sequence[str]) -> None:
        self.added.update(added)
        self.vocab_size = max(self.n_pieces, *(token + 1 for token in self.added)) if self.added else self.n_pieces
        for text in controls:
            token = self.id_of(text)
            if token is None:
                token, self.vocab_size = self.vocab_size, self.vocab_size + 1
            if token not in self.added:
                self.added[token] = AddedToken(text)
            elif not self.added[token].special:
                self.added[token] = replace(self.added[token], special=True)
        first = self.vocab_size
        while first > self.n_pieces and first - 1 in self.added:
            first -= 1
        self.n_added_at_end = self.vocab_size - first
        for name in ("controls", "_control_pattern", "_users", "_user_pattern"):
            self.__dict__.pop(name, None)

    def id_of(self, text: str) -> int | None:
        found = next((token for token, about in self.added.items() if about.text == text), None)
        if found is not None:
            return found
        token: int = self.processor.piece_to_id(text)  # of the unknown one, where there is no such piece
        return token if 0 <= token < self.n_pieces and self.processor.id_to_piece(token) == text else None

    def text_of(self, token: int) -> str | None:
        if token in self.added:
            return self.added[token].text
        piece: str | None = self.processor.id_to_piece(token) if 0 <= token < self.n_pieces else None
        return piece

    @property
    def longest_piece(self) -> int:
        """Known where nothing is normalised, and a letter that is no piece becomes its bytes."""
        if any(about.lstrip or about.rstrip for about in self.added.values()):  # takes any number of spaces with it
            return 0
        rare = [self.processor.is_byte(token) for token in self.processor.encode("\U0010fffd")]
        if self.rewrites or not all(rare[-4:]) or self.decode(self.encode_text(SPACES)) != SPACES:
            return 0
        return max(len(self.token_bytes(token)) for token in range(self.vocab_size))

    def encode_text(self, text: str) -> list[int]:
        if not self.begins_anew and text[0] in " \u2581":
            return self.encode_more(text)  # the space that opens it is the one that would be put before it
        if not self._users:
            return self.encode_pieces(text)
        ids: list[int] = []
        for i, part in enumerate(self._user_pattern.split(text)):
            if i % 2:
                ids.append(self._users[part] if part in self._users else self._users[part.strip()])
            elif part:
                ids += self.encode_pieces(part) if self.begins_anew or i == 0 else self.encode_more(part)
        return ids

    def encode_pieces(self, text: str) -> list[int]:
        """Of a text in which no added token stands."""
        with last_words("sentencepiece"):
            ids: list[int] = self.processor.encode(text)
        return ids

    @cached_property
    def _users(self) -> Mapping[str, int]:
        """Added tokens that are text."""
        return {about.text: token for token, about in self.added.items() if not about.special}

    @cached_property
    def _user_pattern(self) -> re.Pattern[str]:
        return self._pattern_of(self._users)

    def _pattern_of(self, tokens: Mapping[str, int]) -> re.Pattern[str]:
        """Their texts, the longest first, with the spaces that they take along."""
        if not tokens:
            return super()._pattern_of(tokens)
        about = [self.added.get(token, AddedToken(text)) for text, token in tokens.items()]
        about.sort(key=lambda added: len(added.text), reverse=True)
        spaces = ("", r"\s*")
        parts = (f"{spaces[added.lstrip]}{re.escape(added.text)}{spaces[added.rstrip]}" for added in about)
        return re.compile(f"({'|'.join(parts)})")

    def token_bytes(self, token: int) -> bytes:
        processor, about = self.processor, self.added.get(token)
        if about is not None:
            return b"" if about.special else about.text.encode()
        if token >= self.n_pieces or processor.is_control(token):
            return b""
        piece: str = processor.id_to_piece(token)
        if processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()
