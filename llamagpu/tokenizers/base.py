"""What every tokenizer offers, and how bytes become text while they stream."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from llamagpu.checkpoint import AddedToken, TokenFacts
from llamagpu.errors import UsageError


class Tokenizer(ABC):
    """Text to token ids and back. Ids are below ``vocab_size``.

    bos_id: what goes before a plain text; None where nothing does. names: special tokens by the names that chat
    templates have for them; they may name a bos_token that goes before no plain text. See special_tokens.py.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    # Tokens at the end of the ids that were added to the vocabulary and learnt by no one, for all that is known.
    n_added_at_end = 0
    # SentencePiece puts a space before the text it encodes; decoding takes it off again.
    adds_leading_space: bool
    stop_ids: tuple[int, ...] = ()  # others than bos_id and eos_id that end a text
    names: Mapping[str, str | list[str]] = {}  # never changed in place
    facts: TokenFacts | None = None  # what the files around the tokenizer say, where there are some
    says_bos = False  # its own file says what goes before a text
    begins_anew = True  # a text after a control token has the space before it, as in Meta's own code

    @property
    def controls(self) -> Mapping[str, int]:
        """Control tokens by the text that chat templates write for them. In any other text it is text."""
        return {}

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Ids of non-empty ``text``, without BOS."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; empty for control tokens. A token may be part of a character.

        Models pad their vocabulary, so ids from vocab_size on are no error: they stand for nothing.
        """

    def add_tokens(self, added: Mapping[int, AddedToken], controls: Sequence[str]) -> None:  # noqa: B027
        """Take on tokens beside the trained vocabulary, by their ids, and control tokens by their texts, with an id at
        the end where they have none. Kinds whose control tokens are known all along need none."""

    def id_of(self, text: str) -> int | None:
        """The token of exactly this text; None where there is none."""
        return self.controls.get(text)

    def text_of(self, token: int) -> str | None:
        """How a vocabulary writes a token; None where it has none."""
        return next((text for text, found in self.controls.items() if found == token), None)

    def encode(self, text: str, add_bos: bool = True, special: bool = False) -> list[int]:
        """Ids of ``text``, after the model's BOS where it has one.

        special: the texts of control tokens in it become those; a text that itself begins with BOS gets no second one.
        Raises UsageError for text that is not Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode at character {error.start}") from None
        bos = [self.bos_id] if add_bos and self.bos_id is not None else []
        if special:
            ids = self._with_controls(text, at_start=True)
            return ids if ids[:1] == bos else bos + ids
        return bos + (self.encode_text(text) if text else [])

    def find_control(self, text: str) -> str | None:
        """The first text of a control token in ``text``."""
        found = self._control_pattern.search(text)
        return found[0].strip() if found else None

    @property
    def longest_piece(self) -> int:
        """The most bytes of a text that one token stands for; 0 where a text may lose something before it is cut."""
        return 0

    @cached_property
    def _longest(self) -> int:
        return self.longest_piece and max(self.longest_piece, *(len(text.encode()) for text in self.controls), 1)

    def fewest_tokens(self, text: str) -> int:
        """``text`` has no fewer tokens than this, which is told without encoding it; 0 where nothing can be told."""
        if not self._longest:
            return 0
        n_bytes = len(text.encode(errors="replace")) - 2 * text.count("\u2581")  # which may be read as a space
        return -(-n_bytes // self._longest)

    def encode_more(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text`` as the middle of a longer one: no BOS, and no space before it that is not its own."""
        if special:
            return self._with_controls(text, at_start=False)
        if not text or not self.adds_leading_space:
            return self.encode(text, add_bos=False)
        front = self.encode("\n", add_bos=False)  # which no tokenizer merges with what follows, as far as we know
        ids = self.encode("\n" + text, add_bos=False)
        return ids[len(front) :] if ids[: len(front)] == front else self.encode(text, add_bos=False)

    def encode_rendered(self, text: str, guard: str, at_start: bool) -> list[int]:
        """Ids of what a chat template has rendered: texts of control tokens become those.

        guard: stands, in what users wrote, within all that looks like a control token, which so remains text. at_start:
        whether it opens the sequence.
        """
        parts = text.split(guard)
        return [token for i, part in enumerate(parts) for token in self._with_controls(part, at_start and i == 0)]

    def _with_controls(self, text: str, at_start: bool) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._control_pattern.split(text)):
            if i % 2:
                ids.append(self.controls[part] if part in self.controls else self.controls[part.strip()])
            elif part:
                anew = self.begins_anew if i else at_start
                ids += self.encode(part, add_bos=False) if anew else self.encode_more(part)
        return ids

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return self._pattern_of(self.controls)

    def _pattern_of(self, tokens: Mapping[str, int]) -> re.Pattern[str]:
        """Their texts, the longest first."""
        texts = sorted(tokens, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, texts)) + ")" if texts else "((?!))")

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` as one whole; bytes that are no UTF-8 become U+FFFD."""
        decoder = StreamDecoder(self)
        return "".join(map(decoder.feed, ids)) + decoder.finish()


class StreamDecoder:
    """Turns tokens into text one at a time, holding back a character until all its bytes are there.

    at_start: whether the first token opens the text, and so carries the space that the tokenizer added.
    What it returns over all calls is what ``Tokenizer.decode`` returns at once.
    """

    def __init__(self, tokenizer: Tokenizer, at_start: bool = True) -> None:
        self.tokenizer = tokenizer
        self.strip_space = at_start and tokenizer.adds_leading_space
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        piece = self.tokenizer.token_bytes(token)
        if piece and self.strip_space:
            piece = piece.removeprefix(b" ")
            self.strip_space = False
        return self.utf8.decode(piece)

    def finish(self) -> str:
        """What is left of an unfinished character."""
        return self.utf8.decode(b"", final=True)
