"""How an error names what its reader can change: a flag on the command line, an argument in Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_as_flags: ContextVar[bool] = ContextVar("as_flags", default=False)


@contextmanager
def named_as_flags() -> Iterator[None]:
    """While a command runs."""
    token = _as_flags.set(True)
    try:
        yield
    finally:
        _as_flags.reset(token)


def option(name: str, value: object = None) -> str:
    """``--name value`` or ``name=value``; without a value ``--name`` or ``name``. A value in capitals, such as FILE,
    stands for what the reader puts there."""
    if _as_flags.get():
        return f"--{name}" if value is None else f"--{name} {value}"
    if value is None:
        return name
    stands_for = isinstance(value, str) and value.isupper()
    return f"{name}={value if stands_for else repr(value)}"
