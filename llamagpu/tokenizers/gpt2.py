"""GPT-2's tokenizer: ranks as in a tiktoken file, cut by GPT-2's expression, with one control token after them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llamagpu.tokenizers.gpt2_pair import END
from llamagpu.tokenizers.last_words import last_words
from llamagpu.tokenizers.tiktoken import RankedTokenizer

# As published with tiktoken.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
MAX_SPACES = 500_000  # in a row: the library's regular expressions overflow on a million


class Gpt2Tokenizer(RankedTokenizer):
    """Ids are those of tiktoken's "gpt2", encode_ordinary. Raises ModelFormatError if ``data`` holds no ranks.

    Nothing goes before a text, and nothing ends it: of <|endoftext|>, where a model says so, the next text follows.
    """

    bos_id = eos_id = None

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(data, path, PATTERN, n_controls=1)

    @property
    def controls(self) -> Mapping[str, int]:
        return {END: len(self.tokens)}

    def encode_text(self, text: str) -> list[int]:
        with last_words("tiktoken"):
            return [token for part in cut_spaces(text) for token in self.encoding.encode_ordinary(part)]

    def token_bytes(self, token: int) -> bytes:
        """The text of <|endoftext|> too, as tiktoken has it: it ends nothing, and so should be seen."""
        return END.encode() if token == len(self.tokens) else super().token_bytes(token)


def cut_spaces(text: str) -> Iterator[str]:
    """The text, cut only within spaces that are too many for the library."""
    start = 0
    for run in re.finditer(r"\s+", text) if len(text) > MAX_SPACES else ():
        for end in range(run.start() + MAX_SPACES, run.end(), MAX_SPACES):
            yield text[start:end]
            start = end
    yield text[start:]
