"""Hugging Face's tokenizer.json, through the tokenizers library.

The library encodes. Decoding is ours, since text streams token by token: a token's bytes are told by the kind of
decoder that the file names, byte-level (GPT-2's, of Llama 3 and Qwen) or SentencePiece-like (of Llama 2 and Mistral).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer as Library

from llamagpu.checkpoint import AddedToken
from llamagpu.config import LARGEST
from llamagpu.errors import ModelFormatError, first_line
from llamagpu.tokenizers.base import Tokenizer
from llamagpu.tokenizers.byte_letters import byte_level
from llamagpu.tokenizers.json_bounds import bounds_of, check_model
from llamagpu.tokenizers.last_words import last_words
from llamagpu.tokenizers.watched_call import seconds_for, watched
from llamagpu.tokenizers.whole_text import longest_piece

MODELS = ("BPE", "Unigram")
REMEDY = "the file is damaged, or of a kind that llamagpu does not know: download it again, or give another tokenizer"
END = "<|endoftext|>"
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
SLOW = "makes a text take longer than any other tokenizer"
PROBES = ("a", "1", " ", "\n", "é", "猫")  # texts to find out what a tokenizer puts around a text


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json. Special tokens in a text are text. Raises ModelFormatError if ``data`` is anything else.

    bos_id: what the file's post-processor puts before a text, None where nothing. eos_id: what it puts after one, or a
    special token 0 of the name <|endoftext|> (of the Pile's models), and else unknown (Checkpoint.stop_tokens has it);
    encode() never adds it.
    """

    says_bos = True

    def __init__(self, data: bytes, path: Path) -> None:
        self.path, self.data, self.is_stuck = path, data, False
        self.bounds = bounds_of(data, self.error)
        with self.library_errors("is no tokenizer.json that can be read"):
            self.library = self.open_library()
            model = type(self.library.model).__name__
            dropout = getattr(self.library.model, "dropout", None)
            decoder = self.library.decoder and json.loads(self.library.decoder.__getstate__())
            self.count_tokens()
        check_model(self.library.model, self.error)
        if model not in MODELS:
            raise self.error("model", f"is of type {model[:40]!r}, not {' or '.join(MODELS)}")
        if dropout:
            raise self.error("dropout", "makes the tokens of a text random")
        if not 0 < self.vocab_size <= LARGEST["vocab_size"]:
            raise self.error("vocab", f"has ids up to {self.vocab_size - 1}, must be below {LARGEST['vocab_size']}")
        try:
            self.piece_bytes = piece_decoder(decoder)
        except ValueError as error:
            raise self.error("decoder", str(error)) from None
        self.bos_id, self.eos_id = self.around_a_text()
        if self.eos_id is None and self._controls.get(END) == 0:
            self.eos_id = 0
        self.adds_leading_space = self.strips_leading_space()

    def open_library(self) -> Library:
        library = Library.from_buffer(self.data)
        library.no_truncation()  # a file may ask for both
        library.no_padding()
        library.encode_special_tokens = True
        return library

    def count_tokens(self) -> None:
        """What is known of the added tokens, and how many tokens there are."""
        self.added: dict[int, bytes] = {}
        self._controls: dict[str, int] = {}
        for token, about in self.library.get_added_tokens_decoder().items():
            self.added[token] = b"" if about.special else about.content.encode()
            if about.special:
                self._controls[about.content] = token
        ids = self.library.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1
        self.n_added_at_end = 0
        while self.vocab_size - 1 - self.n_added_at_end in self.added:
            self.n_added_at_end += 1

    def add_tokens(self, added: Mapping[int, AddedToken], controls: Sequence[str]) -> None:
        """As transformers does: the id is that of the text in the vocabulary, else the next one."""
        with self.library_errors("cannot take on the tokens of tokenizer_config.json"):
            known = {about.content: about for about in self.library.get_added_tokens_decoder().values()}
            wanted = [LibraryToken(about.text, **options(about)) for _, about in sorted(added.items())]
            told = {about.content for about in wanted}
            for text in controls:
                about = known.get(text)
                if about is None and text not in told:
                    wanted.append(LibraryToken(text, special=True, normalized=False))
                elif about is not None and not about.special:
                    wanted.append(as_control(about))
            wanted = [about for about in wanted if known.get(about.content) != about]
            if wanted:
                self.library.add_tokens(wanted)
                self.count_tokens()
        self.__dict__.pop("_control_pattern", None)

    def id_of(self, text: str) -> int | None:
        token: int | None = self.library.token_to_id(text)
        return token

    def text_of(self, token: int) -> str | None:
        text: str | None = self.library.id_to_token(token)
        return text

    def encode_text(self, text: str) -> list[int]:
        self.bounds.check(text)
        with self.library_errors("cannot encode this text"):
            ids: list[int] = self.encoding(text, add_special_tokens=False).ids
        return ids

    def encoding(self, text: str, add_special_tokens: bool) -> Any:
        """What the library makes of a text. Where its regular expressions are new to us, waiting for it has an end."""
        library = self.library
        if self.bounds.is_known:
            return library.encode(text, add_special_tokens=add_special_tokens)
        if self.is_stuck:
            raise self.error("pattern", SLOW)
        try:  # of encode_batch, since encode lets no other thread run
            return watched(
                lambda: library.encode_batch([text], add_special_tokens=add_special_tokens)[0], seconds_for(text)
            )
        except (TimeoutError, KeyboardInterrupt) as error:
            self.library = self.open_library()  # the other thread has the one before, perhaps for ever
            if isinstance(error, KeyboardInterrupt):
                raise
            self.is_stuck = True
            raise self.error("pattern", SLOW) from None

    @property
    def longest_piece(self) -> int:
        return longest_piece(self.library)

    @property
    def controls(self) -> Mapping[str, int]:
        return self._controls

    def _with_controls(self, text: str, at_start: bool) -> list[int]:
        """The library's own way: it knows of spaces that a control token takes with it."""
        front = "\n" if not at_start and self.adds_leading_space else ""  # see encode_more
        self.library.encode_special_tokens = False
        try:
            n_front = len(self.encode_text(front)) if front else 0
            return self.encode_text(front + text)[n_front:]
        finally:
            self.library.encode_special_tokens = True

    def token_bytes(self, token: int) -> bytes:
        known = self.added.get(token)
        if known is not None:
            return known
        piece = self.library.id_to_token(token) if token < self.vocab_size else None
        return b"" if piece is None else self.piece_bytes(piece)

    def around_a_text(self) -> tuple[int | None, int | None]:
        """What the post-processor puts before a text and after it. Raises ModelFormatError."""
        with self.library_errors("cannot encode a letter"):
            probes = (self.encoding(text, add_special_tokens=True) for text in PROBES)
            probe = next((probe for probe in probes if not all(probe.special_tokens_mask)), None)
        if probe is None:
            raise self.error("vocab", "holds no token for any letter")
        ids, mask = probe.ids, probe.special_tokens_mask
        start, end = mask.index(0), len(mask) - mask[::-1].index(0)
        front, back = ids[:start], ids[end:]
        if any(mask[start:end]) or len(front) > 1 or not all(token < self.vocab_size for token in front + back):
            raise self.error("post_processor", "puts other tokens into a text than one of the vocabulary at its start")
        return front[0] if front else None, back[0] if len(back) == 1 else None

    def strips_leading_space(self) -> bool:
        """Whether encoding puts a space before a text that decoding takes off."""
        with self.library_errors("cannot encode a letter"):
            ids = self.encoding("a", add_special_tokens=False).ids
            return self.token_bytes(ids[0])[:1] == b" " and self.library.decode(ids[:1])[:1] != " " if ids else False

    def error(self, field: str, problem: str) -> ModelFormatError:
        return ModelFormatError(self.path, f"tokenizer.json {field}", problem, REMEDY)

    @contextmanager
    def library_errors(self, problem: str) -> Iterator[None]:
        """Whatever the library raises as ModelFormatError; its panics are no Exception, and tell of themselves."""
        try:
            with quiet_stderr():
                yield
        except BaseException as error:
            if isinstance(error, ModelFormatError) or not (
                isinstance(error, Exception) or type(error).__name__ == "PanicException"
            ):
                raise
            raise self.error("content", f"{problem} ({first_line(error)[:200]})") from None


