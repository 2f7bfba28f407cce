"""Fixtures that many tests share: real files where they are at hand, small made ones where they are not."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from llamagpu.backends.cuda.device import Device
from llamagpu.devices import why_no_gpu
from tests.emulated_device import EmulatedDevice, reason_for_no_emulator
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes

# What writes and dequantises GGUF files in the tests. A GPU machine may lack it: then the tests of GGUF are left out.
NEED_GGUF = [
    "formats/test_gguf.py",
    "formats/test_gguf_rwkv.py",
    "formats/test_hostile_gguf.py",
    "quantization/test_ggml.py",
    "tokenizers/test_gguf.py",
]
NEED_GGUF += ["models/test_formats_on_cuda.py"]
collect_ignore = [] if find_spec("gguf") else NEED_GGUF

DEFAULT_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real model files: LLAMAGPU_TEST_DATA, else ../shared/data."""
    folder = Path(os.environ.get("LLAMAGPU_TEST_DATA", DEFAULT_DATA))
    if not folder.is_dir():
        pytest.skip(f"no real model files: {folder} is absent (LLAMAGPU_TEST_DATA names another folder)")
    return folder


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A random llama2.c v0 model of 300 tokens and 32 positions, its tokenizer.bin beside it."""
    shape = Shape()
    path = tmp_path / "small.bin"
    path.write_bytes(v0_bytes(shape, random_weights(shape)))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    return path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        asked = "gpu" in str(metafunc.config.getoption("-m"))
        devices = [pytest.param("gpu", marks=pytest.mark.gpu)] if asked or not why_no_gpu(0) else []
        metafunc.parametrize("device", ["emulator", *devices], indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Device:
    """What kernels run on: the emulator always, and a GPU where there is one or `-m gpu` asks for it."""
    if request.param == "emulator":
        if reason := reason_for_no_emulator():
            pytest.skip(reason)
        return EmulatedDevice()
    if reason := why_no_gpu(0):
        pytest.skip(f"no GPU: {reason}")
    from tests.guarded_gpu import GuardedGPU

    return GuardedGPU.shared()
