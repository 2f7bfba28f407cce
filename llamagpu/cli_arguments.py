"""Checks a command line before fire sees it.

fire is pleasant but for three habits: it reads arguments as Python literals (the prompt 1984 becomes a number, None
becomes nothing), it runs the command before it complains of a flag that does not exist, and it answers mistakes with
tracebacks. So every argument is matched with the command's signature here, first, and handed to fire as
``--name=text``; the conversions by annotation below take the place of fire's guessing.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import fire.decorators
import fire.docstrings

from llamagpu.errors import UsageError

Command = Callable[..., None]


def with_converters(command: Command) -> Command:
    """Tell fire to convert each parameter of ``command`` by its annotation, and nothing by guessing."""
    converters = {name: converter(name, annotation) for name, annotation in hints(command).items()}
    decorated: Command = fire.decorators.SetParseFns(**converters)(command)
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

    Flags are ``--name value``, ``--name=value`` or, for switches, ``--name``; - and _ are the same in names. All after
    a lone ``--`` is positional, so that a prompt may begin with a dash.
    """
    parameters = inspect.signature(command).parameters
    types_of = hints(command)
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    given: dict[str, list[str]] = {}
    words = list(arguments)
    n_positional = 0
    only_positional = False
    while words:
        word = words.pop(0)
        if word == "--" and not only_positional:
            only_positional = True
        elif not only_positional and re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            if name not in parameters or not word.startswith("--"):
                raise unknown_flag(word, list(parameters))
            if not equals and types_of[name] is bool:
                value = "true"
            elif not equals:
                if not words or re.match(r"--[A-Za-z]", words[0]):
                    raise UsageError(f"--{name} needs a value (one that begins with -- is given as --{name}=...)")
                value = words.pop(0)
            given.setdefault(name, []).append(value)
        else:
            if n_positional == len(positional):
                raise UsageError(f"one argument too many: {word!r} (put quotes around a text of several words)")
            given.setdefault(positional[n_positional], []).append(word)
            n_positional += 1
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


def unknown_flag(word: str, names: list[str]) -> UsageError:
    flag = word.partition("=")[0]
    close = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), names, n=1)
    hint = f"did you mean --{close[0]}?" if close else "see --help; a text that begins with a dash goes after --"
    return UsageError(f"there is no flag {flag}: {hint}")


def help_text(name: str, command: Command) -> str:
    """The help of one command, from its signature and docstring. (fire's own offers short flags that we refuse.)"""
    parsed = fire.docstrings.parse(command.__doc__)
    described = {argument.name: argument.description for argument in parsed.args or []}
    types_of = hints(command)
    usage, arguments, flags = [f"llamagpu {name}"], [], []
    for parameter in inspect.signature(command).parameters.values():
        default = parameter.default
        required = default is parameter.empty
        kind = {list[str]: "TEXT", str: "TEXT", int: "N", float: "X", bool: ""}[types_of[parameter.name]]
        shown = f" Default: {default}." if not required and default not in (None, False) else ""
        row = f"{described.get(parameter.name, '')}{shown}"
        if parameter.kind is parameter.KEYWORD_ONLY:
            flags.append(f"  {f'--{parameter.name} {kind}'.rstrip():<27}{row}")
        else:
            usage.append(parameter.name.upper() if required else f"[{parameter.name.upper()}]")
            arguments.append(f"  {parameter.name.upper():<27}{row}")
    usage += ["[flags]"] if flags else []
    about = " ".join(part for part in (parsed.summary, parsed.description) if part)
    blocks = [" ".join(usage), about, "\n".join(arguments), "\n".join(flags)]
    return "\n\n".join(block for block in blocks if block)
