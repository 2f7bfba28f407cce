"""A tokenizer.json written from a byte-level BPE vocabulary, as llama.cpp's files hold it: tokens, merges and a name.

The name ("pre") says how text is split before the merges. The files do not hold the regular expressions themselves;
these are the published ones of the models that the names stand for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Split:
    """patterns: one after the other, each cuts the pieces of those before it. bos: whether text begins with it where
    the file does not say. ignore_merges: a piece that is a token is that token, whatever the merges."""

    patterns: tuple[str, ...]
    bos: bool = False
    ignore_merges: bool = False
    nfc: bool = False


LLAMA3 = Split((rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{REST}",), bos=True, ignore_merges=True)
QWEN2_PATTERN = rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{REST}"
DIGITS = Split((r"\p{N}", GPT2))
SPLITS = {
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "llama-bpe": LLAMA3,
    "smaug-bpe": Split(LLAMA3.patterns),
    "qwen2": Split((QWEN2_PATTERN,), nfc=True),
    "deepseek-r1-qwen": Split((QWEN2_PATTERN,)),
    "gpt-2": Split((GPT2,)),
    "smollm": DIGITS,
    "starcoder": DIGITS,
    "refact": DIGITS,
    "tekken": Split((TEKKEN,), bos=True, ignore_merges=True),
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def byte_level_json(
    tokens: list[str],
    merges: list[str],
    special: dict[int, bool],
    pre: str,
    bos: int | None,
    add_bos: bool | None,
) -> bytes:
    """tokens: in the order of their ids, bytes written as GPT-2 does. merges: "left right", the first the best.

    special: ids of tokens that are cut out of a text before all else: whether they are control tokens. pre: a name of
    SPLITS. bos: id of the token that begins a text. add_bos: whether it does; None for what is usual. Raises
    ValueError for an unknown ``pre``, for tokens that are there twice, and for merges that are none.
    """
    if pre not in SPLITS:
        raise ValueError(f"is of pre-tokenizer {pre[:40]!r}; known are {', '.join(SPLITS)}")
    split = SPLITS[pre]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("holds the same token twice")
    if not merges or not all(0 < merge.find(" ", 1) < len(merge) - 1 for merge in merges):
        raise ValueError("holds no merges, or one that is not of two tokens")
    patterns: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in split.patterns
    ]
    begins_with_bos = bos is not None and (split.bos if add_bos is None else add_bos)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": is_control}
            for i, is_control in special.items() if tokens[i]
        ],
        "normalizer": {"type": "NFC"} if split.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*patterns, byte_level]},
        "post_processor": begin_with(tokens[bos], bos) if bos is not None and begins_with_bos else byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": split.ignore_merges,
            "vocab": vocabulary, "merges": [merge.split(" ", 1) for merge in merges],
        },
    }  # fmt: skip
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def begin_with(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts a token before each text."""
    first: dict[str, Any] = {"SpecialToken": {"id": token, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }  # fmt: skip
