"""The tokenizer of models whose tokens are bytes, such as rwkv.cpp's small test models: id and byte are the same."""

from __future__ import annotations

from pathlib import Path

from llamagpu.errors import ModelFormatError
from llamagpu.tokenizers.base import Tokenizer


class BytesTokenizer(Tokenizer):
    """256 tokens, none of which begins or ends a text. It has no file: ``data`` is empty, else ModelFormatError."""

    vocab_size, bos_id, eos_id, adds_leading_space = 256, None, None, False
    longest_piece = 1

    def __init__(self, data: bytes, path: Path) -> None:
        if data:
            problem = f"has {len(data)} bytes, and a tokenizer of bytes needs none"
            raise ModelFormatError(path, "tokenizer", problem, "convert the model again")

    def encode_text(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""
