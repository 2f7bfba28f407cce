"""llama2.c's tokenizer.bin: u32 max_token_length, then for each id f32 score, u32 length, bytes.

Two dialects exist, alike but for ids 3 to 258, the byte tokens: text ``<0x00>`` to ``<0xFF>`` (llama2.c) or the
UTF-8 of U+0000 to U+00FF (llama2.rs). Both mean the 256 raw bytes. The vocabulary's size is not stored.

Encoding is SentencePiece's BPE: start from characters (bytes where a character is no token), and merge the adjacent
pair with the best score, the leftmost of equals, until none is left. Ids equal those of the sentencepiece library.
"""

from __future__ import annotations

import heapq
import math
import struct
from array import array
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from llamagpu.errors import ModelFormatError
from llamagpu.tokenizers.base import Tokenizer

UNKNOWN, BOS, EOS, FIRST_BYTE, FIRST_PIECE = 0, 1, 2, 3, 259
MAX_VOCAB_SIZE = 1 << 18
MAX_PIECE_BYTES = 1 << 16
REMEDY = "the file is damaged or no tokenizer.bin: fetch it again, or give another tokenizer"


class Llama2cTokenizer(Tokenizer):
    """A tokenizer.bin in either dialect. Raises ModelFormatError if ``data`` is anything else."""

    bos_id, eos_id, adds_leading_space = BOS, EOS, True
    controls: Mapping[str, int] = {"<s>": BOS, "</s>": EOS}

    def __init__(self, data: bytes, path: Path) -> None:
        self.data = data
        self.starts, self.ends, self.scores = parse(data, path)
        self.vocab_size = len(self.starts)
        check_byte_tokens(self, path)

    def piece(self, token: int) -> bytes:
        """The bytes of an entry as the file holds them, spaces already in place of U+2581."""
        return self.data[self.starts[token] : self.ends[token]]

    def token_bytes(self, token: int) -> bytes:
        if token in (BOS, EOS) or token >= self.vocab_size:
            return b""
        if FIRST_BYTE <= token < FIRST_PIECE:
            return bytes([token - FIRST_BYTE])
        return self.piece(token)

    @property
    def longest_piece(self) -> int:
        pieces = zip(self.starts[FIRST_PIECE:], self.ends[FIRST_PIECE:], strict=True)
        return max((end - start for start, end in pieces), default=1)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Piece to id; the first of equal pieces. Control and byte tokens never come from text."""
        ids: dict[bytes, int] = {}
        for token in range(FIRST_PIECE, self.vocab_size):
            ids.setdefault(self.piece(token), token)
        return ids

    def encode_text(self, text: str) -> list[int]:
        # U+2581 is how SentencePiece itself writes a space, so it reads one in the text as a space too.
        symbols = [char.encode() for char in " " + text.replace("\u2581", " ")]
        merged = merge(symbols, self.ids, self.scores)
        ids: list[int] = []
        for symbol in merged:
            known = self.ids.get(symbol)
            ids.extend([known] if known is not None else [FIRST_BYTE + byte for byte in symbol])
        return ids


def merge(symbols: list[bytes], ids: dict[bytes, int], scores: array[float]) -> list[bytes]:
    """Merge adjacent symbols, best score first and leftmost of equals; a heap makes it n log n."""
    n = len(symbols)
    before, after = list(range(-1, n - 1)), [*range(1, n), -1]
    alive: list[bytes | None] = list(symbols)
    heap: list[tuple[float, int, int, bytes]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0:
            joined = (alive[left] or b"") + (alive[right] or b"")
            token = ids.get(joined)
            if token is not None:
                heapq.heappush(heap, (-scores[token], left, right, joined))

    for i in range(n - 1):
        offer(i, i + 1)
    while heap:
        _, left, right, joined = heapq.heappop(heap)
        if alive[left] is None or alive[right] is None or after[left] != right:
            continue
        if (alive[left] or b"") + (alive[right] or b"") != joined:
            continue  # one of the two has grown since this pair was offered
        alive[left], alive[right] = joined, None
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [symbol for symbol in alive if symbol is not None]


def parse(data: bytes, path: Path) -> tuple[array[int], array[int], array[float]]:
    """Start and end offset of each entry's bytes, and its score. Holds 12 bytes per entry, not Python objects."""

    def refuse(token: int, problem: str) -> ModelFormatError:
        return ModelFormatError(path, f"token {token}", problem, REMEDY)

    starts, ends, scores = array("I"), array("I"), array("f")
    if len(data) < 4:
        raise ModelFormatError(path, "max_token_length", f"is missing: the file has {len(data)} bytes", REMEDY)
    if len(data) >= 1 << 32:
        raise ModelFormatError(path, "length", f"is {len(data)} bytes, too many for a tokenizer", REMEDY)
    max_token_length = struct.unpack_from("<I", data)[0]
    if not 1 <= max_token_length <= MAX_PIECE_BYTES:
        raise ModelFormatError(
            path, "max_token_length", f"is {max_token_length}, must be 1 to {MAX_PIECE_BYTES}", REMEDY
        )
    entry = struct.Struct("<fI")
    offset, size = 4, len(data)
    while offset < size:
        token = len(starts)
        if token >= MAX_VOCAB_SIZE:
            raise refuse(token, f"is beyond the {MAX_VOCAB_SIZE} entries that a tokenizer may have")
        if offset + entry.size > size:
            raise refuse(token, "is cut short")
        score, length = entry.unpack_from(data, offset)
        start = offset + entry.size
        # The control tokens are longer than the stated maximum in some files (max_token_length is of the raw pieces).
        if length == 0 or (length > max_token_length and token >= FIRST_PIECE):
            raise refuse(token, f"has length {length}, must be 1 to {max_token_length}")
        if start + length > size:
            raise refuse(token, f"has length {length}, past the end of the file")
        if not math.isfinite(score):
            raise refuse(token, f"has score {score}")
        starts.append(start)
        ends.append(start + length)
        scores.append(score)
        offset = start + length
    return starts, ends, scores


def check_byte_tokens(tokenizer: Llama2cTokenizer, path: Path) -> None:
    """Ids 3 to 258 must be the 256 bytes, all in one dialect."""
    if tokenizer.vocab_size < FIRST_PIECE:
        raise ModelFormatError(path, "vocab_size", f"is {tokenizer.vocab_size}, less than {FIRST_PIECE}", REMEDY)
    as_hex = len(tokenizer.piece(FIRST_BYTE)) == 6
    for byte in range(256):
        expected = b"<0x%02X>" % byte if as_hex else chr(byte).encode()
        if tokenizer.piece(FIRST_BYTE + byte) != expected:
            problem = f"is {tokenizer.piece(FIRST_BYTE + byte)[:20]!r}, not byte {byte:#04x}"
            raise ModelFormatError(path, f"token {FIRST_BYTE + byte}", problem, REMEDY)
