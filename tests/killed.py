"""Runs a command again and again and kills it: python -m tests.killed N FILE KEPT REFRESH STDIN -- COMMAND ...

Every other kill is at any moment of the work, the others within a save: when something under a temporary name has
come. What FILE is after each is linked, or copied, into the folder KEPT, as 0, 1, 2 ...; after each REFRESH kills it is
removed first. One of the words of COMMAND may be A|B: then it is A and B in turn. Children are forked, since the
imports take longer than the work.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from llamagpu.cli import run_command

LONGEST_SAVE = 0.03  # seconds, and more: some kills come once it has its name


def start(arguments: list[str], stdin: str) -> int:
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.stdin = open(0)  # noqa: SIM115
    status = 99
    try:
        status = run_command(arguments)
    finally:
        os._exit(status)


def has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main(n: str, file: str, kept: str, refresh: str, stdin: str, dashes: str, *words: str) -> None:
    path, rng, seconds = Path(file), random.Random(7), 0.0
    n_kills = n_rounds = 0
    while n_kills < int(n):
        if int(refresh) and n_kills and n_kills % int(refresh) == 0:  # the first kills are of a file that is there
            path.unlink(missing_ok=True)
        options = [word.split("|") for word in words]
        arguments = [option[n_rounds % len(option)] for option in options]
        began, child = time.monotonic(), start(arguments, stdin)
        if n_rounds == 0:  # nobody disturbs it: how long is it?
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            seconds = time.monotonic() - began
        elif n_rounds % 2:
            time.sleep(rng.uniform(0, 1.2 * seconds))
        else:
            while not any(".part" in name for name in os.listdir(path.parent)) and not has_ended(child):
                time.sleep(0.0001)
            time.sleep(rng.uniform(0, LONGEST_SAVE))
        if n_rounds:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                place = Path(kept) / str(n_kills)
                if path.is_dir():
                    shutil.copytree(path, place)
                elif path.exists():
                    os.link(path, place)
                n_kills += 1
            else:
                assert os.waitstatus_to_exitcode(status) == 0, status
        n_rounds += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
