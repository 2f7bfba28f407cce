"""Whether a limit of address space (``ulimit -v``) leaves enough to begin at all.

Below it NumPy's OpenBLAS fails while it is imported: with many lines, or after a while. So this is looked at before,
and imports nothing that is large.
"""

from __future__ import annotations

import os

MIB = 1 << 20
LEAST = 384 * MIB  # Python, NumPy, a tokenizer's library and the built-in model, with one thread
PER_THREAD = 48 * MIB  # a stack of 8 MiB, and OpenBLAS' buffer of 32 MiB
MOST_THREADS = 64  # that NumPy's OpenBLAS is built for
THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")  # the first that is set counts


def needed(n_threads: int) -> int:
    """Bytes without which no command is begun."""
    return LEAST + PER_THREAD * (n_threads - 1)


def count_threads() -> int:
    """As OpenBLAS will have."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = next((text for text in map(os.environ.get, THREADS) if text and text.isdigit() and int(text) > 0), None)
    return min(n_cores, MOST_THREADS, int(asked) if asked else MOST_THREADS)


def limit() -> int | None:
    """Bytes that this process may map; None where there is no limit, or the system has none."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def take_buffers() -> None:
    """Under a limit, take now what OpenBLAS takes at the first product: it ends the program where there is none."""
    if limit() is not None:
        import numpy as np

        np.matmul(*np.ones((2, 128, 128), np.float32))


def why_too_little() -> str:
    """What is missing, in one line; empty where there is enough."""
    has, n_threads = limit(), count_threads()
    least = needed(n_threads)
    if has is None or has >= least:
        return ""
    fewer = f", or set OPENBLAS_NUM_THREADS=1, which needs {needed(1) // MIB} MiB" if n_threads > 1 else ""
    return (
        f"this process may use {has // MIB} MiB of address space, and needs {least // MIB} MiB before it opens a model:"
        f" raise the limit (ulimit -v {least // 1024}){fewer}"
    )
