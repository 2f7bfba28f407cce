"""Commands that are killed at any moment leave the old file or the new one, and it opens."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llamagpu
from llamagpu.chat import Chat
from llamagpu.chat_templates import Plain
from llamagpu.formats import native
from llamagpu.generation import Answer
from llamagpu.memory import Memory
from tests.float_models import float_model
from tests.memory_files import WARM, begin

N_KILLS = int(os.environ.get("LLAMAGPU_TEST_KILLS", "5"))  # of each test
REFRESH = 40  # kills after which a text begins anew, before it comes to its end
SAMPLING = (
    "--device", "cpu", "--seed", "3", "--temperature", "1", "--top_k", "0", "--top_p", "1", "--min_p", "0",
    "--repetition_penalty", "1.1",
)  # fmt: skip


def killed(path: Path, refresh: int, words: tuple[str, ...], stdin: bytes = b"") -> list[Path]:
    """What a command left after each kill, in order; where it left nothing, there is nothing."""
    kept, said = path.parent / "kept", path.parent / "said"
    kept.mkdir()
    said.write_bytes(stdin)
    script = [sys.executable, "-m", "tests.killed", str(N_KILLS), str(path), str(kept), str(refresh), str(said), "--"]
    subprocess.run([*script, *words], check=True, timeout=60 + 10 * N_KILLS)
    assert len([name for name in os.listdir(path.parent) if name.endswith(".part")]) <= 1  # the next took the others
    return [kept / str(n) for n in range(N_KILLS)]


def test_run(tmp_path: Path) -> None:
    llm, path = llamagpu.load("demo", device="cpu"), tmp_path / "a"
    whole = begin(llm)
    n_begun = whole.length
    "".join(Answer(whole, 180, WARM))
    left = killed(path, REFRESH, ("run", "demo", "--max_tokens", "3", "--session", str(path), *SAMPLING))
    n_before = 0
    for n, file in enumerate(left):
        n_before = 0 if n % REFRESH == 0 else n_before
        if not file.exists():
            assert n_before == 0
            continue
        session, _ = Memory(str(file)).load(llm)
        assert session.tokens == whole.tokens[: session.length]
        n_new = len(session.tokens) - n_begun
        assert n_new % 3 == 0  # whole runs
        assert n_new >= n_before
        n_before = n_new
    assert n_before > 0


def test_chat(tmp_path: Path) -> None:
    llm, path = llamagpu.load("demo", device="cpu", window=64), tmp_path / "a"
    words = ("chat", "demo", "--max_tokens", "3", "--window", "64", "--session", str(path), *SAMPLING)
    before: list[dict[str, str]] = []
    for n, file in enumerate(killed(path, REFRESH, words, b"Who?\nAnd then?\n" * 3)):
        before = [] if n % REFRESH == 0 else before
        if not file.exists():
            assert not before
            continue
        session, conversation = Memory(str(file)).load(llm)
        Chat(session, Plain("<s>")).restore(conversation, file)
        messages = json.loads(conversation)["messages"]
        assert messages[: len(before)] == before
        assert len(messages) % 2 == 0
        before = messages
    assert before


@pytest.mark.parametrize("format", ["llamagpu", "huggingface"])
def test_convert(format: str, tmp_path: Path) -> None:
    sources, wholes = [tmp_path / name for name in "ab"], [tmp_path / f"whole {name}" for name in "ab"]
    flags = ("--quantize", "q4", "--tokenizer", "none", "--format", format)
    for seed, (source, whole) in enumerate(zip(sources, wholes, strict=True)):
        native.write(source, float_model(seed=seed, dim=256, hidden_dim=512, vocab_size=1000, n_layers=2))
        script = [sys.executable, "-m", "llamagpu", "convert", str(source), str(whole), *flags]
        subprocess.run(script, check=True, capture_output=True)
    folder = tmp_path / "out"
    folder.mkdir()
    words = ("convert", "|".join(map(str, sources)), str(folder / "x"), "--force", *flags)
    for file in killed(folder / "x", 0, words):
        llamagpu.load(file, "cpu", tokenizer=None)
        assert any(same(file, whole) for whole in wholes)


def same(one: Path, other: Path) -> bool:
    if not one.is_dir():
        return filecmp.cmp(one, other, shallow=False)
    names = sorted(os.listdir(one))
    return names == sorted(os.listdir(other)) and filecmp.cmpfiles(one, other, names, False)[0] == names
