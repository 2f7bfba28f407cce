"""What lies beside a Hugging Face model's weights and is about text: tokenizer, end tokens, chat template, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats.json_file import read_json_object, read_text
from llamagpu.formats.mapped_file import check_readable
from llamagpu.sampling import SamplingParams

MAX_TOKENIZER_BYTES = 1 << 26  # the largest that are known are half as large
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
DAMAGED = "the file is damaged: download it again"


@dataclass(frozen=True)
class TextSettings:
    """Fields of Checkpoint."""

    tokenizer: TokenizerSpec | None
    stop_tokens: tuple[int, ...]
    chat_template: str | None
    sampling: Mapping[str, float]
    notes: tuple[str, ...]


def read_text_settings(folder: Path, config: dict[str, Any], vocab_size: int) -> TextSettings:
    """``config``: what config.json holds. All files are optional. Raises ModelFormatError for damaged ones."""
    generation = read_optional(folder / "generation_config.json")
    tokenizer_config = read_optional(folder / "tokenizer_config.json")
    added = read_added_tokens(folder, tokenizer_config)
    ends: list[int] = []
    for path, values in (("generation_config.json", generation), ("config.json", config)):
        ends += read_end_ids(folder / path, values)
    ends += [token for token, text in added.items() if text == token_text(tokenizer_config.get("eos_token"))]
    stop_tokens = tuple(dict.fromkeys(token for token in ends if 0 <= token < vocab_size))  # others never come
    tokenizer, notes = read_tokenizer(folder, tokenizer_config, added)
    template = read_chat_template(folder, tokenizer_config)
    return TextSettings(tokenizer, stop_tokens, template, read_sampling(generation), notes)


def read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def token_text(value: Any) -> str | None:
    """A token in a tokenizer_config.json is a text, or an object with one."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def read_added_tokens(folder: Path, tokenizer_config: dict[str, Any]) -> dict[int, str]:
    """Tokens that were put beside the trained vocabulary, by id. Raises ModelFormatError."""
    added: dict[int, str] = {}
    decoder = tokenizer_config.get("added_tokens_decoder")
    for key, value in (decoder if isinstance(decoder, dict) else {}).items():
        text = token_text(value)
        if text is None or not key.isascii() or not key.isdigit() or len(key) > 9:
            path = folder / "tokenizer_config.json"
            raise ModelFormatError(path, "added_tokens_decoder", "must give texts by token ids", DAMAGED)
        added[int(key)] = text
    if not added:
        for text, token in read_optional(folder / "added_tokens.json").items():
            if type(token) is not int:
                raise ModelFormatError(folder / "added_tokens.json", text[:80], "must be a token id", DAMAGED)
            added[token] = text
    return added


def read_end_ids(path: Path, values: dict[str, Any]) -> list[int]:
    """eos_token_id: a number, some of them, or null. Raises ModelFormatError."""
    found = values.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in ids):
        raise ModelFormatError(path, "eos_token_id", "must be token ids", DAMAGED)
    return ids


def read_tokenizer(
    folder: Path, tokenizer_config: dict[str, Any], added: dict[int, str]
) -> tuple[TokenizerSpec | None, tuple[str, ...]]:
    """tokenizer.json, else SentencePiece's tokenizer.model; and what a user should know. Raises ModelFormatError."""
    from llamagpu.tokenizers import read_spec  # here, since that module in turn opens its files with those of formats

    path = folder / "tokenizer.json"
    if path.exists():
        check_size(path)
        return TokenizerSpec("huggingface", path.read_bytes()), ()
    path = folder / "tokenizer.model"
    if not path.exists():
        return None, ()
    check_size(path)
    notes = []
    unknown = [text for text in added.values() if text not in ("<unk>", "<s>", "</s>")]
    if unknown:
        notes.append(f"without tokenizer.json, {len(unknown)} added tokens, such as {unknown[0][:40]!r}, have no text")
    if tokenizer_config.get("add_bos_token") is False:
        notes.append("tokenizer_config.json wants no start token; without tokenizer.json there is one")
    return read_spec(path), tuple(notes)


def check_size(path: Path) -> None:
    size = check_readable(path)
    if size > MAX_TOKENIZER_BYTES:
        raise ModelFormatError(path, "length", f"is {size} bytes, too many for a tokenizer", DAMAGED)


def read_chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else the one in tokenizer_config.json, of several that named "default"."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path)
    found = tokenizer_config.get("chat_template")
    if isinstance(found, list):
        default = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = default[0].get("template") if default else None
    if found is not None and not isinstance(found, str):
        raise ModelFormatError(
            folder / "tokenizer_config.json", "chat_template", "must be a text, or texts by name", DAMAGED
        )
    return found


def read_sampling(generation: dict[str, Any]) -> dict[str, float]:
    """What the model's makers suggest, as far as it makes sense; nothing where they do not sample."""
    sampling: dict[str, float] = {}
    for name in SAMPLING if generation.get("do_sample") is not False else ():
        value: Any = generation.get(name)
        try:
            sampling[name] = getattr(SamplingParams(**{name: value}), name)
        except (UsageError, OverflowError):  # null, or nothing that can be followed
            continue
    return sampling
