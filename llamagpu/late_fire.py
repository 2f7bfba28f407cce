"""fire, imported when a command line needs it, and without asyncio.

fire imports asyncio to ask of each command whether it is a coroutine. That import takes longer than all the rest of
fire, and no command of ours is one. So a stand-in answers that question, and fetches the true module for any other.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class StandIn(ModuleType):
    """What fire sees as asyncio."""

    iscoroutinefunction = staticmethod(inspect.iscoroutinefunction)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("asyncio"), name)


def fire_module(name: str = "fire") -> Any:
    """fire, or a module of it. Other programs that import asyncio later get the true one."""
    if "fire" in sys.modules or "asyncio" in sys.modules:
        return importlib.import_module(name)
    stand_in = sys.modules["asyncio"] = StandIn("asyncio")
    try:
        return importlib.import_module(name)
    finally:
        if sys.modules.get("asyncio") is stand_in:
            del sys.modules["asyncio"]
