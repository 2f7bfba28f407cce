"""docs/endless.md: its tables are what the files give, and the figures are what the page says of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_what_the_files_give() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "endless_perplexity"), "--check"], check=True)


def test_a_window_goes_on_where_the_plain_model_fails() -> None:
    figures = json.loads((ROOT / "docs" / "benchmarks" / "endless" / "perplexity.json").read_text())
    assert (figures["model"], figures["positions"], figures["tokens"]) == ("stories260K.bin", 512, 20_000)
    rows = {(row["name"], row.get("window")): row for row in figures["rows"]}
    inside = rows["inside the context", None]
    window = rows["window", 252]
    beyond = rows["plain, forced beyond its positions", None]
    assert math.exp(window["nll"] - inside["nll"]) < 1.1
    assert math.exp(beyond["nll"] - inside["nll"]) > 100
    for row in figures["rows"]:
        sizes = [b - a for a, b in zip(figures["edges"], figures["edges"][1:], strict=False)]
        total = sum(size * nll for size, nll in zip(sizes, row["nll_of_parts"], strict=True))
        assert abs(total / figures["tokens"] - row["nll"]) < 1e-9
