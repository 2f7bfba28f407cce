"""qwen.tiktoken of the first Qwen: ranks as in any tiktoken file, with Qwen's pattern and control tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from llamagpu.formats.gguf_splits import QWEN2
from llamagpu.tokenizers.tiktoken import RankedTokenizer, cut

# They follow the ranks, in this order.
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


class QwenTiktokenTokenizer(RankedTokenizer):
    """Ids are those of Qwen's own code, of a text in NFC. Raises ModelFormatError if ``data`` holds no ranks.

    Nothing goes before a text. <|endoftext|> ends one, and <|im_end|> a turn.
    """

    bos_id = None
    longest_piece = 0  # NFC may make a text shorter

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(data, path, QWEN2.patterns[0], len(CONTROLS))
        self.eos_id = len(self.tokens)
        self.stop_ids = (self.controls["<|im_end|>"],)

    @property
    def controls(self) -> Mapping[str, int]:
        return {text: len(self.tokens) + place for place, text in enumerate(CONTROLS)}

    def encode_text(self, text: str) -> list[int]:
        parts = cut(unicodedata.normalize("NFC", text))
        return [token for part in parts for token in self.encoding.encode_ordinary(part)]
