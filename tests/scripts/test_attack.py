"""scripts/attack: what it throws, and that it sees a promise that is broken."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import random
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import llamagpu
from llamagpu.chat_templates import Model
from llamagpu.errors import ModelFormatError, TemplateError, UsageError
from llamagpu.memory import Memory
from llamagpu.session import Session
from llamagpu.tokenizers.huggingface import HuggingFaceTokenizer
from tests import attack_seeds as seeds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the script is for Linux")
SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
GREETING = [{"role": "user", "content": "hello"}]


def load_module(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(name, str(SCRIPTS / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> Any:
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        return load_module("attack")
    finally:
        sys.dont_write_bytecode = before


def test_templates_end_in_a_text_or_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamagpu.jinja_sandbox.MAX_SECONDS", 0.3)
    rng = random.Random(0)
    assert Model(seeds.PRELUDE, "", "").render(GREETING) == "hello"
    said = []
    for source in [*seeds.TEMPLATES.values(), *(seeds.random_template(rng) for _ in range(20))]:
        try:
            Model(source, "", "").render(GREETING)
        except TemplateError as error:
            said.append(str(error))
    assert all(line.isprintable() for line in said)
    assert len(said) > len(seeds.TEMPLATES)


def test_tokenizers_are_taken_or_refused_in_one_line() -> None:
    rng = random.Random(0)
    HuggingFaceTokenizer(seeds.tokenizer_file({}), Path("a"))
    said = []
    definitions = {
        name: parts for name, parts in seeds.TOKENIZERS.items() if "expression" not in name
    }  # which take long
    for parts in [*definitions.values(), *(seeds.random_tokenizer(rng) for _ in range(20))]:
        try:
            tokenizer = HuggingFaceTokenizer(seeds.tokenizer_file(parts), Path("a"))
            assert len(tokenizer.encode("a" * 100)) <= 100 * 100 + 1024
        except (ModelFormatError, UsageError) as error:
            said.append(str(error))
    assert all(line.isprintable() for line in said)
    assert len(said) >= len(definitions)


def test_damaged_sessions_are_refused_in_one_line(small_model: Path) -> None:
    llm, path, rng = llamagpu.load(small_model, device="cpu"), small_model.parent / "kept", random.Random(0)
    session = Session(llm)
    session.add([1, 270, 265])
    Memory(str(path)).save(session)
    data, said = path.read_bytes(), []
    for _ in range(200):
        path.write_bytes(seeds.damaged(data, rng))
        try:
            Memory(str(path)).load(llm)
        except ModelFormatError as error:
            said.append(str(error))
    assert all(line.isprintable() for line in said)
    assert len(said) > 150


def test_the_same_number_gives_the_same_attack() -> None:
    for make in (seeds.random_template, seeds.random_tokenizer, seeds.random_turn):
        assert make(random.Random(3)) == make(random.Random(3)) != make(random.Random(4))


LINE = "llamagpu: error: no\n"
BROKEN: dict[str, dict[str, Any]] = {
    "exit status -6": {"status": -6},
    "exit status 134": {"status": 134},
    "took more than 6 seconds": {"seconds": 25.0},
    "took 301 MiB": {"n_bytes": 301 << 20},
    "a traceback": {"stderr": "llamagpu: error: Traceback\n", "status": 1},
    "or an internal error": {"stderr": "llamagpu: error: internal error, please report it\n", "status": 1},
    "lines that are none": {"stderr": f"OpenBLAS error\n{LINE}", "status": 1},
    "control characters": {"stderr": "llamagpu: \x1b[31m\n"},
    "2 lines of error": {"stderr": 2 * LINE, "status": 1},
    "0 lines of error": {"status": 1},
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_promise_is_seen(problem: str, script: Any) -> None:
    good: dict[str, Any] = {
        "status": 0,
        "stdout": b"",
        "stderr": "llamagpu: seed 1\n",
        "seconds": 1.0,
        "n_bytes": 1 << 20,
    }
    assert script.problem_of(script.Run([]), script.Result(**good)) == ""
    assert problem in script.problem_of(script.Run([]), script.Result(**{**good, **BROKEN[problem]}))
    refused = script.Result(**{**good, "status": 1, "stderr": LINE})
    assert script.problem_of(script.Run([]), refused) == ""
    assert script.problem_of(script.Run([], statuses=(0,)), refused) == "exit status 1"


def test_files_of_the_user_are_looked_at(script: Any, tmp_path: Path) -> None:
    # of memory a new process counts what the one that starts it has, and a worker of the tests has much
    def destroys(folder: Path) -> Generator[Any, Any, None]:
        result = yield script.Run(["--version"], most_bytes=1 << 40)
        assert (result.status, result.stdout[:8]) == (0, b"llamagpu")
        (folder / "precious").write_bytes(b"gone")

    def leaves(folder: Path) -> Generator[Any, Any, None]:
        yield script.Run(["--version"], most_bytes=1 << 40)
        (folder / "a.part").touch()

    assert script.carry_out(destroys, tmp_path)[0] == "a file of the user is changed"
    assert script.carry_out(leaves, tmp_path)[0] == "a.part is left behind"


def test_the_command(tmp_path: Path) -> None:
    """One attack, chosen by a number, and the end."""
    words = [sys.executable, str(SCRIPTS / "attack"), "--kinds", "memory", "--seed", "5", "--seconds", "60"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert lines[0].split()[:4] == ["held", "memory", "seed", "5"]
    assert lines[1:] == ["1 attack, 0 failed"]
