"""A call of a library that may never return, made so that waiting for it ends.

Regular expressions of a downloaded file can take the square of a text's length, or its cube. The library cannot be
interrupted; so it works in another thread, and this one stops waiting at Ctrl-C, or when time is up. That thread is
left alone, and does not keep the program from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

SECONDS, CHARACTERS_A_SECOND = 10.0, 50_000  # a hundredth of what the library does

T = TypeVar("T")


def seconds_for(text: str) -> float:
    return SECONDS + len(text) / CHARACTERS_A_SECOND


def watched(call: Callable[[], T], seconds: float) -> T:
    """What ``call`` returns or raises. It must let other threads run. Raises TimeoutError."""
    results, errors = list[T](), list[BaseException]()

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # panics of Rust are no Exception
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
