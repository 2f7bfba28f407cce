"""The ``llamagpu`` command: its table of commands, and how a command is found, run and answered for."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import fire

from llamagpu.bench_command import bench
from llamagpu.chat_command import chat
from llamagpu.cli_arguments import Command, help_text, normalize, with_converters
from llamagpu.commands import doctor, info, run, tokenize
from llamagpu.convert_command import convert
from llamagpu.errors import LlamaGPUError, OutOfMemoryError, TemplateError, UsageError, first_line, printable
from llamagpu.option_names import named_as_flags
from llamagpu.pull_command import pull
from llamagpu.quality_commands import compare, perplexity

COMMANDS: dict[str, Command] = {
    command.__name__: with_converters(command)
    for command in (run, chat, pull, info, convert, perplexity, compare, tokenize, bench, doctor)
}


@named_as_flags()
def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; its exit status. Errors are one line on stderr."""
    try:
        if not arguments or arguments[0] in ("--help", "-h", "help"):
            print(overview())
            return 0
        name, *rest = arguments
        if name == "--version":
            from llamagpu import __version__

            print(f"llamagpu {__version__}")
            return 0
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name!r}: {', '.join(COMMANDS)}, or --help")
        before_texts = rest[: rest.index("--")] if "--" in rest else rest
        if "--help" in before_texts or "-h" in before_texts:
            print(help_text(name, COMMANDS[name]))
            return 0
        fire.Fire(COMMANDS, command=[name, *normalize(COMMANDS[name], rest)], name="llamagpu")
        return 0
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


def fail(message: str, status: int = 1) -> int:
    print(f"llamagpu: error: {printable(message)}", file=sys.stderr)
    return status


def overview() -> str:
    lines = ["llamagpu: run open language models on your own GPU or CPU", "", "Commands:"]
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  llamagpu {name:<10}{summary}")
    return "\n".join([*lines, "", "llamagpu COMMAND --help shows a command's arguments."])
