"""Checks a command line before fire sees it.

fire is pleasant but for three habits: it reads arguments as Python literals (the prompt 1984 becomes a number, None
becomes nothing), it runs the command before it complains of a flag that does not exist, and it answers mistakes with
tracebacks. So every argument is matched with the command's signature here, first, and handed to fire as
``--name=text``; the conversions by annotation below take the place of fire's guessing.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamagpu.errors import UsageError

Command = Callable[..., None]

# One letter, as in llama.cpp
SHORT = {
    "m": "model", "p": "prompt", "n": "max_tokens", "c": "context", "s": "seed", "t": "threads", "f": "prompt_file",
}  # fmt: skip
SHORT_FLAGS = {f"-{letter}" for letter in SHORT}
# Other names of flags: those of llama.cpp, and those that flags had in former versions
ALIASES = {
    "temp": "temperature", "n_predict": "max_tokens", "ctx_size": "context", "repeat_penalty": "repetition_penalty",
    "file": "prompt_file", "memory": "session", "memory_format": "session_format",
}  # fmt: skip
NO_THREADS = "the number of threads is not a flag yet: OPENBLAS_NUM_THREADS=N in the environment bounds it"


def with_converters(command: Command) -> Command:
    """Tell fire to convert each parameter of ``command`` by its annotation, and nothing by guessing."""
    from llamagpu.late_fire import fire_module

    converters = {name: converter(name, annotation) for name, annotation in hints(command).items()}
    decorated: Command = fire_module("fire.decorators").SetParseFns(**converters)(command)
    return decorated


def hints(command: Command) -> dict[str, Any]:
    """Parameter name to type, ``| None`` taken off."""
    found = typing.get_type_hints(command)
    found.pop("return", None)
    for name, hint in found.items():
        if isinstance(hint, types.UnionType):
            found[name] = next(part for part in typing.get_args(hint) if part is not type(None))
    return found


def converter(name: str, annotation: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if annotation is str:
            return text
        if annotation == list[str]:
            return json.loads(text)  # written by normalize() below
        if annotation is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if annotation is int and re.fullmatch(r"[+-]?\d{1,30}", text):
            return int(text)
        if annotation is float:
            try:
                return float(text)
            except ValueError:
                pass
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[annotation]
        raise UsageError(f"--{name} must be {kind}, not {text!r}")

    return convert


def normalize(command: Command, arguments: Sequence[str]) -> list[str]:
    """Match ``arguments`` with the signature of ``command``; the same as ``--name=text`` each. Raises UsageError.

    Flags are ``--name value``, ``--name=value`` or, for switches, ``--name`` and ``--no-name``; - and _ are the same in
    names. All after a lone ``--`` is positional, so that a prompt may begin with a dash. What is positional goes to the
    parameters that no flag has named.
    """
    parameters, types_of = inspect.signature(command).parameters, hints(command)
    given, texts = flags_and_texts(types_of, list(arguments))
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    free = [name for name in positional if name not in given]
    if len(texts) > len(free):
        for name in positional[: len(texts)]:
            if name in given:
                raise UsageError(f"{name} is given {len(given[name]) + 1} times")
        raise UsageError(f"one argument too many: {texts[len(free)]!r} (put quotes around a text of several words)")
    given |= {name: [text] for name, text in zip(free, texts, strict=False)}
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise UsageError(f"{name.upper()} is missing")
    normalized = []
    for name, values in given.items():
        if types_of[name] == list[str]:
            values = [json.dumps(values)]
        elif len(values) > 1:
            raise UsageError(f"{name} is given {len(values)} times")
        normalized.append(f"--{name}={values[0]}")
    return normalized


def flags_and_texts(types_of: Mapping[str, Any], words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The values of each flag, and what is positional. types_of: the type of each parameter. Raises UsageError."""
    given: dict[str, list[str]] = {}
    texts: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return given, texts + words
        if not re.match(r"--?[A-Za-z]", word):
            texts.append(word)
            continue
        name, value = flag_of(word, types_of)
        if value is None:
            if not words or re.match(r"--[A-Za-z]", words[0]) or words[0] in SHORT_FLAGS:
                raise UsageError(f"--{name} needs a value (one that begins with a dash is given as --{name}=...)")
            value = words.pop(0)
        given.setdefault(name, []).append(value)
    return given, texts


def flag_of(word: str, types_of: Mapping[str, Any]) -> tuple[str, str | None]:
    """The parameter that a flag names, and its value where it has one with it. Raises UsageError."""
    written, equals, value = word.partition("=")
    name = written.lstrip("-").replace("-", "_")
    if not written.startswith("--"):
        name = SHORT.get(name, "")
    if name not in types_of:
        name = ALIASES.get(name, name)
    if name in types_of:
        if not equals and types_of[name] is bool:
            value = "true"
        return name, value if equals or types_of[name] is bool else None
    positive = name.removeprefix("no_")
    if name.startswith("no_") and types_of.get(positive) is bool:
        if equals:
            raise UsageError(f"{written} takes no value")
        return positive, "false"
    if name == "threads":
        raise UsageError(f"{written}: {NO_THREADS}")
    raise unknown_flag(written, list(types_of))


def unknown_flag(flag: str, names: list[str]) -> UsageError:
    import difflib

    known = [*names, *(alias for alias, name in ALIASES.items() if name in names and not alias.startswith("memory"))]
    wanted = flag.lstrip("-").replace("-", "_")
    close = difflib.get_close_matches(wanted, known, n=1) if flag.startswith("--") else []
    hint = f"did you mean --{close[0]}?" if close else "see --help; a text that begins with a dash goes after --"
    return UsageError(f"there is no flag {flag}: {hint}")
