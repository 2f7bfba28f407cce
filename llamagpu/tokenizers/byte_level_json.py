"""A tokenizer.json written from a byte-level BPE vocabulary: tokens, merges, and how text is split before them."""

from __future__ import annotations

import json
from typing import Any

from llamagpu.formats.gguf_splits import Split


def byte_level_json(
    tokens: list[str],
    merges: list[str],
    special: dict[int, bool],
    split: Split,
    bos: int | None,
    add_bos: bool | None,
) -> bytes:
    """tokens: in the order of their ids, bytes written as GPT-2 does. merges: "left right", the first the best.

    special: ids of tokens that are cut out of a text before all else: whether they are control tokens. bos: id of the
    token that begins a text. add_bos: whether it does; None for what is usual with this split. Raises ValueError for
    tokens that are there twice, and for merges that are none.
    """
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
