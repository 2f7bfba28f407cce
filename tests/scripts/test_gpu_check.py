"""scripts/gpu_check as far as a machine without a GPU can go: over a CuPy of our own making."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamagpu import devices
from tests.fake_cupy import fake_cupy, fake_driver
from tests.kernels.harness import needs_emulator

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


def load_script(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(name, str(SCRIPTS / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return load_script("gpu_check")


def test_without_a_gpu_it_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    if not devices.why_no_gpu(0):
        pytest.skip("there is a GPU")
    command = [sys.executable, str(SCRIPTS / "gpu_check"), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("gpu_check: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_does_not_stop_the_others(tmp_path: Path, gpu_check: Any) -> None:
    check = gpu_check.Check(tmp_path)
    check.step("wrong", lambda: dict[str, Any]()["nothing"])
    check.step("right", lambda: {"figure": 1.5})
    status, text = check.command("slow.log", sys.executable, "-c", "print('so far', flush=True); input()", limit=60)
    assert (status, text) != (0, "")  # input() ends at once where there is no terminal
    status, _ = check.command("slow.log", sys.executable, "-c", "import time; time.sleep(60)", limit=1)
    assert status == 124
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    assert written["wrong"]["ok"] is False
    assert "KeyError: 'nothing'" in written["wrong"]["error"]
    assert written["right"]["figure"] == 1.5
    check.start -= gpu_check.SECONDS
    check.step("late", lambda: {})
    assert check.results["late"]["error"] == "no time left"


@needs_emulator
def test_the_built_in_model_speaks_on_both(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    monkeypatch.setenv("LLAMAGPU_DEPENDENT_LAUNCH", "0")
    monkeypatch.setattr(devices, "why_no_gpu", lambda index: "")
    figures = gpu_check.demo_text(12)
    assert set(figures) == {"tokens_per_s at temperature 0.0", "tokens_per_s at temperature 0.8"}


@needs_emulator
def test_a_benchmark_with_and_without_dependent_launch(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = load_script("gpu_probes.py")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    launched: list[int] = []
    monkeypatch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))
    monkeypatch.setattr(sys.modules["cuda.bindings"], "driver", fake_driver(launched), raising=False)
    for dependent in (True, False):
        launched.clear()
        figures = probes.bench("tiny", 4, 16, dependent, contexts=(20,), prompts=(12,))
        assert figures["dependent_launch"] is dependent
        assert (len(launched) > 0) is dependent
        assert figures["decode"][0]["tokens_per_s"] > 0
        assert figures["prompt"][0]["left_out"] is None
        assert "tok/s at 20" in gpu_check.summary(figures)
    assert probes.same_tokens("tiny", 12)["tokens"] == 12
