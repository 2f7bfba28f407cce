"""What lies beside a Hugging Face model's weights and is about text: tokenizer, end tokens, chat template, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamagpu.checkpoint import TokenFacts, TokenizerSpec
from llamagpu.config import LARGEST
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats.json_file import read_text
from llamagpu.formats.mapped_file import check_readable
from llamagpu.formats.model_folder import pointers
from llamagpu.formats.token_facts import TOKENIZER_CONFIG, facts_of_folder, read_optional
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


def read_text_settings(folder: Path, config: dict[str, Any], vocab_size: int | None) -> TextSettings:
    """``config``: what config.json holds. All files are optional. vocab_size: None where it is not known.

    Raises ModelFormatError for damaged files.
    """
    generation = read_optional(folder / "generation_config.json")
    tokenizer_config = read_optional(folder / TOKENIZER_CONFIG)
    facts = facts_of_folder(folder, tokenizer_config)
    ends: list[int] = []
    for path, values in (("generation_config.json", generation), ("config.json", config)):
        ends += read_end_ids(folder / path, values)
    if facts is not None:
        ends += [token for token, about in facts.added.items() if about.text == facts.names.get("eos_token")]
    stop_tokens = tuple(dict.fromkeys(token for token in ends if 0 <= token < (vocab_size or LARGEST["vocab_size"])))
    notes = pointers(folder)
    if facts is not None and facts.add_eos:
        notes += ("tokenizer_config.json asks for an end token after each text; llamagpu adds none",)
    template = read_chat_template(folder, tokenizer_config)
    tokenizer = read_tokenizer(folder, facts)
    return TextSettings(tokenizer, stop_tokens, template, read_sampling(generation), notes)


def read_end_ids(path: Path, values: dict[str, Any]) -> list[int]:
    """eos_token_id: a number, some of them, or null. Raises ModelFormatError."""
    found = values.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in ids):
        raise ModelFormatError(path, "eos_token_id", "must be token ids", DAMAGED)
    return ids


def read_tokenizer(folder: Path, facts: TokenFacts | None) -> TokenizerSpec | None:
    """tokenizer.json, else SentencePiece's tokenizer.model, with what lies around it. Raises ModelFormatError."""
    from llamagpu.tokenizers import read_spec  # here, since that module in turn opens its files with those of formats

    path = folder / "tokenizer.json"
    if path.exists():
        check_size(path)
        return TokenizerSpec("huggingface", path.read_bytes(), facts)
    path = folder / "tokenizer.model"
    if not path.exists():
        return None
    check_size(path)
    return replace(read_spec(path), facts=facts)


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
