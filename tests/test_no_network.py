"""No command uses the network unless a model of the hub is asked for, and then it reaches the hub alone."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamagpu.cli import COMMANDS
from llamagpu.privacy import NO_REPORTS
from tests.hub_server import hub_server
from tests.no_network import MACHINES
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes

SCRIPT = Path(__file__).with_name("no_network.py")
ROOT = SCRIPT.parent.parent
FAST = ("--device", "cpu")
DOCTOR = ["doctor"]


def commands(model: str, folder: Path) -> list[list[str]]:
    """Each command once."""
    text = folder / "text.txt"
    text.write_text("on the other hand there is another one " * 3)
    messages = folder / "messages.json"
    messages.write_text('[{"role": "user", "content": "on"}]')
    return [
        ["run", model, "on the", "--max_tokens", "3", *FAST],
        ["chat", model, "--max_tokens", "3", *FAST],
        ["info", model],
        ["convert", model, str(folder / "q8.bin"), "--quantize", "q8", "--group_size", "16", "--force"],
        ["perplexity", model, str(text), *FAST],
        ["compare", model, str(folder / "q8.bin"), str(text), *FAST],
        ["tokenize", model, "on the"],
        ["tokenize", model, "--messages", str(messages)],
        ["bench", model, "--contexts", "4", "--prompts", "4", "--tokens", "2", *FAST],
        DOCTOR,
    ]


def guarded(reach: str, given: list[list[str]], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run commands where nothing, or loopback alone, can be reached."""
    file = folder / "commands.json"
    file.write_text(json.dumps(given))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home"), **more}
    return subprocess.run(
        [sys.executable, "-P", str(SCRIPT), reach, str(file)], input="on the\n", capture_output=True, text=True,
        timeout=120, check=False, env=environment,
    )  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shape = Shape(max_seq_len=256)
    path = tmp_path / "small.bin"
    path.write_bytes(v0_bytes(shape, random_weights(shape)))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    return path


def test_no_command_uses_the_network(model: Path, tmp_path: Path) -> None:
    given = commands(str(model), tmp_path)
    assert {command[0] for command in given} == set(COMMANDS) - {"pull"}  # whose work it is
    done = guarded("none", given, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no_network: ['doctor']" in done.stderr
    assert "huggingface_hub was imported" not in done.stderr


def test_a_model_of_the_hub_reaches_the_hub_alone(model: Path, tmp_path: Path) -> None:
    """Each command takes hf:, and tells the hub no more than huggingface_hub's and Python's versions."""
    pytest.importorskip("huggingface_hub", reason='downloads need: pip install "llamagpu[hub]"')
    given = [["pull", "o/small"], *commands("hf:o/small", tmp_path)]
    assert {command[0] for command in given} == set(COMMANDS)
    with hub_server() as server:
        server.add("o/small", {path.name: path.read_bytes() for path in (model, model.with_name("tokenizer.bin"))})
        environment = {"HF_ENDPOINT": server.url, "NO_PROXY": "127.0.0.1"}
        done = guarded("loopback", given, tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        assert server.downloads() == ["small.bin", "tokenizer.bin"]
        with_models = [command for command in given if command != DOCTOR]
        assert server.requests.count("GET /api/models/o/small/revision/main") == len(with_models)
        told = {part.partition("/")[0] for agent in server.agents for part in agent.split("; ")}
        assert told <= {"unknown", "hf_hub", "python"}
    offline = guarded("none", given[:2], tmp_path, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_the_walls_stand() -> None:
    """What is tried behind them is noticed: by Python, and by a library that does not tell Python."""
    python = "import socket; socket.create_connection(('192.0.2.1', 9), 1)"
    native = "import ctypes; ctypes.CDLL(None).socket(2, 1, 0)"
    for reach, code in (("none", python), ("loopback", python), ("none", native)):
        script = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from tests import no_network as walls; tried = []\n"
        script += f"walls.watch_python({reach == 'loopback'}, tried)\n"
        script += "walls.forbid_sockets()\n" if code == native else ""
        script += f"try:\n    {code}\nfinally:\n    print(tried, flush=True)\n"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
        if code == python:
            assert "192.0.2.1" in done.stdout, done.stderr
            assert done.returncode == 1
        elif platform.system() == "Linux" and platform.machine() in MACHINES:
            assert done.returncode == -signal.SIGSYS


def test_usage_reports_are_off() -> None:
    """Before any library is imported, and unless the user has said otherwise."""
    script = f"import os, llamagpu; print({{name: os.environ[name] for name in {list(NO_REPORTS)}}})"
    clean = {name: value for name, value in os.environ.items() if name not in NO_REPORTS}
    for asked in ({}, {"HF_HUB_DISABLE_TELEMETRY": "0"}):
        environment = {**clean, **asked, "PYTHONPATH": str(ROOT)}
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment).stdout
        assert out.decode().strip() == str({**NO_REPORTS, **asked})
