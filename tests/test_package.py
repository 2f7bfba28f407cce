"""The wheel: what is in it, and that it runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling: pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_kernels_and_the_built_in_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("llamagpu/demo.bin", "llamagpu/py.typed", "llamagpu/kernels/README.md", "llamagpu/cli.py"):
        assert name in names
    sources = {path.name for path in (ROOT / "kernels").iterdir()}
    assert sources == {name.split("/")[-1] for name in names if name.startswith("llamagpu/kernels/")}
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]
    demo = zipfile.ZipFile(wheel).getinfo("llamagpu/demo.bin")
    assert demo.compress_size <= 3_000_000


def test_the_source_distribution_holds_the_examples(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="it is built with hatchling: pip install hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert "llamagpu/py.typed" in names


def test_the_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-m", "llamagpu", "doctor"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert f"kernels       {site / 'llamagpu' / 'kernels'}" in result.stdout
    assert "self-test     passed" in result.stdout


def test_every_file_is_one_idea() -> None:
    """The house rule: no file of ours over 500 lines, none named utils."""
    for folder in ("llamagpu", "kernels", "tests", "scripts"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cu", ".cuh", ".h", ".cpp"):
                assert len(path.read_text().splitlines()) <= 500, path
                assert "utils" not in path.name, path


def test_imports_run_one_way() -> None:
    """formats, tokenizers and quantization know nothing of backends and models; backends know nothing of files."""
    forbidden = {
        "formats": ("backends", "models", "llm", "cli", "commands", "generation"),
        "tokenizers": ("backends", "models", "llm", "cli", "commands", "generation"),
        "quantization": ("backends", "models", "formats", "llm", "cli", "commands"),
        "models": ("formats", "tokenizers", "llm", "cli", "commands", "generation"),
        "backends": ("formats", "tokenizers", "models", "llm", "cli", "commands", "generation"),
    }
    for folder, names in forbidden.items():
        for path in (ROOT / "llamagpu" / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                if line.lstrip().startswith(("from llamagpu", "import llamagpu")):
                    assert not any(f"llamagpu.{name}" in line for name in names), f"{path}: {line}"
