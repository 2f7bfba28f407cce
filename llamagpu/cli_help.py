"""What --help shows: the list of commands, and the arguments of one, from its signature and its docstring."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Mapping

from llamagpu.cli_arguments import SHORT, Command, hints
from llamagpu.late_fire import fire_module

NARROWEST, WIDEST = 40, 100  # columns
INDENT = 26  # where descriptions begin

# Flags that belong together. What is in none of these is under "Flags".
GROUPS = {
    "Text": ("prompt_file", "system", "document", "messages", "template", "template_args", "special", "echo", "stop",
             "max_tokens", "ignore_eos", "bos", "tell_time"),
    "Sampling": ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "sampler_order", "seed"),
    "Session": ("session", "session_format", "history"),
    "Model and device": ("device", "tokenizer", "context", "kv_bits", "window", "sinks", "memory_update", "recurrent",
                         "faithful", "threads"),
    "Output": ("json", "jsonl", "plot", "pieces", "logprobs"),
}  # fmt: skip

EXAMPLES = {
    "run": (
        'llamagpu run demo "Once upon a time"',
        'llamagpu run model.gguf "The sky is" --temp 0 -n 64',
        "echo 'Once upon a time' | llamagpu run model.bin",
        'llamagpu run model.bin "Chapter one." --session story.session',
    ),
    "chat": (
        "llamagpu chat model/",
        'llamagpu chat model/ --system "Be brief." --session me.session',
        "llamagpu chat model/ --document report.txt < questions.txt > answers.txt",
        """echo '{"user": "Hello"}' | llamagpu chat model/ --jsonl""",
    ),
    "pull": ("llamagpu pull hf:owner/name", "llamagpu pull hf:owner/name:Q4_K_M"),
    "info": ("llamagpu info model.gguf", "llamagpu info model/ --json"),
    "convert": (
        "llamagpu convert model.gguf model.bin",
        "llamagpu convert model/ q4.bin --quantize gptq --calibration text.txt",
    ),
    "perplexity": ("llamagpu perplexity model.bin text.txt",),
    "compare": ("llamagpu compare model.bin q4.bin text.txt",),
    "tokenize": ('llamagpu tokenize model.bin "Once upon a time" --pieces', "llamagpu tokenize model/ - < text.txt"),
    "bench": ("llamagpu bench model.bin", "llamagpu bench --shape llama2-7b --bits 4 --json b.json --plot b.svg"),
    "doctor": ("llamagpu doctor", "llamagpu doctor --json"),
}


# Flags whose value is the name of a file
FILES = {"prompt_file", "tokenizer", "session", "document", "messages", "calibration", "json", "plot"}


def overview(summaries: Mapping[str, str]) -> str:
    """The list of commands. summaries: of each, by name."""
    width = 2 + max(map(len, summaries)) + 2
    rows = [row(name, summary.rstrip(".,:;"), width) for name, summary in summaries.items()]
    first = 'llamagpu run demo "Once upon a time"    continues a text with the built-in model'
    blocks = [
        "llamagpu: run open language models on your own GPU or CPU",
        "usage: llamagpu COMMAND [arguments]",
        "\n".join(["Commands:", *rows]),
        f"Start with:\n  {first}\n  {'llamagpu chat MODEL':<40}talks with a model of yours",
        "llamagpu help COMMAND shows a command's arguments; llamagpu -V the version.",
    ]
    return "\n\n".join(blocks)


def help_text(name: str, command: Command) -> str:
    """The help of one command. (fire's own offers short flags that we refuse.)"""
    parsed = fire_module("fire.docstrings").parse(command.__doc__)
    described = {argument.name: argument.description for argument in parsed.args or []}
    types_of, usage, arguments = hints(command), [f"usage: llamagpu {name}"], []
    flags: dict[str, str] = {}
    for parameter in inspect.signature(command).parameters.values():
        default, about = parameter.default, described.get(parameter.name) or ""
        required = default is parameter.empty
        shown = (
            f" Default: {default}." if not required and default is not None and not isinstance(default, bool) else ""
        )
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind = {list[str]: " TEXT", str: " TEXT", int: " N", float: " X", bool: ""}[types_of[parameter.name]]
            kind = " FILE" if kind and parameter.name in FILES else kind
            negatable = types_of[parameter.name] is bool and default is not False
            flags[parameter.name] = row(short(parameter.name) + flag(parameter.name, negatable) + kind, about + shown)
        else:
            usage.append(parameter.name.upper() if required else f"[{parameter.name.upper()}]")
            arguments.append(row(short(parameter.name) + parameter.name.upper(), about + shown))
    usage += ["[flags]"] if flags else []
    about = " ".join(part for part in (parsed.summary, parsed.description) if part)
    blocks = [" ".join(usage), textwrap.fill(about, columns()), titled("Arguments", arguments)]
    for title, members in GROUPS.items():
        blocks.append(titled(title, [flags.pop(member) for member in members if member in flags]))
    blocks.insert(3, titled("Flags", list(flags.values())))
    blocks.append(titled("Examples", [f"  {example}" for example in EXAMPLES.get(name, ())]))
    return "\n\n".join(block for block in blocks if block)


def short(name: str) -> str:
    letter = next((letter for letter, long in SHORT.items() if long == name), None)
    return f"-{letter}, " if letter else ""


def flag(name: str, negatable: bool) -> str:
    return f"--[no-]{name}" if negatable else f"--{name}"


def titled(title: str, rows: list[str]) -> str:
    return "\n".join([f"{title}:", *rows]) if rows else ""


def row(left: str, right: str, width: int = INDENT) -> str:
    """A name and what it is, wrapped to the terminal."""
    lines = textwrap.wrap(right, max(columns() - width, 20), break_on_hyphens=False, break_long_words=False) or [""]
    if len(left) + 4 > width:
        return "\n".join([f"  {left}", *(" " * width + line for line in lines)]).rstrip()
    return "\n".join([f"  {left}".ljust(width) + lines[0], *(" " * width + line for line in lines[1:])]).rstrip()


def columns() -> int:
    """Of the terminal; 80 where there is none."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, NARROWEST), WIDEST)
