"""docs/quantization.md: the page holds what the JSON files beside it give, and says what the issue of it asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "docs" / "quantization").glob("*.json"))


def test_the_page_is_what_the_files_give() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "quantization_table"), "--check"], check=True)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_what_the_figures_say(file: Path) -> None:
    """GPTQ loses less than rounding at every group size, and 8 bits next to nothing."""
    rows = {row["name"]: row for row in json.loads(file.read_text())["settings"]}
    for group in (32, 64, 128):
        nearest = rows[f"q4 to nearest, group {group}, head 8"]
        for act_order in ("", ", act-order"):
            assert rows[f"GPTQ, group {group}, head 8{act_order}"]["kl"] < nearest["kl"]
    q8 = rows["q8, group 128, head 8"]
    assert q8["perplexity"] / q8["perplexity_float32"] - 1 < 0.001


def test_there_are_figures() -> None:
    assert [file.stem for file in FILES] == ["demo", "stories260K"]
