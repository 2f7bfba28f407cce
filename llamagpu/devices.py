"""Which device runs the model, and why not the GPU. Looks for a driver before anything imports CuPy."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamagpu.backends.protocol import Backend
from llamagpu.errors import DeviceError, UsageError, first_line
from llamagpu.gpu_driver import count_gpus, gpu_name
from llamagpu.option_names import option

# Told of long work as it goes on: what it is, how much more is done, of how much in all (0: that is not known).
OnWork = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Device:
    """name: "cpu" or "cuda:N". description: for people. why_not_gpu: empty on a GPU."""

    name: str
    description: str
    why_not_gpu: str

    def backend(self, on_work: OnWork = lambda title, n, total: None) -> Backend:
        """The backend of this device, ready for weights."""
        if self.name == "cpu":
            from llamagpu.backends.cpu import CPUBackend

            return CPUBackend()
        from llamagpu.backends.cuda import CUDABackend
        from llamagpu.backends.cuda.cupy_device import CuPyDevice

        index = int(self.name.removeprefix("cuda:"))
        return CUDABackend(CuPyDevice(index, on_compiled=lambda: on_work("compiling kernels", 1, 0)))


def choose_device(name: str = "auto", cpu_only: str = "") -> Device:
    """Device for "auto", "cuda", "cuda:N" or "cpu". A GPU that was asked for but cannot be used raises DeviceError.

    cpu_only: why only the CPU will do, if so; asking for a GPU is then a UsageError.
    """
    if name == "cpu":
        return Device("cpu", f"the CPU ({cpu_description()})", "asked for")
    match = re.fullmatch(r"auto|cuda(?::(\d{1,3}))?", name)
    if not match:
        raise UsageError(f"device must be auto, cuda, cuda:N or cpu, not {name!r}")
    if cpu_only and name != "auto":
        raise UsageError(f"{option('device', name)} cannot be used: {cpu_only} (leave {option('device')} out)")
    index = int(match[1] or 0)
    reason = cpu_only or why_no_gpu(index)
    if not reason:
        return Device(f"cuda:{index}", f"GPU {index} ({gpu_name(index)})", "")
    if name == "auto":
        return Device("cpu", f"the CPU ({cpu_description()})", reason)
    raise DeviceError(f"{option('device', name)} cannot be used: {reason} ({option('device', 'cpu')} runs on the CPU)")


def why_no_gpu(index: int) -> str:
    """Why GPU ``index`` cannot be used: the driver, the device or CuPy. Empty if it can."""
    count, reason = count_gpus()
    if reason:
        return reason
    if index >= count:
        return f"there is no GPU {index}: the driver shows {count}, numbered from 0"
    try:
        from llamagpu.backends.cuda.cupy_device import import_cupy

        import_cupy()
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        fix = 'pip install "llamagpu[cuda12]" or "llamagpu[cuda13]"'
        return f"CuPy is not installed: {fix}" if missing else f"CuPy does not import: {first_line(error)}"
    except Exception as error:  # CuPy's own start-up can fail in many ways; each is a reason, none a crash
        return f"CuPy does not import: {first_line(error)}"
    return ""


def cpu_description() -> str:
    """Name of the processor and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else name
    except OSError:
        pass
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {n_cores} core{'s' if n_cores != 1 else ''}"


def peak_memory_bytes() -> int | None:
    """Largest resident size of this process so far, mapped weights included; None where the system does not tell."""
    try:  # not getrusage: after an exec it still counts the process before
        found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
