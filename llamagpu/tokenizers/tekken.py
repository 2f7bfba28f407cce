"""Mistral's tekken.json: tokens in base64 by rank, the expression that splits text, and the control tokens.

Ids begin with the control tokens, ``default_num_special_tokens`` of them, named or not; the ranks follow. Of the ranks
only so many are used that all is ``default_vocab_size``.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamagpu.config import LARGEST
from llamagpu.errors import ModelFormatError
from llamagpu.tokenizers.base import Tokenizer
from llamagpu.tokenizers.tiktoken import MAX_TOKEN_BYTES, cut, encoding_of

REMEDY = "the file is damaged or no tekken.json: download it again, or give another tokenizer"
BOS, EOS = "<s>", "</s>"
# Those of files that do not list them, by their ids.
FIRST_CONTROLS = (
    "<unk>", BOS, EOS, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


class TekkenTokenizer(Tokenizer):
    """Ids are those of Mistral's own code. Raises ModelFormatError if ``data`` is anything else than a tekken.json."""

    adds_leading_space = False

    def __init__(self, data: bytes, path: Path) -> None:
        self.path = path
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self.error("JSON", f"is no valid JSON ({str(error)[:100]})") from None
        content = self.of_type(content, dict, "JSON")
        config = self.of_type(content.get("config"), dict, "config")
        self.vocab_size = self.number(config, "default_vocab_size", LARGEST["vocab_size"])
        self.n_special = self.number(config, "default_num_special_tokens", self.vocab_size - 1)
        pattern = self.of_type(config.get("pattern"), str, "config.pattern")
        tokens = self.read_tokens(self.of_type(content.get("vocab"), list, "vocab"), self.vocab_size - self.n_special)
        self.special = self.read_special(content.get("special_tokens"))
        self.tokens = tokens
        self._controls = {text: token for token, (text, _) in self.special.items()}
        self.bos_id, self.eos_id = self._controls.get(BOS), self._controls.get(EOS)
        self.encoding = encoding_of(tokens, path, pattern)

    @property
    def controls(self) -> Mapping[str, int]:
        return self._controls

    def encode_text(self, text: str) -> list[int]:
        return [self.n_special + rank for part in cut(text) for rank in self.encoding.encode_ordinary(part)]

    def token_bytes(self, token: int) -> bytes:
        if token >= self.n_special:
            return self.tokens[token - self.n_special] if token < self.vocab_size else b""
        text, is_control = self.special.get(token, ("", True))
        return b"" if is_control else text.encode()

    def read_tokens(self, vocab: list[Any], n: int) -> list[bytes]:
        """The first n tokens by rank."""
        if len(vocab) < n:
            raise self.error("vocab", f"has {len(vocab)} tokens, and the config asks for {n}")
        tokens: dict[int, bytes] = {}
        for place, entry in enumerate(vocab):
            entry = self.of_type(entry, dict, f"vocab {place}")
            rank = self.number(entry, "rank", len(vocab) - 1)
            try:
                token = binascii.a2b_base64(
                    self.of_type(entry.get("token_bytes"), str, f"vocab {place}"), strict_mode=True
                )
            except ValueError:
                raise self.error(f"vocab {place}", "is no base64") from None
            if not 1 <= len(token) <= MAX_TOKEN_BYTES or rank in tokens:
                raise self.error(f"vocab {place}", f"is of {len(token)} bytes, or has the rank {rank} of another")
            tokens[rank] = token
        return [tokens[rank] for rank in range(n)]

    def read_special(self, listed: Any) -> dict[int, tuple[str, bool]]:
        """Text by id, and whether it stands for no text."""
        if listed is None:
            return {i: (text, True) for i, text in enumerate(FIRST_CONTROLS[: self.n_special])}
        special: dict[int, tuple[str, bool]] = {}
        for place, entry in enumerate(self.of_type(listed, list, "special_tokens")):
            entry = self.of_type(entry, dict, f"special_tokens {place}")
            token = self.number(entry, "rank", self.n_special - 1)
            text = self.of_type(entry.get("token_str"), str, f"special_tokens {place}")
            if not text or token in special:
                raise self.error(f"special_tokens {place}", f"is empty, or has the id {token} of another")
            special[token] = text, entry.get("is_control") is not False
        if len({text for text, _ in special.values()}) != len(special):
            raise self.error("special_tokens", "hold the same text twice")
        return special

    def of_type(self, value: Any, kind: type, field: str) -> Any:
        if not isinstance(value, kind):
            raise self.error(field, f"is missing or no {kind.__name__}")
        return value

    def number(self, values: dict[str, Any], name: str, largest: int) -> int:
        value = values.get(name)
        if type(value) is not int or not 0 <= value <= largest:
            raise self.error(name, f"is {str(value)[:40]}, must be 0 to {largest}")
        return value

    def error(self, field: str, problem: str) -> ModelFormatError:
        return ModelFormatError(self.path, f"tekken.json {field}", problem, REMEDY)
