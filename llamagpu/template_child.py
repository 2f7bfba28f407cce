"""The program that runs a model's Jinja template. It has jinja2 and the standard library, and nothing of llamagpu.

Templates come with downloaded models and are programs. jinja_sandbox.py starts this file in a fresh interpreter, which
loads all that it will need and then gives up the rest: files, network, other processes, more memory than it was told.
Two walls stand inside that one: Jinja's immutable sandbox keeps a template from Python's objects, and operations are
asked for the size of what they would make before they make it, so that most templates that do too much get a message
that says what it was.

A request and a reply are 4 bytes of length, the highest first, and that much JSON. Arguments: the most bytes of address
space (0: limits are not there, a tracer looks instead), and the folders in which jinja2 and markupsafe lie.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path += sys.argv[2:]

import codecs
import ctypes
import functools
import json
import math
import os
import re
import signal
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

LENGTH = struct.Struct(">I")
MAX_SIZE = 1 << 25  # product of the sizes of what an operation is given: it makes no more than that
MAX_MORE_MEMORY = 1 << 27  # for the tracer
LINES_A_LOOK = 64  # between two looks of the tracer at the memory
CPU_SECONDS = 120  # of one child's life, beside the alarms of each request
WALL = 5  # seconds by the clock, for each that it may compute
MAX_ERROR = 1000  # characters
WIDTH = re.compile(r"\d{5}")  # of a number, in a text that says how to format
# What a template of a model asks jinja2 to import when it runs; afterwards nothing can be opened.
LATER = ("jinja2.debug", "jinja2.constants", "pprint", "random", "html", "stringprep", "textwrap")
CODECS = ("unicode-escape", "ascii", "latin-1", "utf-8", "utf-16", "utf-32", "idna", "punycode", "cp1252")
# System calls that an interpreter makes which computes, reads and writes what is open, and ends. By architecture: its
# number for a filter, then the calls read, write, fstat, lseek, mmap, mprotect, munmap, brk, rt_sigaction,
# rt_sigprocmask, rt_sigreturn, mremap, madvise, setitimer, getpid, exit, exit_group, futex, gettimeofday,
# clock_gettime, getrandom, restart_syscall, sched_yield.
CALLS = {
    "x86_64": (
        0xC000003E,
        (0, 1, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 38, 39, 60, 231, 202, 96, 228, 318, 219, 24),
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 80, 62, 222, 226, 215, 214, 134, 135, 139, 216, 233, 103, 172, 93, 94, 98, 169, 113, 278, 128, 124),
    ),
}
# Instructions of a filter of system calls, and what it answers.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # with EPERM, which Python raises as PermissionError
SET_SECCOMP, FILTER, SET_NO_NEW_PRIVILEGES = 22, 2, 38  # for prctl


def main(memory: int) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asks
    for name in LATER:
        __import__(name)
    for name in CODECS:
        codecs.lookup(name)
    renderer = Renderer(watched=not memory)
    renderer.answer({"source": "{{ messages | tojson }}", "names": {"messages": []}, "now": "2000-01-01"})
    if memory:
        confine(memory)
    sys.path.clear()
    write({"ready": True})
    while True:
        head = sys.stdin.buffer.read(LENGTH.size)
        if len(head) < LENGTH.size:
            os._exit(0)  # whoever asked is gone
        (n,) = LENGTH.unpack(head)
        request = json.loads(sys.stdin.buffer.read(n).decode("utf-8", "surrogatepass"))
        for name in ("characters", "seconds"):  # so many, and more for each byte
            request[name] = request[name][0] + request[name][1] * n
        set_alarms(request["seconds"])
        write(renderer.answer(request))
        set_alarms(0)


def write(reply: Mapping[str, Any]) -> None:
    body = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
    sys.stdout.buffer.write(LENGTH.pack(len(body)) + body)
    sys.stdout.buffer.flush()


def set_alarms(seconds: float) -> None:
    """End this process once it has computed so long, also within one long call. 0: no longer.

    A busy machine takes longer for the same work, so it is the processor's time that counts. By the clock it is
    ended too, much later, should nobody be there to do it.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, WALL * seconds)


def confine(memory: int) -> None:
    """Limits of Linux, of which none can be taken back. The filter of system calls is last: it forbids setting them."""
    import resource

    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_NOFILE: 0,  # what is open stays so, and nothing more can be opened, sockets too
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    filter_system_calls()


def filter_system_calls() -> bool:
    """Refuse all system calls but CALLS. Whether that was done: not on other processors, or where it is forbidden."""
    architecture, calls = CALLS.get(os.uname().machine, (0, ()))
    if not architecture or sys.maxsize < 1 << 32:
        return False
    program = [(LOAD, 0, 0, 4), (JUMP_IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, 0)]
    for call in calls:
        program += [(JUMP_IF_EQUAL, 0, 1, call), (RETURN, 0, 0, ALLOW)]
    program.append((RETURN, 0, 0, REFUSE))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    pointer = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    zero = ctypes.c_ulong(0)
    prctl(SET_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), zero, zero, zero)
    return bool(prctl(SET_SECCOMP, ctypes.c_ulong(FILTER), pointer, zero, zero) == 0)


