"""A model's Jinja template, run so that it can do nothing but make a text, and not too long.

Templates come with downloaded models and are programs. Jinja's immutable sandbox keeps them from Python's objects; what
it leaves open is how much they compute. So operations are asked for the size of what they would make before they make
it, lines are watched by a clock, and the output has an end.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamagpu.devices import peak_memory_bytes
from llamagpu.errors import UsageError, first_line, printable

MAX_SECONDS = 5.0
MAX_OUTPUT = 1 << 24  # characters
MAX_SIZE = 1 << 26  # product of the sizes of what an operation is given: it makes no more than that
MAX_MORE_MEMORY = 1 << 29
LINES_A_LOOK = 64  # between two looks at the memory
WIDTH = re.compile(r"\d{5}")  # of a number, in a text that says how to format

T = TypeVar("T")


class JinjaTemplate:
    """Raises UsageError, in one line, for templates that are damaged, raise an error or compute too much."""

    def __init__(self, source: str) -> None:
        self.template = bounded(lambda: SandboxedEnvironment().from_string(source))

    def render(self, messages: Sequence[Mapping[str, Any]], **names: Any) -> str:
        """The text that asks for an answer. names: what else templates know by them, such as bos_token."""

        def make() -> str:
            parts, n = [], 0
            for part in self.template.generate(messages=messages, **{"add_generation_prompt": True, **names}):
                n += len(part)
                if n > MAX_OUTPUT:
                    raise SecurityError(f"its text is longer than {MAX_OUTPUT} characters")
                parts.append(part)
            return "".join(parts)

        return bounded(make)


def bounded(work: Callable[[], T]) -> T:
    """Do it within limits of time and memory, which are looked at before each line."""
    end, memory, n_lines = time.monotonic() + MAX_SECONDS, peak_memory_bytes() or 0, 0

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal n_lines
        n_lines += 1
        if time.monotonic() > end:
            raise SecurityError(f"it takes longer than {MAX_SECONDS:g} seconds")
        if n_lines % LINES_A_LOOK == 0 and (peak_memory_bytes() or 0) > memory + MAX_MORE_MEMORY:
            raise SecurityError("it takes too much memory")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return work()
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        line = getattr(error, "lineno", None)
        problem = f"{printable(first_line(error))[:200]}{f' (line {line})' if line else ''}"
    except (RecursionError, MemoryError):
        problem = "it is nested too deep, or takes too much memory"
    finally:
        sys.settrace(before)
    raise UsageError(f"the model's chat template cannot be used: {problem}; --template plain or llama2 does without it")


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
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

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
