"""Runs commands of llamagpu in this process, behind walls that a use of the network runs into.

Arguments: "none" or "loopback", which is what may be reached, and a JSON file with a list of commands, each a list of
arguments. Python's own use of sockets is told to an audit hook. Where nothing may be reached, and on Linux, a filter of
the kernel ends the process, or one that it starts, when it opens a socket of the internet: libraries in C and Rust do
so without telling Python. Status 0: each command ended with 0, and nothing tried to reach anything.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import platform
import socket
import struct
import sys
from pathlib import Path
from typing import Any

EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
          "socket.gethostbyaddr", "socket.getnameinfo", "socket.bind")  # fmt: skip
# By machine: what the kernel calls it, and its number of the system call socket
MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
NO_NEW_PRIVILEGES, SET_FILTER, MODE_FILTER = 38, 22, 2
KILL, ALLOW = 0x80000000, 0x7FFF0000
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06


def watch_python(loopback: bool, tried: list[str]) -> None:
    """Note and refuse each use of the internet by Python code."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        address = arguments[1] if isinstance(arguments[0], socket.socket) else arguments
        is_a_file = isinstance(address, (str, bytes))  # a socket between processes
        if not is_a_file and not (loopback and is_loopback(address)):
            tried.append(f"{event} {address}")
            raise PermissionError(tried[-1])

    sys.addaudithook(hook)


def is_loopback(address: Any) -> bool:
    """Whether a host and a port are of this machine."""
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except (ValueError, TypeError, IndexError):
        return False


def forbid_sockets() -> bool:
    """Let the kernel end this process, and those that it starts, at a socket of the internet; whether it can."""
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        return False
    machine, number = MACHINES[platform.machine()]
    # Loads are of struct seccomp_data: the call's number at 0, the machine at 4, the first argument at 16.
    lines = [
        (LOAD, 0, 0, 4), (EQUAL, 0, 5, machine), (LOAD, 0, 0, 0), (EQUAL, 0, 3, number), (LOAD, 0, 0, 16),
        (EQUAL, 2, 0, socket.AF_INET), (EQUAL, 1, 0, socket.AF_INET6), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL),
    ]  # fmt: skip
    code = b"".join(struct.pack("<HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(lines), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    address = ctypes.addressof(holder := ctypes.create_string_buffer(program, len(program)))
    failed = libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(SET_FILTER, MODE_FILTER, address, 0, 0)
    del holder
    return not failed


def main() -> int:
    tried: list[str] = []
    loopback = sys.argv[1] == "loopback"
    watch_python(loopback, tried)
    if not loopback and not forbid_sockets():
        print("no_network: Python alone is watched", file=sys.stderr)
    from llamagpu.cli import run_command

    for command in json.loads(Path(sys.argv[2]).read_text()):
        print(f"no_network: {command}", file=sys.stderr, flush=True)
        if status := run_command(command):
            return status
        if tried:
            print(f"no_network: {command} tried {tried}", file=sys.stderr)
            return 99
    if "huggingface_hub" in sys.modules:
        print("no_network: huggingface_hub was imported", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
