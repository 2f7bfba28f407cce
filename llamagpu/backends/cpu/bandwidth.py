"""What the machine's memory can do at best: the yardstick for the CPU backend, which is all reading of weights."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np

COPY_BYTES = 256 << 20  # many times the last cache
REPEATS = 5


def copy_bandwidth() -> float:
    """Bytes per second of a NumPy copy of 256 MB, each thread copying its part; bytes read and bytes written count.

    As many threads as matrix products use. Median of 5, after one that only makes the pages; less than 256 MB where
    little memory is free. What a processor reads of a line before it overwrites it is not counted.
    """
    free = available_bytes()
    n_bytes = COPY_BYTES if free is None else min(COPY_BYTES, max(free // 8, 1 << 20))
    source, target = np.ones(n_bytes, np.uint8), np.zeros(n_bytes, np.uint8)
    n_threads = matmul_threads()
    parts = list(zip(np.array_split(target, n_threads), np.array_split(source, n_threads), strict=True))
    times = []
    for _ in range(REPEATS + 1):
        threads = [threading.Thread(target=np.copyto, args=part) for part in parts]  # copies without the GIL
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        times.append(time.perf_counter() - start)
    return 2 * n_bytes / median(times[1:])


def matmul_threads() -> int:
    """Threads of NumPy's matrix products: one per core that this process may use, or as its BLAS is told."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def forget_peak() -> bool:
    """Let devices.peak_memory_bytes() begin anew from what is used now. False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
