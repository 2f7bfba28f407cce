"""CuPyDevice over a CuPy of our own making (tests/fake_cupy.py): the driver's part of it, without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from llamagpu.backends.cuda import CUDABackend, cupy_device
from llamagpu.backends.cuda.cupy_device import CuPyDevice
from llamagpu.errors import DeviceError, LlamaGPUError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import DEMO, LLM, load, model_path
from llamagpu.models.llama import Llama
from tests.fake_cupy import CompileException, fake_cupy
from tests.guarded_gpu import GuardedGPU
from tests.kernels.harness import needs_emulator

pytestmark = needs_emulator


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1 << 26))
    monkeypatch.setenv("LLAMAGPU_DEPENDENT_LAUNCH", "0")  # there is no driver behind it


def test_a_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(open_checkpoint(model_path(DEMO)), "cpu")
    llm.backend = CUDABackend(CuPyDevice())
    llm.model = Llama(llm.checkpoint, llm.backend)
    settings = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    text = "".join(llm.generate("Once upon a time", **settings))  # type: ignore[arg-type]
    assert text == "".join(load(DEMO, "cpu").generate("Once upon a time", **settings))  # type: ignore[arg-type]


def test_copies_larger_than_the_staging_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_device, "STAGING_BYTES", 1000)
    device = CuPyDevice()
    values = np.arange(12345, dtype=np.int16).reshape(5, 2469)
    assert (device.download(device.upload(values)) == values).all()
    assert (device.download(device.upload(values[:, ::2])) == values[:, ::2]).all()
    assert not device.download(device.zeros((7, 3), np.float32)).any()
    assert device.upload(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("plain", [False, True], ids=["guarded", "plain"])
def test_the_device_of_the_gpu_tests(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard bands find a write outside an array; the plain memory for compute-sanitizer has none."""
    monkeypatch.setenv("LLAMAGPU_PLAIN_MEMORY", "1" if plain else "")
    text = 'extern "C" __global__ void past(float* a, int n) { a[static_cast<int>(threadIdx.x) + n] = 1.f; }'
    device = GuardedGPU(sources=lambda family: text)
    launch, array = device.kernel("any", "past"), device.zeros((32,), np.float32)
    launch((1,), (32,), (array, np.int32(0)), 0)
    assert (device.download(array) == 1).all()
    if not plain:
        with pytest.raises(AssertionError, match="past: wrote outside argument 0"):
            launch((1,), (32,), (array, np.int32(32)), 0)
        with pytest.raises(AssertionError, match="past: wrote outside argument 0"):
            launch((1,), (1,), (array, np.int32(-1)), 0)


def test_too_little_memory_is_one_line() -> None:
    with pytest.raises(LlamaGPUError, match=r"too little memory: 0.12 GiB wanted, 0.06 of 0.06 GiB free: .*--context"):
        CuPyDevice().zeros((1 << 25,), np.float32)


def test_a_gpu_that_does_not_start() -> None:
    with pytest.raises(DeviceError, match="GPU 3 cannot be used: cudaErrorInvalidDevice"):
        CuPyDevice(3)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CompileException("k.cu(3): error: no\nmore"), "kernel add_rmsnorm does not compile here: k.cu"),
        (RuntimeError("Failed to find CUDA headers"), "CuPy cannot compile kernels: Failed to find CUDA headers"),
    ],
)
def test_a_compiler_that_fails(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CuPyDevice()

    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(device.cupy, "RawModule", fails)
    with pytest.raises(LlamaGPUError, match=message):
        device.kernel("rmsnorm", "add_rmsnorm")


def test_the_kernel_cache_where_home_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cupy_device.import_cupy()
    assert "CUPY_CACHE_DIR" not in os.environ
    monkeypatch.setattr(cupy_device, "can_write", lambda folder: False)
    cupy_device.import_cupy()
    assert "llamagpu-cupy-" in os.environ.pop("CUPY_CACHE_DIR")
