"""docs/benchmarks: the page holds what the JSON files beside it give, and nothing else."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def benchmark_table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("benchmark_table", str(ROOT / "scripts" / "benchmark_table"))
    spec = importlib.util.spec_from_loader("benchmark_table", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_page_is_what_the_files_give() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "benchmark_table"), "--check"], check=True)


def test_both_kinds_of_files(tmp_path: Path, benchmark_table: Any) -> None:
    row = {
        "context": 128, "tokens_per_s": 500.04, "p50_us": 2000.0, "p99_us": 2100.0, "gb_per_s": 1750.0,
        "percent_of_bandwidth": 61.2, "left_out": None,
    }  # fmt: skip
    left_out = {**dict.fromkeys(row), "context": 4096, "left_out": "too little memory"}
    figures = {"bandwidth_gb_per_s": 2859.6, "decode": [row, left_out], "dependent_launch": True}
    check = {
        "environment": {"ok": True, "device": "GPU A", "date": "2026-11-22"},
        "bench a": {"ok": True, "shape": "llama2-7b", "bits": 4, "head_bits": 16, **figures},
        "bench b": {"ok": False, "error": "out of time"},
    }
    bench = {
        **figures, "date": "2026-11-23T10:00:00+00:00", "device": {"description": "GPU B"}, "dependent_launch": None,
        "model": {"name": "demo", "bits": None, "head_bits": None},
    }  # fmt: skip
    for name, content in (("a.json", check), ("b.json", bench)):
        (tmp_path / name).write_text(json.dumps(content))
    text = benchmark_table.table([tmp_path / "a.json", tmp_path / "b.json"])
    assert "### GPU A, 2026-11-22 ([a.json](a.json))" in text
    assert "| llama2-7b, 4 bits, head 16 | dependent | 128 | 500.0 | 2000.0 | 2100.0 | 1750.0 | 61% |" in text
    assert "### GPU B, 2026-11-23 ([b.json](b.json))" in text
    assert "| demo | - | 128 |" in text
    assert "4096" not in text
    assert text.count("Copy bandwidth 2860 GB/s.") == 2
