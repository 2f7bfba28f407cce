"""scripts/measure/seed_programs with no program, and with small ones that say what they are told to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "scripts" / "measure" / "seed_programs"
FAKE = """#!{python}
import sys
print("once there was a hat and then nothing of ours")
print("achieved tok/s: 12.5", file=sys.stderr)
"""


def page(*flags: str) -> str:
    command = [sys.executable, str(SCRIPT), "--turns", "0", *flags]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_what_is_not_given_is_said() -> None:
    text = page("--only", "MicroRWKV,rllama")
    rows = [line for line in text.splitlines() if line.startswith(("| MicroRWKV", "| rllama"))]
    assert len(rows) == 8
    assert all(row.endswith("| not given in this run | - |") for row in rows)


def test_a_program_that_says_something_else_differs(tmp_path: Path) -> None:
    program = tmp_path / "runqm"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    text = page("--only", "llama2Rnn", "--llama2rnn", str(program), "--threads", "1")
    rows = {line.split(" | ")[1]: line for line in text.splitlines() if line.startswith("| llama2Rnn")}
    assert "| differs after " in rows["text over chunk boundaries"]
    assert rows["text over chunk boundaries"].endswith("| no |")
    assert rows["logits"].endswith("| not given in this run | - |")


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--rllama", str(tmp_path / "none")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"not found: --rllama {tmp_path / 'none'}\n"


def test_the_page_is_what_its_file_gives() -> None:
    subprocess.run([sys.executable, str(SCRIPT), "--check"], check=True)
    report = json.loads((ROOT / "docs" / "benchmarks" / "seeds" / "seed_programs.json").read_text())
    assert {row["system"].split()[0] for row in report["rows"]} == {
        "llama2.c", "llama2Rnn", "llama2.rs", "MicroRWKV", "rllama", "simple-llama",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["seed_files", "seed_originals", "seed_checks", "seed_ties"])
def test_nothing_of_the_tests_is_used(name: str) -> None:
    assert "from tests" not in (SCRIPT.parent / f"{name}.py").read_text()
