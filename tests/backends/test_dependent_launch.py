"""Programmatic dependent launch: what reaches the driver, and when it is used. Speed only a GPU can show."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from llamagpu.backends.cuda import CUDABackend, dependent_launch
from llamagpu.backends.cuda.cupy_device import CuPyDevice
from llamagpu.formats import open_checkpoint
from llamagpu.llm import DEMO, LLM, load, model_path
from llamagpu.models.llama import Llama
from tests.fake_cupy import fake_cupy, fake_driver
from tests.kernels.harness import needs_emulator

FAKE_DRIVER = r"""
#include <stdio.h>
#include <string.h>
typedef struct { unsigned id; char pad[4]; char value[64]; } Attribute;
typedef struct { unsigned grid[3], block[3], shared; void* stream; Attribute* attributes; unsigned n; } Config;
int cuLaunchKernelEx(const Config* c, void* function, void** parameters, void** extra) {
    printf("%u %u %u / %u %u %u / %u / %zu / %u %u %d / %zu / ", c->grid[0], c->grid[1], c->grid[2], c->block[0],
           c->block[1], c->block[2], c->shared, (size_t)c->stream, c->n, c->attributes[0].id,
           *(int*)c->attributes[0].value, (size_t)function);
    printf("%zu %zu %d %g\n", *(size_t*)parameters[0], *(size_t*)parameters[1], *(int*)parameters[2],
           *(float*)parameters[3]);
    return 0;
}
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuGetProcAddress_v2(const char* name, void** place, int version, unsigned long long flags, int* status) {
    *place = !strcmp(name, "cuLaunchKernelEx") ? (void*)cuLaunchKernelEx
             : !strcmp(name, "cuInit") ? (void*)cuInit
             : !strcmp(name, "cuDriverGetVersion") ? (void*)cuDriverGetVersion
             : !strcmp(name, "cuGetProcAddress") ? (void*)cuGetProcAddress_v2 : 0;
    if (status) *status = *place ? 0 : 1;
    return 0;
}
"""
CALLER = """
import numpy as np
from types import SimpleNamespace
from llamagpu.backends.cuda import dependent_launch
array = SimpleNamespace(data=SimpleNamespace(ptr=4096))
dependent_launch.find((9, 0))(123, (5, 2), (128,), (array, None, np.int32(4), np.float32(0.5)), 100, 77)
"""


def test_nvidias_own_bindings_pass_on_what_is_meant(tmp_path: Path) -> None:
    """The real cuda-bindings over a driver of our own making, which prints what it is given."""
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: pip install the extra llamagpu[test]")
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler: the driver of this test is written in C")
    (tmp_path / "driver.c").write_text(FAKE_DRIVER)
    command = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c")]
    subprocess.run(command, check=True)
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(root)}
    environment.pop("LLAMAGPU_DEPENDENT_LAUNCH", None)
    result = subprocess.run([sys.executable, "-c", CALLER], capture_output=True, text=True, env=environment)
    assert result.stderr == ""
    assert result.stdout == "5 2 1 / 128 1 1 / 100 / 77 / 1 6 1 / 123 / 4096 0 4 0.5\n"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The launches that went through a driver of our own making."""
    made: list[int] = []
    monkeypatch.delenv("LLAMAGPU_DEPENDENT_LAUNCH", raising=False)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1 << 26))
    monkeypatch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))
    monkeypatch.setattr(sys.modules["cuda.bindings"], "driver", fake_driver(made), raising=False)
    return made


def speak(device: CuPyDevice) -> str:
    llm = LLM(open_checkpoint(model_path(DEMO)), "cpu")
    llm.backend = CUDABackend(device)
    llm.model = Llama(llm.checkpoint, llm.backend)
    return "".join(llm.generate("Once upon a time", max_tokens=8, temperature=0))


@needs_emulator
def test_a_whole_model_by_dependent_launches(launched: list[int]) -> None:
    expected = "".join(load(DEMO, "cpu").generate("Once upon a time", max_tokens=8, temperature=0))
    assert speak(CuPyDevice()) == expected
    assert len(launched) > 8 * 6


@needs_emulator
def test_one_switch_turns_them_off(launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAGPU_DEPENDENT_LAUNCH", "0")
    device = CuPyDevice()
    assert device.dependent_launch is None
    assert speak(device) != ""
    assert launched == []


def test_older_gpus_have_none(launched: list[int]) -> None:
    assert dependent_launch.find((8, 9)) is None
    assert dependent_launch.find((12, 0)) is not None


def test_without_the_bindings_there_is_none(launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert dependent_launch.find((9, 0)) is None
