"""The ``llamagpu`` command: its table of commands, and how a command is found, run and answered for."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llamagpu.cli_arguments import Command, normalize, with_converters
from llamagpu.errors import LlamaGPUError, OutOfMemoryError, TemplateError, UsageError, first_line, printable
from llamagpu.option_names import named_as_flags

# Name: the module that has it, and the beginning of its docstring. Here, so that --help need not import them all.
HOMES = {
    "run": ("commands", "Continue a text."),
    "chat": ("chat_command", "Talk with a model."),
    "pull": ("pull_command", "Download a model of the Hugging Face Hub"),
    "info": ("inspect_commands", "Show what a model file or folder is"),
    "convert": ("convert_command", "Write any model that opens as one native model.bin"),
    "perplexity": ("quality_commands", "Measure how well a model predicts a text"),
    "compare": ("quality_commands", "Compare two models of one vocabulary on a text"),
    "tokenize": ("inspect_commands", "Show the token ids of a text, or of a conversation"),
    "bench": ("bench_command", "Measure speed: tok/s, bandwidth, time to first token"),
    "doctor": ("inspect_commands", "Show which device would run, and why not the GPU."),
}
# What other programs call these
OTHER_NAMES = {
    "generate": "run", "complete": "run", "cli": "run", "completion": "run", "show": "info", "inspect": "info",
    "quantize": "convert", "quantise": "convert", "ppl": "perplexity", "benchmark": "bench", "tokens": "tokenize",
    "tokenise": "tokenize", "create": "convert", "check": "doctor", "ps": "doctor",
}  # fmt: skip


class Commands(Mapping[str, Command]):
    """Each command by its name. Its module is imported when it is asked for."""

    def __getitem__(self, name: str) -> Command:
        module = importlib.import_module(f"llamagpu.{HOMES[name][0]}")
        command: Command = getattr(module, name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(HOMES)

    def __len__(self) -> int:
        return len(HOMES)


COMMANDS = Commands()


@named_as_flags()
def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; its exit status. Errors are one line on stderr."""
    try:
        return answer(list(arguments))
    except LlamaGPUError as error:
        is_usage = isinstance(error, UsageError) and not isinstance(error, TemplateError | OutOfMemoryError)
        return fail(str(error), status=2 if is_usage else 1)
    except BrokenPipeError:
        raise
    except Exception as error:
        return fail_otherwise(error)


def fail_otherwise(error: Exception) -> int:
    if is_for_memory(error):
        wanted = first_line(error) if str(error) else "the system gives no more"
        return fail(f"not enough memory ({wanted}): a smaller --context or a smaller model needs less")
    if isinstance(error, OSError):  # a full disk behind stdout, a name too long: the system's own words say it best
        return fail(": ".join(str(part) for part in (error.strerror or error, error.filename) if part))
    if os.environ.get("LLAMAGPU_DEBUG"):  # a bug in llamagpu: one line all the same, and how to see the rest
        traceback.print_exc()
    what = f"{type(error).__name__}: {first_line(error)}"
    return fail(f"internal error, please report it: {what} (LLAMAGPU_DEBUG=1 shows where)")


def is_for_memory(error: Exception) -> bool:
    """Whether it is for want of memory that a library, a thread or a file failed."""
    if isinstance(error, MemoryError):
        return True
    signs = ("failed to map segment", "cannot allocate memory", "can't start new thread")
    return any(sign in str(error).lower() for sign in signs)


def answer(arguments: list[str]) -> int:
    """Find the command and run it, or show help. Raises LlamaGPUError."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if name in ("--version", "-V", "version"):
        from llamagpu import __version__

        print(f"llamagpu {__version__}")
        return 0
    before_texts = rest[: rest.index("--")] if "--" in rest else rest
    if name in ("--help", "-h", "help"):
        show_help(rest[0] if rest else None)
        return 0
    command = find_command(name)
    if "--help" in before_texts or "-h" in before_texts:
        show_help(name)
        return 0
    normalized = normalize(command, rest)
    from llamagpu.late_fire import fire_module

    fire_module().Fire({name: with_converters(command)}, command=[name, *normalized], name="llamagpu")
    return 0


def find_command(name: str) -> Command:
    """Raises UsageError, with the name that was meant where it can be guessed."""
    if name in COMMANDS:
        return COMMANDS[name]
    close = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
    meant = OTHER_NAMES.get(name.lower()) or (close[0] if close else None)
    if meant:
        hint = f"did you mean llamagpu {meant}?"
    elif name == "demo" or os.sep in name or Path(name).suffix in (".bin", ".gguf", ".pth", ".pt"):
        hint = f'to run a model: llamagpu run {name[:200]} "a prompt"'
    else:
        hint = f"the commands are {', '.join(COMMANDS)}; see llamagpu --help"
    raise UsageError(f"there is no command {name[:200]!r}: {hint}")


def show_help(name: str | None) -> None:
    from llamagpu.cli_help import help_text, overview

    summaries = {command: HOMES[command][1] for command in COMMANDS}
    print(overview(summaries) if name is None else help_text(name, find_command(name)))


def fail(message: str, status: int = 1) -> int:
    print(f"llamagpu: error: {printable(message)}", file=sys.stderr)
    return status
