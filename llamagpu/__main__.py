"""Entry point of the ``llamagpu`` command: whatever interrupts it or fails ends quietly or in one line."""

from __future__ import annotations

import os
import signal
import sys

from llamagpu.address_space import take_buffers, why_too_little

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main() -> None:
    try:
        prepare_streams()
        if too_little := why_too_little():
            print(f"llamagpu: error: {too_little}", file=sys.stderr)
            sys.exit(EXIT_FAILED)
        take_buffers()
        from llamagpu.cli import run_command  # in here, so that Ctrl-C during the imports ends cleanly too

        status = run_command(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader went away (`| head -1`): no error worth a message
        discard_stdout()
        status = EXIT_BROKEN_PIPE
    except OSError:  # the same failure that the command has told of, once more at the last flush
        discard_stdout()
        status = EXIT_FAILED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt but Python's own shutdown
    sys.exit(status)


def prepare_streams() -> None:
    """Streams that the caller closed (`>&-`) are None in Python: give them a place where nothing arrives."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]


def discard_stdout() -> None:
    """Stay quiet about stdout also when Python flushes it on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
