"""A library that aborts ends the whole program, and Python cannot catch it. It can leave one line."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


@contextmanager
def last_words(library: str, descriptor: int = 2) -> Iterator[None]:
    """Where code inside aborts, one line goes to the descriptor, and the exit status is 1.

    Rust and C++ abort where memory is gone. Not on Windows, where the system tells of it.
    """
    set_handler = signal_function()
    if set_handler is None:
        yield
        return
    before = set_handler(signal.SIGABRT, handler(library, descriptor))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, before)


@cache
def signal_function() -> Callable[[int, Any], Any] | None:
    """The C library's, since Python's own handlers wait until the code inside returns. None where that is not to be."""
    if sys.platform == "win32":
        return None
    try:
        handler("", 2)  # some systems allow no machine code that is made while a program runs
    except (MemoryError, OSError):
        return None
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    return function


@cache
def handler(library: str, descriptor: int) -> ctypes.c_void_p:
    problem = "gave up, most likely for want of memory: a shorter text needs less"
    message = f"llamagpu: error: the {library} library {problem}\n".encode()

    def say(number: int) -> None:
        os.write(descriptor, message)
        os._exit(1)

    function = HANDLER(say)
    KEPT.append(function)
    return ctypes.cast(function, ctypes.c_void_p)


KEPT: list[Any] = []  # while the program runs, since C holds nothing that Python counts
