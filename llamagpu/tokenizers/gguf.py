"""The vocabulary inside a GGUF file. ``data`` is a GGUF header with the keys tokenizer.ggml.* and nothing else.

Three kinds are read: "llama" (SentencePiece's BPE), rebuilt as a tokenizer.model for the sentencepiece library, "gpt2"
(byte-level BPE with merges), rebuilt as a tokenizer.json for the tokenizers library, and "rwkv", rebuilt as RWKV's own
World vocabulary. They are made when text comes: that takes up to a second for 128,000 tokens, which opening a model
must not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats.gguf_header import Header
from llamagpu.tokenizers.base import Tokenizer
from llamagpu.tokenizers.byte_level_json import byte_level_json
from llamagpu.tokenizers.rwkv_world import unescape
from llamagpu.tokenizers.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    model_proto,
)

PREFIX = "tokenizer.ggml."
MAX_TOKENS = 1 << 19
OTHER_FILE = "give the model's own tokenizer with --tokenizer FILE, or get a newer file of the model"


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


def count_tokens(header: Header) -> int:
    n = header.n_elements(f"{PREFIX}tokens")
    if not 1 <= n <= MAX_TOKENS:
        raise header.refuse(f"{PREFIX}tokens", f"has {n} tokens, must be 1 to {MAX_TOKENS}", OTHER_FILE)
    return n


def read_types(header: Header, n: int) -> list[int]:
    """The type of each token, by SentencePiece's numbers."""
    types = header.numbers(f"{PREFIX}token_type", "iu")
    if len(types) != n:
        problem = f"has {len(types)} elements, tokens has {n}"
        raise header.refuse(f"{PREFIX}token_type", problem, OTHER_FILE)
    if not ((types >= 0) & (types <= BYTE)).all():
        raise header.refuse(f"{PREFIX}token_type", "has a type that is not 0 to 6", OTHER_FILE)
    return [int(kind) or NORMAL for kind in types]  # 0 is llama.cpp's "undefined"


def special_id(header: Header, name: str, default: int, n: int) -> int | None:
    """A token by its key; None where there is none. llama.cpp writes 2^32 - 1 for that, or an id that is no token's."""
    token = header.whole(f"{PREFIX}{name}", default)
    return token if 0 <= token < n else None


def sentencepiece_model(header: Header) -> bytes:
    """A tokenizer.model of what the header says, with llama.cpp's defaults where it says nothing."""
    n = count_tokens(header)
    types = read_types(header, n)
    scores = header.numbers(f"{PREFIX}scores", "f").astype(np.float32)
    if len(scores) != n or not np.isfinite(scores).all():
        raise header.refuse(f"{PREFIX}scores", f"are not {n} finite numbers", OTHER_FILE)
    bos = special_id(header, "bos_token_id", 1, n) if header.flag(f"{PREFIX}add_bos_token", True) else None
    eos = special_id(header, "eos_token_id", 2, n)
    unknown = special_id(header, "unknown_token_id", 0, n)
    if bos is not None:
        types[bos] = CONTROL  # sentencepiece knows it by this
    if unknown is not None and UNKNOWN not in types:
        types[unknown] = UNKNOWN  # sentencepiece must have one
    return model_proto(
        header.strings(f"{PREFIX}tokens"),
        scores.tolist(),
        types,
        bos,
        eos,
        add_dummy_prefix=header.flag(f"{PREFIX}add_space_prefix", True),
    )


def huggingface_json(header: Header) -> bytes:
    """A tokenizer.json of what the header says."""
    n = count_tokens(header)
    types = read_types(header, n)
    pre = header.text(f"{PREFIX}pre")
    if pre is None:
        raise header.refuse(f"{PREFIX}pre", "is missing: how text is split is not known", OTHER_FILE)
    try:
        tokens = [str(token, "utf-8") for token in header.strings(f"{PREFIX}tokens")]
        merges = [str(merge, "utf-8") for merge in header.strings(f"{PREFIX}merges")]
    except UnicodeDecodeError:
        raise header.refuse(f"{PREFIX}tokens", "or its merges are no UTF-8 text", OTHER_FILE) from None
    special = {token: kind == CONTROL for token, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)}
    add_bos = header.flag(f"{PREFIX}add_bos_token", True) if f"{PREFIX}add_bos_token" in header.entries else None
    try:
        return byte_level_json(tokens, merges, special, pre, special_id(header, "bos_token_id", -1, n), add_bos)
    except ValueError as error:
        raise ModelFormatError(path=header.path, field="tokenizer", problem=str(error), remedy=OTHER_FILE) from None


def world_vocabulary(header: Header) -> bytes:
    """The lines of an RWKV World vocabulary. llama.cpp writes a token as Python writes the inside of a bytes literal,
    puts a control token before them, and fills up to the model's rows with unused ones."""
    n = count_tokens(header)
    types = read_types(header, n)
    while types and types[-1] == UNUSED:
        types.pop()
    if not types or types[0] != CONTROL or not set(types[1:]) <= {NORMAL, USER_DEFINED}:
        problem = "are not those of RWKV World: a control token, then tokens, then unused ones"
        raise header.refuse(f"{PREFIX}token_type", problem, OTHER_FILE)
    lines = []
    for i, escaped in zip(range(len(types)), header.strings(f"{PREFIX}tokens"), strict=False):
        try:
            token = unescape(escaped, is_bytes=True)
        except ValueError:
            problem = f"is no text as Python writes bytes at token {i}: {escaped[:40]!r}"
            raise header.refuse(f"{PREFIX}tokens", problem, OTHER_FILE) from None
        lines.append(b"%d %s %d\n" % (i, repr(token).encode(), len(token)))
    return b"".join(lines[1:])
