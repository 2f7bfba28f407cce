"""What files say of special tokens: tokenizer_config.json and those beside it, and the same as model.bin keeps it.

A model.bin keeps one JSON object under the names of tokenizer_config.json, so that both are read by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamagpu.checkpoint import AddedToken, TokenFacts
from llamagpu.config import LARGEST
from llamagpu.errors import ModelFormatError
from llamagpu.formats.json_file import read_json_object

# The names that chat templates have for special tokens, in the order in which transformers adds missing ones.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens")  # the second since transformers 5
TOKENIZER_CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")
DAMAGED = "the file is damaged: download it again"
# Files whose folder says more of them: others are read by themselves.
DESCRIBED = ("tokenizer.json", "tokenizer.model")


def facts_beside(tokenizer: Path) -> TokenFacts | None:
    """Of the folder of a tokenizer file, where it is one that such folders describe. Raises ModelFormatError."""
    return facts_of_folder(tokenizer.parent) if tokenizer.name in DESCRIBED else None


def facts_of_folder(folder: Path, tokenizer_config: dict[str, Any] | None = None) -> TokenFacts | None:
    """None where no file says anything. tokenizer_config: its values, where they have been read. Raises
    ModelFormatError."""
    path = folder / TOKENIZER_CONFIG
    if tokenizer_config is None:
        tokenizer_config = read_optional(path)
    facts = facts_of(path, tokenizer_config)
    there = path.exists()
    if not facts.added:  # which say it all, where they are there
        if (folder / MAP).exists():
            there, of_map = True, facts_of(folder / MAP, read_optional(folder / MAP))
            facts = replace(facts, names={**facts.names, **of_map.names}, more=of_map.more or facts.more)
        if (folder / ADDED).exists():
            there, facts = True, replace(facts, added=read_added(folder / ADDED))
    return facts if there else None


def read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def facts_of(path: Path, values: Mapping[str, Any]) -> TokenFacts:
    """``values``: what a tokenizer_config.json holds. Raises ModelFormatError."""
    names = {name: token_text(path, name, values[name]) for name in NAMES if name in values}
    more: list[str] = []
    for key in MORE:
        found = values.get(key) or []
        if isinstance(found, dict):  # names of the model's own
            names |= {name: token_text(path, key, value) for name, value in found.items()}
        elif isinstance(found, list):
            more += [text for value in found if (text := token_text(path, key, value))]
        else:
            raise ModelFormatError(path, key, "must be a list of texts", DAMAGED)
    ids = values.get("special_token_ids") or {}
    if not isinstance(ids, dict) or not all(type(token) is int and 0 <= token < 1 << 31 for token in ids.values()):
        raise ModelFormatError(path, "special_token_ids", "must be ids by names", DAMAGED)
    kind = values.get("tokenizer_class")
    return TokenFacts(
        names, tuple(dict.fromkeys(more)), ids, read_decoder(path, values.get("added_tokens_decoder") or {}),
        flag(path, values, "add_bos_token"), flag(path, values, "add_eos_token"),
        kind if isinstance(kind, str) else "", flag(path, values, "legacy"),
    )  # fmt: skip


def values_of(facts: TokenFacts) -> dict[str, Any]:
    """The way back: what a tokenizer_config.json, or a model.bin, says."""
    values: dict[str, Any] = dict(facts.names)
    own = {name: values.pop(name) for name in list(values) if name not in NAMES}
    if own:
        values["extra_special_tokens"] = own
    if facts.more:
        values["additional_special_tokens"] = list(facts.more)
    if facts.ids:
        values["special_token_ids"] = dict(facts.ids)
    if facts.added:
        values["added_tokens_decoder"] = {
            str(token): {"content": about.text, **{name: getattr(about, name) for name in FLAGS}}
            for token, about in sorted(facts.added.items())
        }
    said = {
        "add_bos_token": facts.add_bos,
        "add_eos_token": facts.add_eos,
        "legacy": facts.legacy,
        "tokenizer_class": facts.tokenizer_class or None,
    }
    return values | {name: value for name, value in said.items() if value is not None}


def token_text(path: Path, name: str, value: Any) -> str | None:
    """A token is a text, an object that holds one, or null. Raises ModelFormatError."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise ModelFormatError(path, name[:80], "must be the text of a token", DAMAGED)
    return check_text(path, name, text) if text else None


def check_text(path: Path, name: str, text: str) -> str:
    """Raises ModelFormatError for what no file could keep again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ModelFormatError(path, name[:80], "is no valid Unicode", DAMAGED) from None
    return text


def flag(path: Path, values: Mapping[str, Any], name: str) -> bool | None:
    value = values.get(name)
    if value is not None and type(value) is not bool:
        raise ModelFormatError(path, name, "must be true or false", DAMAGED)
    return value


def read_decoder(path: Path, decoder: Any) -> dict[int, AddedToken]:
    """added_tokens_decoder: texts by ids, with how they are found in a text. Raises ModelFormatError."""
    added: dict[int, AddedToken] = {}
    for key, value in decoder.items() if isinstance(decoder, dict) else ():
        text = token_text(path, "added_tokens_decoder", value)
        if text is None or not key.isascii() or not key.isdigit() or len(key) > 9:
            raise ModelFormatError(path, "added_tokens_decoder", "must give texts by token ids", DAMAGED)
        flags = value if isinstance(value, dict) else {"special": True}
        about = AddedToken(text, **{name: flags.get(name) is True for name in FLAGS})
        if "special" in flags and flags["special"] is None:  # of a model.bin, see read_added
            about = replace(about, special=None)
        added[check_id(path, text, int(key))] = about
    return added


def read_added(path: Path) -> dict[int, AddedToken]:
    """added_tokens.json: ids by texts. It does not say which are control tokens. Raises ModelFormatError."""
    added: dict[int, AddedToken] = {}
    for text, token in read_json_object(path).items():
        if type(token) is not int:
            raise ModelFormatError(path, text[:80], "must be a token id", DAMAGED)
        if text:
            added[check_id(path, text, token)] = AddedToken(check_text(path, text, text), special=None)
    return added


def check_id(path: Path, text: str, token: int) -> int:
    if not 0 <= token < LARGEST["vocab_size"]:
        raise ModelFormatError(path, text[:80], f"is token {token}, more than any model has", DAMAGED)
    return token
