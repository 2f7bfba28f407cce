"""Entry point of the ``llamagpu`` command: whatever interrupts it or fails ends quietly or in one line."""

from __future__ import annotations

import os
import signal
import sys

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main() -> None:
    try:
        from llamagpu.cli import run_command  # in here, so that Ctrl-C during the imports ends cleanly too

        status = run_command(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head -1`): stay quiet, also when Python flushes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_BROKEN_PIPE
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt but Python's own shutdown
    sys.exit(status)


if __name__ == "__main__":
    main()