def options(about: AddedToken) -> dict[str, bool]:
    """How a token is found in a text, in the library's words."""
    found = asdict(about)
    del found["text"]
    return found


def as_control(about: LibraryToken) -> LibraryToken:
    return LibraryToken(
        about.content, special=True, normalized=False, lstrip=about.lstrip, rstrip=about.rstrip,
        single_word=about.single_word,
    )  # fmt: skip


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """What is written to the file descriptor 2 inside goes nowhere."""
    try:
        kept = os.dup(2)
    except OSError:  # closed by the caller
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with last_words("tokenizers", kept):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def piece_decoder(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """How a token's text in the vocabulary becomes bytes. Raises ValueError for kinds that cannot be streamed."""
    steps = list(flatten(decoder))
    kinds = [step["type"] for step in steps]
    for kind in kinds:
        if kind not in ("ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace"):
            raise ValueError(f"is of type {kind[:40]!r}, which this version does not know")
    if not steps:
        raise ValueError("is missing, so that no token has a text")
    if "ByteLevel" in kinds:
        if not set(kinds) <= {"ByteLevel", "Fuse"}:
            raise ValueError("is byte-level and something else as well")
        return byte_level
    replaced: list[tuple[str, str]] = []
    for i, step in enumerate(steps):
        if step["type"] == "Metaspace":
            replaced.append((step["replacement"], " "))
        elif step["type"] == "Replace":
            pattern = step["pattern"].get("String", "")
            if len(pattern) != 1:
                raise ValueError("replaces more than single characters")
            replaced.append((pattern, step["content"]))
        elif step["type"] == "Strip" and not (
            (step["content"], step["stop"]) == (" ", 0) and step["start"] <= 1 and "Fuse" in kinds[:i]
        ):  # of one leading space, see strips_leading_space
            raise ValueError("strips more than one space before a text")

    def sentencepiece_like(piece: str) -> bytes:
        as_byte = BYTE_TOKEN.fullmatch(piece) if "ByteFallback" in kinds else None
        if as_byte:
            return bytes([int(as_byte[1], 16)])
        for pattern, content in replaced:
            piece = piece.replace(pattern, content)
        return piece.encode()

    return sentencepiece_like


def flatten(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a decoder, which may be sequences of steps."""
    if decoder and decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from flatten(inner)
    elif decoder:
        yield decoder
