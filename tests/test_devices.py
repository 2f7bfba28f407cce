"""What is said about the GPU, with drivers and CuPys of our own making."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from llamagpu import devices, gpu_driver
from llamagpu.errors import DeviceError, UsageError


class FakeDriver:
    """Answers as libcuda would."""

    def __init__(self, n_gpus: int = 1, init_status: int = 0, version: int = 13000) -> None:
        self.n_gpus, self.init_status, self.version = n_gpus, init_status, version

    def cuInit(self, flags: int) -> int:
        return self.init_status

    def cuDeviceGetCount(self, count: ctypes.c_void_p) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.n_gpus
        return 0

    def cuDeviceGet(self, device: ctypes.c_void_p, index: int) -> int:
        return 0

    def cuDeviceGetName(self, name: ctypes.Array[ctypes.c_char], size: int, device: ctypes.c_int) -> int:
        name.value = b"Fake GPU"
        return 0

    def cuDriverGetVersion(self, version: ctypes.c_void_p) -> int:
        ctypes.cast(version, ctypes.POINTER(ctypes.c_int))[0] = self.version
        return 0


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver | None) -> None:
    monkeypatch.setattr(gpu_driver, "load_driver", lambda: driver)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, "no NVIDIA driver"),
        (FakeDriver(init_status=100), "shows no device"),
        (FakeDriver(n_gpus=0), "shows no device"),
        (FakeDriver(init_status=999), "does not start (cuInit error 999)"),
    ],
)
def test_why_there_is_no_gpu(driver: FakeDriver | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, driver)
    device = devices.choose_device("auto")
    assert device.name == "cpu"
    assert reason in device.why_not_gpu
    with pytest.raises(DeviceError, match="device='cuda' cannot be used: "):
        devices.choose_device("cuda")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, FakeDriver(n_gpus=2))
    with pytest.raises(DeviceError, match="there is no GPU 5"):
        devices.choose_device("cuda:5")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "CuPy is not installed"),
        ("raise ImportError('libcudart.so.12 is missing')", "libcudart.so.12 is missing"),
        ("raise RuntimeError('two CuPys are installed\\nremove one')", "two CuPys are installed"),
    ],
    ids=["absent", "import error", "another error"],
)
def test_what_is_wrong_with_cupy(
    source: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_driver(monkeypatch, FakeDriver())
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    if source is None:
        monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    else:
        (tmp_path / "cupy.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
    assert reason in devices.choose_device("auto").why_not_gpu
    with pytest.raises(DeviceError):
        devices.choose_device("cuda:0")


def test_a_gpu_that_can_be_used_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, FakeDriver(n_gpus=2))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    (tmp_path / "cupy.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert devices.choose_device("auto") == devices.Device("cuda:0", "GPU 0 (Fake GPU)", "")
    assert devices.choose_device("cuda").name == "cuda:0"
    assert devices.choose_device("cuda:1").description == "GPU 1 (Fake GPU)"
    assert devices.choose_device("cpu").why_not_gpu == "asked for"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "cuda:1000"])
def test_device_names(name: str) -> None:
    with pytest.raises(UsageError, match="device must be"):
        devices.choose_device(name)


@pytest.mark.parametrize(("version", "extra"), [(13020, "cuda13"), (12040, "cuda12"), (11080, "")])
def test_the_extra_for_a_driver(
    version: int, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_driver(monkeypatch, FakeDriver(version=version))
    script = Path(__file__).parent.parent / "scripts" / "which_extra.py"
    exec(compile(script.read_text(), str(script), "exec"), {"__file__": str(script)})
    assert capsys.readouterr().out.strip() == extra


def test_peak_memory_and_processor_are_known() -> None:
    peak = devices.peak_memory_bytes()
    assert peak is None or 1 << 20 < peak < 1 << 36
    assert "core" in devices.cpu_description()


def test_importing_the_package_is_light() -> None:
    """`import llamagpu` imports neither CuPy nor NumPy, and gives the public names."""
    code = (
        "import sys, llamagpu; assert not {'cupy', 'numpy', 'fire'} & set(sys.modules);"
        "llamagpu.load, llamagpu.LLM, llamagpu.SamplingParams, llamagpu.ModelFormatError;"
        "assert not {'cupy', 'fire'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
