"""The examples run on the built-in model, each in a process of its own, and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import llamagpu

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTED = {
    "generate": r"[^\n]{40,}[\s\S]*\n\[64 tokens, ended by max_tokens\]\n",
    "chat": r"\S[\s\S]{40,}\n\[ended by (max_tokens|eos|stop)\]\n\S[\s\S]*\n",
    "logprobs": r".+\n(\s*'.*' +\d+\.\d%   of ('.*' \d+\.\d%(, )?){3}\n){8}",
    "sessions": r"[\s\S]{20,} \| [\s\S]{20,}\n",
    "compare": r"perplexity \d+\.\d{3} with 16 bits, \d+\.\d{3} with 8\nKL divergence \d\.\de-\d\d nats a token; .*%\n",
}


def run(name: str) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_all_are_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_it_prints_what_it_promises(name: str) -> None:
    printed = run(name)
    assert re.fullmatch(PRINTED[name], printed), printed
    if name == "sessions":  # in two parts it is the text that one run gives
        whole = llamagpu.load("demo").generate("Once upon a time", 32, temperature=0).text
        assert printed == f"{whole[: printed.index(' | ')]} | {whole[printed.index(' | ') :]}\n"


@pytest.mark.parametrize("name", PRINTED)
def test_it_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 20
