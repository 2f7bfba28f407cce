"""The types of the tokens in a GGUF file; where it does not give them, what the keys and the pieces say."""

from __future__ import annotations

import re

from llamagpu.formats.gguf_header import Header
from llamagpu.tokenizers.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED

PREFIX = "tokenizer.ggml."
OTHER_FILE = "give the model's own tokenizer with --tokenizer FILE, or get a newer file of the model"
CONTROL_KEYS = ("bos", "eos", "eot", "eom", "padding", "mask")
DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}  # llama.cpp's, of SentencePiece's vocabularies
BYTE_PIECE = re.compile(rb"<0x[0-9A-F]{2}>")
BAR = "\uff5c".encode()  # DeepSeek's
CONTROL_PIECE = re.compile(
    rb"<\|[^\s<>]{1,60}\|>|<"
    + BAR
    + rb"[^\s<>]{1,90}"
    + BAR
    + rb">|</?s>|<(bos|eos|pad|unk)>|<(start|end)_of_turn>|\[/?INST\]"
)
IN_BRACKETS = re.compile(rb"<.+>|\[.+\]", re.DOTALL)
FILLER = re.compile(rb"\[PAD\d+\]")  # what llama.cpp fills up to the model's rows with


def special_id(header: Header, name: str, default: int, n: int) -> int | None:
    """A token by its key; None where there is none. llama.cpp writes 2^32 - 1 for that, or an id that is no token's."""
    token = header.whole(f"{PREFIX}{name}", default)
    return token if 0 <= token < n else None


def read_types(header: Header, tokens: list[bytes], kind: str) -> list[int]:
    """The type of each token, by SentencePiece's numbers. kind: llama, gpt2 or rwkv."""
    n, key = len(tokens), f"{PREFIX}token_type"
    if key not in header.entries:
        return types_by_pieces(header, tokens, kind)
    types = header.numbers(key, "iu")
    if len(types) < n:
        raise header.refuse(key, f"has {len(types)} elements, tokens has {n}", OTHER_FILE)
    if not ((types >= 0) & (types <= BYTE)).all():
        raise header.refuse(key, "has a type that is not 0 to 6", OTHER_FILE)
    return [int(kind) or NORMAL for kind in types[:n]]  # 0 is llama.cpp's "undefined"


def types_by_pieces(header: Header, tokens: list[bytes], kind: str) -> list[int]:
    """Normal tokens, but for those that the keys name, and those that no text is written with."""
    n, types = len(tokens), [NORMAL] * len(tokens)
    if kind == "rwkv":
        last = next((i for i in range(n, 0, -1) if not FILLER.fullmatch(tokens[i - 1])), 0)
        return [CONTROL, *types[1:last], *[UNUSED] * (n - max(1, last))]
    bytes_of = {i for i, token in enumerate(tokens) if BYTE_PIECE.fullmatch(token)} if kind == "llama" else set()
    for i, token in enumerate(tokens):
        if CONTROL_PIECE.fullmatch(token):
            types[i] = CONTROL
        elif len(bytes_of) == 256 and i in bytes_of:  # with fewer of them no text can fall back on bytes
            types[i] = BYTE
    for name in CONTROL_KEYS:
        token_id = special_id(header, f"{name}_token_id", DEFAULTS.get(name, -1) if kind == "llama" else -1, n)
        if token_id is not None:
            types[token_id] = CONTROL
    unknown = special_id(header, "unknown_token_id", 0, n) if kind == "llama" else None
    if unknown is not None:
        types[unknown] = UNKNOWN
    return types


def with_one_unknown(types: list[int], tokens: list[bytes], said: int | None, kept: set[int]) -> list[int]:
    """The types with exactly one unknown token, as the sentencepiece library wants it.

    It is the one that the file names (``said``), or the first of that type, or one that no text needs. The others of
    that type become control tokens if they look so, and else normal ones: texts reach them, as in llama.cpp. kept: ids
    of BOS and EOS, which it cannot be.
    """
    of_type = [i for i, kind in enumerate(types) if kind == UNKNOWN]
    named = [said] if said is not None and (said in of_type or not of_type) else []
    needless = [i for kind in (UNUSED, CONTROL) for i, other in enumerate(types) if other == kind]
    chosen = next((i for i in [*named, *of_type, *needless] if i not in kept), None)
    out = list(types)
    for i in of_type:
        out[i] = CONTROL if i in kept or IN_BRACKETS.fullmatch(tokens[i]) else NORMAL
    if chosen is not None:
        out[chosen] = UNKNOWN
    return out
