"""The vocabulary inside a GGUF file. ``data`` is a GGUF header with the keys tokenizer.ggml.* and nothing else.

Three kinds are read: "llama" (SentencePiece's BPE), rebuilt as a tokenizer.model for the sentencepiece library, "gpt2"
(byte-level BPE with merges), rebuilt as a tokenizer.json for the tokenizers library, and "rwkv", rebuilt as RWKV's own
World vocabulary. They are made when text comes: that takes up to a second for 128,000 tokens, which opening a model
must not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats.gguf_header import Header
from llamagpu.formats.gguf_splits import split_of
from llamagpu.tokenizers.base import Tokenizer
from llamagpu.tokenizers.byte_level_json import byte_level_json
from llamagpu.tokenizers.gguf_types import DEFAULTS, OTHER_FILE, PREFIX, read_types, special_id, with_one_unknown
from llamagpu.tokenizers.rwkv_world import unescape
from llamagpu.tokenizers.sentencepiece_proto import CONTROL, NORMAL, UNUSED, USER_DEFINED, model_proto

MAX_TOKENS = 1 << 19
SPACE = "\u2581".encode()  # SentencePiece's letter for a space


def open_gguf_tokenizer(data: bytes, path: Path) -> Tokenizer:
    """Raises ModelFormatError for vocabularies that cannot be rebuilt, naming the key."""
    from llamagpu.tokenizers import open_spec  # which knows this module

    return open_spec(rebuilt(data, path), path)


def rebuilt(data: bytes, path: Path) -> TokenizerSpec:
    """The same as a file of another kind. Raises as ``open_gguf_tokenizer`` does."""
    header = Header(data, path)
    kind = header.text(f"{PREFIX}model")
    if kind == "llama":
        return TokenizerSpec("sentencepiece", sentencepiece_model(header))
    if kind == "gpt2":
        return TokenizerSpec("huggingface", huggingface_json(header))
    if kind == "rwkv":
        return TokenizerSpec("rwkv_world", world_vocabulary(header))
    raise header.refuse(f"{PREFIX}model", f"is {str(kind)[:40]!r}; llama, gpt2 and rwkv are read", OTHER_FILE)


def read_tokens(header: Header) -> list[bytes]:
    n = header.n_elements(f"{PREFIX}tokens")
    if not 1 <= n <= MAX_TOKENS:
        raise header.refuse(f"{PREFIX}tokens", f"has {n} tokens, must be 1 to {MAX_TOKENS}", OTHER_FILE)
    return list(header.strings(f"{PREFIX}tokens"))


def sentencepiece_model(header: Header) -> bytes:
    """A tokenizer.model of what the header says, with llama.cpp's defaults where it says nothing."""
    tokens = read_tokens(header)
    n = len(tokens)
    types = read_types(header, tokens, "llama")
    bos, eos, unknown = (special_id(header, f"{name}_token_id", i, n) for name, i in DEFAULTS.items())
    if not header.flag(f"{PREFIX}add_bos_token", True):
        bos = None
    types = with_one_unknown(types, tokens, unknown, {token for token in (bos, eos) if token is not None})
    if bos is not None:
        types[bos] = CONTROL  # sentencepiece knows it by this
    return model_proto(
        pieces_of(tokens, types),
        read_scores(header, n).tolist(),
        types,
        bos,
        eos,
        add_dummy_prefix=header.flag(f"{PREFIX}add_space_prefix", True),
    )


def read_scores(header: Header, n: int) -> NDArray[np.float32]:
    """The scores of n tokens, the highest merged first; where there are none, the ids in order, as training has it."""
    if f"{PREFIX}scores" not in header.entries:
        return -np.arange(n, dtype=np.float32)
    scores = header.numbers(f"{PREFIX}scores", "fiu").astype(np.float32)[:n]
    if len(scores) != n or not np.isfinite(scores).all():
        raise header.refuse(f"{PREFIX}scores", f"are not {n} finite numbers", OTHER_FILE)
    return scores


def pieces_of(tokens: list[bytes], types: list[int]) -> list[bytes]:
    """The pieces as SentencePiece has them: spaces as U+2581, and none there twice.

    llama.cpp's converter writes plain spaces in user-defined tokens. Of pieces that are there twice, those that stand
    for no text (control tokens, unused ones) get a name of their own.
    """
    known = set(tokens)
    pieces = list(tokens)
    places: dict[bytes, list[int]] = {}
    for i, token in enumerate(tokens):
        spaced = token.replace(b" ", SPACE)
        if types[i] == USER_DEFINED and spaced not in known:
            pieces[i] = spaced
        places.setdefault(pieces[i], []).append(i)
    for ids in places.values():
        textless = [i for i in ids if types[i] in (CONTROL, UNUSED)]
        for i in textless[len(ids) == len(textless) :]:  # one of them keeps the name
            pieces[i] = b"[TWIN_%d]" % i if tokens[i] else b""
    return pieces


def huggingface_json(header: Header) -> bytes:
    """A tokenizer.json of what the header says."""
    raw_tokens = read_tokens(header)
    n = len(raw_tokens)
    types = read_types(header, raw_tokens, "gpt2")
    try:
        tokens = [str(token, "utf-8") for token in raw_tokens]
        merges = [str(merge, "utf-8") for merge in header.strings(f"{PREFIX}merges")]
    except UnicodeDecodeError:
        raise header.refuse(f"{PREFIX}tokens", "or its merges are no UTF-8 text", OTHER_FILE) from None
    special = {token: kind == CONTROL for token, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)}
    add_bos = header.flag(f"{PREFIX}add_bos_token", True) if f"{PREFIX}add_bos_token" in header.entries else None
    try:
        split = split_of(header.text(f"{PREFIX}pre"))
        return byte_level_json(tokens, merges, special, split, special_id(header, "bos_token_id", -1, n), add_bos)
    except ValueError as error:
        raise ModelFormatError(path=header.path, field="tokenizer", problem=str(error), remedy=OTHER_FILE) from None


def world_vocabulary(header: Header) -> bytes:
    """The lines of an RWKV World vocabulary. llama.cpp writes a token as Python writes the inside of a bytes literal,
    puts a control token before them, and fills up to the model's rows with unused ones."""
    tokens = read_tokens(header)
    types = read_types(header, tokens, "rwkv")
    while types and types[-1] == UNUSED:
        types.pop()
    if not types or types[0] != CONTROL or not set(types[1:]) <= {NORMAL, USER_DEFINED}:
        problem = "are not those of RWKV World: a control token, then tokens, then unused ones"
        raise header.refuse(f"{PREFIX}token_type", problem, OTHER_FILE)
    lines = []
    for i, escaped in enumerate(tokens[: len(types)]):
        try:
            token = unescape(escaped, is_bytes=True)
        except ValueError:
            problem = f"is no text as Python writes bytes at token {i}: {escaped[:40]!r}"
            raise header.refuse(f"{PREFIX}tokens", problem, OTHER_FILE) from None
        lines.append(b"%d %s %d\n" % (i, repr(token).encode(), len(token)))
    return b"".join(lines[1:])
