"""docs/recurrent.md: the page holds what the JSON files beside it give, and the figures say what it is about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "docs" / "benchmarks" / "recurrent"
MARKS = [128, 512, 2_000, 8_000, 16_000]


def states(size: str, kind: str) -> dict[int, int]:
    """Bytes of state after so many tokens."""
    rows: list[dict[str, Any]] = json.loads((FOLDER / f"{size}.json").read_text())["kinds"][kind]["rows"]
    return {row["tokens"]: row["state_bytes"] for row in rows}


def test_the_page_is_what_the_files_give() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "recurrent_benchmark"), "--check"], check=True)


@pytest.mark.parametrize("size", ["small", "large"])
def test_what_is_remembered_has_one_size_but_for_full_attention(size: str) -> None:
    full = states(size, "full")
    assert list(full) == MARKS
    assert [full[mark] / full[128] for mark in MARKS] == pytest.approx([mark / 128 for mark in MARKS], rel=0.01)
    longer = [100_000, 1_000_000] if size == "small" else []
    for kind in ("rwkv7", "memory", "window"):
        assert list(states(size, kind)) == MARKS + longer
    assert len(set(states(size, "rwkv7").values())) == len(set(states(size, "memory").values())) == 1
    window = states(size, "window")
    assert len({window[mark] for mark in [512, *MARKS[2:], *longer]}) == 1
