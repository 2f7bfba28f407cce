"""Llama 3's tokenizer.model: lines of a token in base64 and its rank, through the tiktoken library.

Byte-pair encoding: text is cut by a regular expression, and within each piece the adjacent pair whose join has the
lowest rank is merged first. The control tokens are not in the file: they follow the ranks, in an order fixed by Meta.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import tiktoken

from llamagpu.errors import ModelFormatError, first_line
from llamagpu.tokenizers.base import Tokenizer
from llamagpu.tokenizers.last_words import last_words

MAX_RANKS = 1 << 19
MAX_TOKEN_BYTES = 1 << 12
REMEDY = "the file is damaged or no tokenizer.model: fetch it again, or give another tokenizer"

LLAMA3_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
N_LLAMA3_CONTROLS = 256
LLAMA3_CONTROLS = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|eom_id|>": 8, "<|eot_id|>": 9}  # after the ranks
# Of those that chat templates write, the others; the first and the last since Llama 3.1.
LLAMA3_TEMPLATE_CONTROLS = {
    "<|finetune_right_pad_id|>": 4, "<|start_header_id|>": 6, "<|end_header_id|>": 7, "<|python_tag|>": 10
}  # fmt: skip
# Meta's code cuts a text into these before it encodes: the library's regular expressions overflow on longer ones.
MAX_CHUNK, MAX_RUN = 400_000, 25_000


class RankedTokenizer(Tokenizer):
    """A file of ranks, and the expression by which text is cut before. Raises ModelFormatError if ``data`` is none.

    n_controls: how many control tokens follow the ranks.
    """

    adds_leading_space = False

    def __init__(self, data: bytes, path: Path, pattern: str, n_controls: int) -> None:
        self.tokens = parse_ranks(data, path)
        self.vocab_size = len(self.tokens) + n_controls
        self.encoding = encoding_of(self.tokens, path, pattern)

    @property
    def longest_piece(self) -> int:
        return max(map(len, self.tokens))

    def token_bytes(self, token: int) -> bytes:
        return self.tokens[token] if token < len(self.tokens) else b""


class TiktokenTokenizer(RankedTokenizer):
    """A file of ranks with Llama 3's pattern and control tokens. Raises ModelFormatError if ``data`` is none."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(data, path, LLAMA3_PATTERN, N_LLAMA3_CONTROLS)
        self.bos_id, self.eos_id, *others = (len(self.tokens) + place for place in LLAMA3_CONTROLS.values())
        self.stop_ids = tuple(others)

    @property
    def controls(self) -> Mapping[str, int]:
        places = {**LLAMA3_CONTROLS, **LLAMA3_TEMPLATE_CONTROLS}
        return {text: len(self.tokens) + place for text, place in places.items()}

    def encode_text(self, text: str) -> list[int]:
        with last_words("tiktoken"):
            return [token for part in cut(text) for token in self.encoding.encode_ordinary(part)]


def encoding_of(tokens: Sequence[bytes], path: Path, pattern: str) -> tiktoken.Encoding:
    """The library's encoder of tokens by rank. It knows no control tokens: text never becomes one.

    Raises ModelFormatError for tokens that are there twice, bytes without one, and patterns that are none.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        raise ModelFormatError(path, "tokenizer", "has a token twice", REMEDY)
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise ModelFormatError(path, "tokenizer", f"has no token for the byte {byte:#04x}", REMEDY)
    try:
        return tiktoken.Encoding(path.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        raise ModelFormatError(path, "pattern", f"is no regular expression ({first_line(error)})", REMEDY) from None


def parse_ranks(data: bytes, path: Path) -> Sequence[bytes]:
    """The tokens by rank. Ranks must be 0, 1, 2, ..., in any order of lines."""
    if data.count(b"\n") > MAX_RANKS:
        raise ModelFormatError(path, "tokenizer", f"has more than {MAX_RANKS} lines", REMEDY)
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines()):
        if not line:
            continue
        try:
            text, rank_text = line.split()
            token = binascii.a2b_base64(text, strict_mode=True)
            if not rank_text.isdigit() or len(rank_text) > 8 or not 1 <= len(token) <= MAX_TOKEN_BYTES:
                raise ValueError
        except ValueError:
            problem = f"line {number + 1} is no token in base64 and its rank: {line[:40]!r}"
            raise ModelFormatError(path, "tokenizer", problem, REMEDY) from None
        if int(rank_text) in tokens:
            raise ModelFormatError(path, "tokenizer", f"has rank {int(rank_text)} twice", REMEDY)
        tokens[int(rank_text)] = token
    if not tokens or max(tokens) != len(tokens) - 1:
        problem = f"has {len(tokens)} ranks up to {max(tokens, default=0)}, not one after another"
        raise ModelFormatError(path, "tokenizer", problem, REMEDY)
    return [tokens[rank] for rank in range(len(tokens))]


def cut(text: str) -> Iterator[str]:
    """The parts that are encoded each by itself: where a run of spaces, or of other characters, grows too long."""
    for at in range(0, len(text), MAX_CHUNK):
        chunk = text[at : at + MAX_CHUNK]
        start = end = 0
        if len(chunk) > MAX_RUN:
            for _, run in groupby(chunk, str.isspace):
                run_start = end
                end += sum(1 for _ in run)
                for place in range(run_start + MAX_RUN, end, MAX_RUN):
                    yield chunk[start:place]
                    start = place
        yield chunk[start:]
