"""What a model makes of texts before it reads them: its tokenizer and chat template, without its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamagpu.chat_templates import NONE, Message, default_name, make_template
from llamagpu.chat_text import chat_ids
from llamagpu.formats import find_reader, open_checkpoint
from llamagpu.formats.huggingface_text import read_chat_template, read_text_settings
from llamagpu.formats.token_facts import TOKENIZER_CONFIG, facts_beside, read_optional
from llamagpu.llm import find_tokenizer, model_path
from llamagpu.tokenizers import Tokenizer, open_spec, read_spec


@dataclass(frozen=True)
class ModelText:
    """chat_template: Jinja text, None where the model brings none. stop_tokens: ids that end a text, beside those of
    the tokenizer. default_template: the name of the one for a model that brings none."""

    tokenizer: Tokenizer
    chat_template: str | None = None
    stop_tokens: tuple[int, ...] = ()
    default_template: str = "plain"

    def chat_ids(
        self,
        messages: Sequence[Message],
        template_args: Mapping[str, Any] = NONE,
        template: str = "auto",
        notice: Callable[[str], None] = warnings.warn,
    ) -> list[int]:
        """As ``LLM.chat_ids``."""
        chosen, _ = make_template(
            template, self.chat_template, self.tokenizer, self.stop_tokens, template_args, default=self.default_template
        )
        return chat_ids(messages, chosen, self.tokenizer, notice)


def open_text(model: str | Path, tokenizer: str | Path | None = None) -> ModelText:
    """Of a model, of a folder that holds a tokenizer and no weights, or of a tokenizer file. Raises LlamaGPUError."""
    path, reader = find_reader(model_path(model))  # of a folder that stands for a file, that file
    if tokenizer is None and path.is_dir() and not any(path.glob("*.safetensors")):
        text = read_text_settings(path, read_optional(path / "config.json"), None)
        if text.tokenizer is not None:
            return ModelText(open_spec(text.tokenizer, path), text.chat_template, text.stop_tokens)
    if tokenizer is None and path.is_file() and reader is None:
        facts, template = facts_beside(path), None
        if facts is not None:
            template = read_chat_template(path.parent, read_optional(path.parent / TOKENIZER_CONFIG))
        return ModelText(open_spec(replace(read_spec(path), facts=facts), path), template)
    checkpoint = open_checkpoint(path)
    opened, default = find_tokenizer(checkpoint, tokenizer)[1], default_name(checkpoint.config)
    return ModelText(opened, checkpoint.chat_template, checkpoint.stop_tokens, default)
