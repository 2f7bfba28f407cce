"""From messages to the tokens that a model reads: checked, guarded, rendered and encoded, the same way for all."""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamagpu.chat_templates import Message, Template, guarded
from llamagpu.errors import UsageError
from llamagpu.text_files import read_text_file
from llamagpu.tokenizers import Tokenizer
from llamagpu.tokenizers.special_tokens import named_ids

FOLDED = "the model's template has no place for a system prompt: it is put before the first message of the user"


def new_guard() -> str:
    """A text that is not to be guessed by those whose texts it guards."""
    return f"\ufdd0{secrets.token_hex(4)}\ufdd1"


def chat_ids(
    messages: Sequence[Message],
    template: Template,
    tokenizer: Tokenizer,
    notice: Callable[[str], None] = warnings.warn,
) -> list[int]:
    """The ids that a model would read, with what asks for its answer.

    notice: told in one line what a user should know. Raises UsageError.
    """
    check_messages(messages)
    guard = new_guard()
    return tokenizer.encode_rendered(render(template, messages, tokenizer, guard, notice), guard, at_start=True)


def render(
    template: Template, messages: Sequence[Message], tokenizer: Tokenizer, guard: str, notice: Callable[[str], None]
) -> str:
    """The text of a conversation, in which the guard keeps apart what was said and what the template writes."""
    safe: list[Message] = [
        {name: value if name == "role" else guarded_value(value, tokenizer, guard) for name, value in message.items()}
        for message in messages
    ]
    if safe and safe[0]["role"] == "system" and not template.takes_system:
        notice(FOLDED)
        safe = folded(safe)
    return template.render(safe, lambda value: guarded_value(value, tokenizer, guard))


def opening(template: Template, tokenizer: Tokenizer) -> list[int]:
    """The start token by which a template opens a conversation; empty where it writes none."""
    try:
        text = template.render([{"role": "user", "content": "x"}])
    except UsageError:
        return []
    first = tokenizer.encode_rendered(text, new_guard(), at_start=True)[:1]
    return first if first == [named_ids(tokenizer)[0]] else []


def folded(messages: Sequence[Message]) -> list[Message]:
    """With the system prompt at the beginning of what the user says first."""
    system, *others = messages
    text = text_of(system.get("content"))
    at = next((i for i, message in enumerate(others) if message["role"] == "user"), None)
    if at is None:
        return [{"role": "user", "content": text}, *others]
    said = others[at].get("content")
    front = f"{text}\n\n"
    content: Any = [{"type": "text", "text": front}, *said] if isinstance(said, list) else front + text_of(said)
    return [*others[:at], {**others[at], "content": content}, *others[at + 1 :]]


def text_of(content: Any) -> str:
    """Of a content that may be parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)


def guarded_value(value: Any, tokenizer: Tokenizer, guard: str) -> Any:
    """A JSON value with the guard in all its texts."""
    if isinstance(value, str):
        return guarded(value, tokenizer, guard)
    if isinstance(value, Mapping):
        pairs = ((guarded_value(name, tokenizer, guard), inner) for name, inner in value.items())
        return {name: guarded_value(inner, tokenizer, guard) for name, inner in pairs}
    if isinstance(value, list | tuple):
        return [guarded_value(inner, tokenizer, guard) for inner in value]
    return value


def check_messages(messages: Any) -> None:
    """Raises UsageError for what is no conversation."""
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError("messages must be a list of objects with role and content, at least one")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"message {i} is no object with a role")
        if not isinstance(message.get("content"), str | list | None):
            raise UsageError(f"message {i} has a content that is no text")
    try:
        json.dumps(messages).encode()
        "".join(message["content"] for message in messages if isinstance(message.get("content"), str)).encode()
    except UnicodeEncodeError:
        raise UsageError("a message is not valid Unicode") from None
    except (TypeError, ValueError, RecursionError):
        raise UsageError("messages must hold values that JSON has: texts, numbers, true, lists, objects") from None


def read_messages(file: str) -> list[Message]:
    """Of a JSON file; "-" is standard input. Raises UsageError."""
    shown = f"--messages {file}"
    text = read_text_file(file, shown)
    try:
        messages = json.loads(text)
        check_messages(messages)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown}: is not valid JSON ({error})") from None
    except UsageError as error:
        raise UsageError(f"{shown}: {error}") from None
    found: list[Message] = messages
    return found