class Renderer:
    """Answers requests, and keeps the template of the last one."""

    def __init__(self, watched: bool) -> None:
        self.watched, self.source = watched, ""
        self.template: jinja2.Template | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The text, or the error and its line."""
        before = sys.gettrace()
        if self.watched:
            sys.settrace(watch(request.get("seconds", math.inf)))
        try:
            return {"text": self.render(request)}
        except (MemoryError, RecursionError):
            return {"error": "it is nested too deep, or takes too much memory"}
        except Exception as error:
            known = jinja2.TemplateError | ArithmeticError | LookupError | TypeError | ValueError | AttributeError
            text = str(error) if isinstance(error, known) and str(error).strip() else f"{type(error).__name__}: {error}"
            return {"error": text[:MAX_ERROR], "line": getattr(error, "lineno", None)}
        finally:
            sys.settrace(before)

    def render(self, request: Mapping[str, Any]) -> str:
        if self.template is None or self.source != request["source"]:
            self.template = None
            self.template = SandboxedEnvironment().from_string(request["source"])
            self.source = request["source"]
        most = request.get("characters", MAX_SIZE)
        moment = datetime.fromisoformat(request["now"])  # the clock and its zone are files
        self.template.environment.globals["strftime_now"] = moment.strftime
        self.template.globals["strftime_now"] = moment.strftime
        parts, n = [], 0
        for part in self.template.generate(**request["names"]):
            n += len(part)
            if n > most:
                raise SecurityError(f"its text is longer than {most} characters")
            parts.append(part)
        return "".join(parts)


def watch(seconds: float) -> Callable[[FrameType, str, Any], Any]:
    """A tracer that looks at time and memory before each line: what there is where the system has no limits."""
    end, memory, n_lines = time.process_time() + seconds, peak_memory(), 0

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal n_lines
        n_lines += 1
        if time.process_time() > end:
            raise SecurityError(f"it takes longer than {seconds:.1f} seconds")
        if n_lines % LINES_A_LOOK == 0 and peak_memory() > memory + MAX_MORE_MEMORY:
            raise SecurityError("it takes too much memory")
        return look

    return look


def peak_memory() -> int:
    """Bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class BoundedCode(CodeGenerator):
    """~ is no operator that a sandbox may watch: make it a call that it may."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class GenerationBlocks(Extension):
    """{% generation %} marks what a model has said, for training. Here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class SandboxedEnvironment(ImmutableSandboxedEnvironment):
    """With the settings and names for which models' templates are written: those of transformers."""

    code_generator_class = BoundedCode
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        extensions = [GenerationBlocks, "jinja2.ext.loopcontrols"]
        # without optimizing: that would compute constants before anything watches
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False)
        self.filters["tojson"] = tojson
        self.filters = {name: self.measured(made) for name, made in self.filters.items()}
        self.globals["raise_exception"] = raise_exception

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and hasattr(left, "__len__"):
            check_size(size(left) + size(right))
        elif operator == "**":
            check_size(max(1, abs(right)) * max(1, int(abs(left)).bit_length()))
        elif operator == "*" and (hasattr(left, "__len__") or hasattr(right, "__len__")):
            check_size(size(left) * size(right))
        elif operator == "%" and isinstance(left, str):
            check_format(left, *(right if isinstance(right, tuple) else (right,)))
        return super().call_binop(context, operator, left, right)

    def concatenate(self, parts: Sequence[Any]) -> str:
        texts = [str(part) for part in parts]
        check_size(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Of functions and methods that a template names."""
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            if method.__name__ in ("format", "format_map"):
                check_format(owner, *args, *kwargs.values())
            check_size(product(owner, *args, *kwargs.values()))
        return super().call(context, obj, *args, **kwargs)

    def measured(self, made: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(made)  # which keeps the marks by which Jinja knows what to hand over
        def checked(*args: Any, **kwargs: Any) -> Any:
            values = [*args, *kwargs.values()]
            values = [value for value in values if not isinstance(value, jinja2.Environment | Context)]
            if made.__name__ == "do_format":
                check_format(str(values[0]), *values[1:])
            check_size(product(*values))
            return made(*args, **kwargs)

        return checked


def size(value: Any) -> int:
    """How much a value adds to what is made of it."""
    if isinstance(value, int | float):
        return int(min(abs(value), 1e18)) + 1 if value == value else 1
    if isinstance(value, list | tuple):
        return 1 + sum(len(item) if isinstance(item, str) else 1 for item in value)
    return 1 + len(value) if isinstance(value, str | Mapping | range) else 1


def product(*values: Any) -> int:
    return math.prod(map(size, values))


def check_size(n: int) -> None:
    if n > MAX_SIZE:
        raise SecurityError("it makes too large a value")


def check_format(form: str, *values: Any) -> None:
    if WIDTH.search(form):
        raise SecurityError("it makes too large a value")
    check_size(product(form, *values))


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
    """Unlike Jinja's own, which writes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)


if __name__ == "__main__":
    main(int(sys.argv[1]))
