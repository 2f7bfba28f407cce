"""The Python in docs/python.md runs as it is written, on the built-in model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOC = Path(__file__).parent.parent / "docs" / "python.md"


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(blocks) == 7
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        code = block.replace('"model.gguf"', '"demo"').replace("context=2048", "context=256")
        exec(compile(code, str(DOC), "exec"), names)
    assert names["answer"].stop_reason in ("eos", "stop", "max_tokens", "context")
    assert len(names["session"].tokens) == 5 + 64 + 64
    assert (tmp_path / "story.session").stat().st_size > 0
    assert len(capsys.readouterr().out) > 500
