"""A model's Jinja template, run by a program of its own that can do nothing but make a text, and not too long.

``template_child.py`` is that program: a fresh interpreter with jinja2 alone, which the system holds to its limits. It
starts in the background when the first template is opened and serves all that follow, so that a turn of a chat starts
no process. Whatever happens to it, the next text gets a new one. What it answers is hostile until checked.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import pkgutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from llamagpu.errors import TemplateError, UsageError, printable

# Of a processor: that much, and more for longer conversations. By the clock, WALL times as much on a busy machine.
MAX_SECONDS, BYTES_A_SECOND, WALL = 3.0, 1 << 21, 5
LIFE = 30.0  # seconds by the clock that one process works: far below where the system ends it (CPU_SECONDS)
START_SECONDS = 60.0  # a cold disk, a busy machine
# Of a text, in characters: what templates write themselves, and how much they may make of each byte that they get.
MORE_CHARACTERS, CHARACTERS_A_BYTE = 1 << 18, 8
# Address space of the child, in bytes: enough for a SMALL conversation, and more for each byte beyond.
MEMORY, MEMORY_A_BYTE, SMALL = 96 << 20, 32, 1 << 18
HAS_LIMITS = sys.platform == "linux"
LIBRARIES = ("jinja2", "markupsafe")
ENVIRONMENT = ("LD_LIBRARY_PATH", "SYSTEMROOT")  # without which some systems do not start an interpreter
LENGTH = struct.Struct(">I")
WAY_OUT = "--template plain or llama2 does without it"


class JinjaTemplate:
    """Raises TemplateError, in one line, for templates that are damaged, raise an error or compute too much."""

    def __init__(self, source: str) -> None:
        self.source = source
        CHILD.start()

    def render(self, messages: Sequence[Mapping[str, Any]], **names: Any) -> str:
        """The text that asks for an answer. names: what templates know by them, as JSON has it, such as bos_token."""
        names = {"messages": messages, "add_generation_prompt": True, **names}
        request = encoded(
            {
                "source": self.source, "names": names, "now": datetime.now().isoformat(),
                "seconds": (MAX_SECONDS, 1 / BYTES_A_SECOND), "characters": (MORE_CHARACTERS, CHARACTERS_A_BYTE),
            }
        )  # fmt: skip
        most = MORE_CHARACTERS + CHARACTERS_A_BYTE * len(request)
        seconds = MAX_SECONDS + len(request) / BYTES_A_SECOND
        try:
            with CHILD.lock:
                CHILD.start(MEMORY + MEMORY_A_BYTE * max(0, len(request) - SMALL))
                reply = CHILD.ask(LENGTH.pack(len(request)) + request, seconds, 8 * most)
            text = reply.get("text")
            if isinstance(text, str) and len(text) <= most:
                return text
            line = reply.get("line")
            problem = f"{first_line_of(reply.get('error'))}{f' (line {line})' if isinstance(line, int) else ''}"
        except ChildError as error:
            problem = str(error)
        raise TemplateError(f"the model's chat template cannot be used: {problem}; {WAY_OUT}")


class ChildError(Exception):
    """Why there is no reply."""


class Child:
    """At most one process at a time. lock: held by whoever asks."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.process: subprocess.Popen[bytes] | None = None
        self.memory = self.owner = 0
        self.worked = 0.0  # seconds
        self.is_ready = self.is_late = False

    def start(self, memory: int = MEMORY) -> None:
        """See that there is one with this much memory, without waiting for it. Raises UsageError."""
        with self.lock:
            if self.process is not None and self.owner != os.getpid():  # the process before a fork has it
                self.process.returncode, self.process = 0, None
            if self.process is not None and (
                self.process.poll() is not None or memory > self.memory or self.worked > LIFE
            ):
                self.stop()
            if self.process is None:
                self.memory = memory if memory == MEMORY else 2 * memory  # so that a long talk does so a few times
                self.owner, self.is_ready, self.worked = os.getpid(), False, 0.0
                self.process = start_process(self.memory)

    def ask(self, request: bytes, seconds: float, most: int) -> dict[str, Any]:
        """The reply, of at most so many bytes. Raises ChildError, and then the process is gone."""
        try:
            if not self.is_ready:
                if not self.exchange(b"", START_SECONDS, 1 << 12).get("ready"):
                    raise ChildError("the Python that runs it does not start")
                self.is_ready = True
            begun = time.monotonic()
            reply = self.exchange(request, seconds, most)
            self.worked += time.monotonic() - begun
            return reply
        except BaseException:  # Ctrl-C too: it would answer the next one with what this one asked for
            self.stop()
            raise

    def exchange(self, request: bytes, seconds: float, most: int) -> dict[str, Any]:
        """Send the bytes, if any, and read one reply."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self.is_late = False
        timer = threading.Timer(WALL * seconds, self.end_late, (process,))
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            head = process.stdout.read(LENGTH.size)
            n = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 0
            body = process.stdout.read(n) if n <= most else b""
        except OSError:
            body = b""
        finally:
            timer.cancel()
        if self.is_late:
            raise ChildError(f"it takes longer than {WALL * seconds:.1f} seconds by the clock")
        try:
            reply = json.loads(body.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise ChildError(self.how_it_ended(seconds))
        return reply

    def end_late(self, process: subprocess.Popen[bytes]) -> None:
        self.is_late = True
        process.kill()

    def how_it_ended(self, seconds: float) -> str:
        if self.process is None or not self.is_ready:
            return f"the Python that runs it ({printable(sys.executable)}) does not start, or has no jinja2"
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # it has closed its pipes: it is about to end by itself, and that says why
        self.process.kill()
        status = self.process.wait()
        if status == -getattr(signal, "SIGPROF", 0):
            return f"it takes longer than {seconds:.1f} seconds"
        return f"it takes too much memory, or breaks the Python that runs it (exit status {status})"

    def stop(self) -> None:
        """End the process, and leave nothing of it."""
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what was not sent yet
                        pipe.close()


CHILD = Child()
atexit.register(CHILD.stop)


def start_process(memory: int) -> subprocess.Popen[bytes]:
    """A Python that sees neither PYTHON* variables, nor the user's packages, nor the current folder.

    It belongs to no terminal, so that Ctrl-C does not reach it, and ends when its pipes do, so with this process.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise UsageError(f"the model's chat template needs a Python interpreter, and there is none; {WAY_OUT}")
    program = Path(__file__).with_name("template_child.py")
    code = [str(program)]
    if not program.is_file():  # within a zip file
        code = ["-c", (pkgutil.get_data("llamagpu", program.name) or b"").decode()]
    command = [sys.executable, "-I", "-S", "-B", *code, str(memory if HAS_LIMITS else 0), *library_folders()]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    try:
        if os.name == "posix":
            return subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment, start_new_session=True
            )
        new_group = 0x200  # CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment, creationflags=new_group
        )
    except OSError as error:
        raise UsageError(
            f"{printable(sys.executable)}, which runs the model's chat template: {error.strerror}"
        ) from None


def library_folders() -> list[str]:
    """Where jinja2 and what it needs lie, found without importing them: a folder or a zip file, each once."""
    folders = dict[str, None]()
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folders[str(Path(spec.origin).parent.parent)] = None
    return list(folders)


def encoded(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")


def first_line_of(error: object) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0])[:200] if lines else "it gives no text"
