"""What the NVIDIA driver says, asked by ctypes: no CuPy, no NumPy, under a millisecond, on any machine."""

from __future__ import annotations

import ctypes
from functools import cache

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@cache
def load_driver() -> ctypes.CDLL | None:
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None


def count_gpus() -> tuple[int, str]:
    """Number of GPUs that the driver shows, and the reason where that is none."""
    driver = load_driver()
    if driver is None:
        return 0, "no NVIDIA driver (libcuda.so.1 was not found)"
    status = driver.cuInit(0)
    if status == NO_DEVICE:
        return 0, "the NVIDIA driver shows no device"
    if status:
        return 0, f"the NVIDIA driver does not start (cuInit error {status})"
    count = ctypes.c_int()
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return 0, f"the NVIDIA driver does not count its devices (error {status})"
    return count.value, "" if count.value else "the NVIDIA driver shows no device"


def gpu_name(index: int) -> str:
    """Name of a GPU that the driver shows, such as "NVIDIA H100 80GB HBM3"."""
    driver = load_driver()
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return "unknown"
    return "unknown" if driver.cuDeviceGetName(name, len(name), device) else name.value.decode(errors="replace")


def driver_version() -> int:
    """Newest CUDA version that the driver supports, as 1000 * major + 10 * minor; 0 where there is no driver."""
    driver = load_driver()
    version = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return 0
    return version.value
