"""SentencePiece's tokenizer.model, through the sentencepiece library."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import sentencepiece

from llamagpu.errors import ModelFormatError, first_line
from llamagpu.tokenizers.base import Tokenizer
from llamagpu.tokenizers.json_bounds import longest_of_charsmap
from llamagpu.tokenizers.last_words import last_words
from llamagpu.tokenizers.sentencepiece_proto import charsmaps

MAX_GROWTH = 32  # of the longest text that the table of letters makes of one; Unicode's has 18
SPACES = "  a   a "  # which some models take for one each, or none
REMEDY = "the file is damaged or no tokenizer.model: fetch it again, or give another --tokenizer"


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer.model (a protobuf). Raises ModelFormatError if ``data`` is anything else."""

    def __init__(self, data: bytes, path: Path) -> None:
        try:
            longest = max(map(longest_of_charsmap, charsmaps(data)), default=0)
            self.rewrites = any(charsmaps(data))
            if longest > MAX_GROWTH:
                raise ValueError(f"it makes {longest} characters of one")
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=data)
            self.vocab_size = self.processor.vocab_size()
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
        return {processor.id_to_piece(i): i for i in range(self.vocab_size) if processor.is_control(i)}

    @property
    def longest_piece(self) -> int:
        """Known where nothing is normalised, and a letter that is no piece becomes its bytes."""
        rare = [self.processor.is_byte(token) for token in self.processor.encode("\U0010fffd")]
        if self.rewrites or not all(rare[-4:]) or self.decode(self.encode_text(SPACES)) != SPACES:
            return 0
        return max(len(self.token_bytes(token)) for token in range(self.vocab_size))

    def encode_text(self, text: str) -> list[int]:
        with last_words("sentencepiece"):
            ids: list[int] = self.processor.encode(text)
        return ids

    def token_bytes(self, token: int) -> bytes:
        processor = self.processor
        if token >= self.vocab_size or processor.is_control(token):
            return b""
        piece: str = processor.id_to_piece(token)
        if processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()
