"""The command line's habits: short flags and other names, standard input, help, hints, JSON, and what is imported."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamagpu.cli import COMMANDS, HOMES, OTHER_NAMES, run_command
from llamagpu.cli_arguments import ALIASES, SHORT, normalize
from llamagpu.cli_help import EXAMPLES, GROUPS

ROOT = Path(__file__).parent.parent
GREEDY = ("--temp", "0", "--device", "cpu")


class Here:
    """Command lines in this process. Attributes: what the last one wrote."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capfd, self.monkeypatch = capfd, monkeypatch

    def __call__(self, *arguments: str | Path, stdin: bytes = b"") -> int:
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = run_command([str(argument) for argument in arguments])
        sys.stdout.flush()
        self.out, self.err = self.capfd.readouterr()
        return status


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(capfd, monkeypatch)


def words(command: str, *arguments: str) -> list[str]:
    return normalize(COMMANDS[command], arguments)


def test_short_flags_and_other_names() -> None:
    long = ["--model=m.bin", "--prompt=text", "--max_tokens=5", "--context=64", "--seed=-1", "--temperature=0.5"]
    assert words("run", *["-m", "m.bin", "-p", "text", "-n", "5", "-c", "64", "-s", "-1", "--temp", "0.5"]) == long
    assert words("run", *["-m=m.bin", "-p=text", "--n-predict", "5", "--ctx_size=64", "-s=-1", "--temp=0.5"]) == long
    assert words("run", "-m", "m.bin", "text") == ["--model=m.bin", "--prompt=text"]
    assert words("run", "m.bin", "-p", "text") == ["--prompt=text", "--model=m.bin"]
    assert words("run", "--memory", "a", "--memory_format=b") == ["--session=a", "--session_format=b"]
    assert words("run", "-f", "-", "--repeat-penalty", "1.1") == ["--prompt_file=-", "--repetition_penalty=1.1"]
    for name in ALIASES.values():
        assert any(f"--{name}=" in words(command, f"--{alias}=x")[0] for command in ("run", "chat")
                   for alias in ALIASES if ALIASES[alias] == name), name  # fmt: skip
    assert set(SHORT) == set("mpnctsf")


def test_no_in_front_of_a_switch() -> None:
    assert words("tokenize", "demo", "a", "--no-bos") == ["--bos=false", "--model=demo", "--text=a"]
    assert words("tokenize", "demo", "a", "--no_bos") == words("tokenize", "demo", "a", "--bos=false")
    assert words("bench", "--no-kernels") == ["--kernels=false"]


def test_no_limit_and_a_random_seed(here: Here) -> None:
    assert here("run", "demo", "-n", "-1", "-s", "-1", "--device", "cpu") == 0
    seeds = re.findall(r"seed (\d+)", here.err)
    assert seeds
    generated = re.search(r"generated (\d+) tokens", here.err)
    assert generated
    assert here("run", "demo", "-n", "100000", "-s", seeds[0], "--device", "cpu") == 0
    assert f"generated {generated[1]} tokens" in here.err


def test_the_prompt_comes_through_a_pipe(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"There was a\r\nfox\n\n")
    assert here("run", "demo", "There was a\nfox\n", "-n", "4", *GREEDY, "--echo") == 0
    expected = here.out
    assert expected.startswith("There was a\nfox\n")
    for arguments in ((), ("-",), ("-p", "-"), ("-f", "-")):
        assert here("run", "demo", *arguments, "-n", "4", *GREEDY, "--echo", stdin=file.read_bytes()) == 0
        assert here.out == expected, arguments
    assert here("run", "demo", "-f", file, "-n", "4", *GREEDY, "--echo") == 0
    assert here.out == expected
    assert here("run", "demo", "-n", "4", *GREEDY, "--echo") == 0  # nothing came
    assert here.out.startswith("Once upon a time")
    assert here("run", "demo", "-n", "4", stdin=b"\xff") == 2
    assert "standard input: is no UTF-8 text" in here.err


def test_a_session_goes_on_with_what_is_piped(here: Here, tmp_path: Path) -> None:
    options = ("-n", "4", *GREEDY, "--session", tmp_path / "a.session")
    assert here("run", "demo", *options) == 0
    assert here("run", "demo", *options, stdin=b" And a fox\n") == 0
    assert re.search(r"went on from \S+a.session: \d+ tokens", here.err)
    assert "prompt 1 token" not in here.err
    assert here("run", "demo", *options) == 0
    assert "prompt 1 token" in here.err  # nothing new


def test_standard_input_in_the_other_commands(here: Here) -> None:
    assert here("tokenize", "demo", "on the way") == 0
    expected = here.out
    for arguments in ((), ("-",)):
        assert here("tokenize", "demo", *arguments, stdin=b"on the way\n") == 0
        assert here.out == expected
    assert here("tokenize", "demo") == 2
    assert "TEXT is missing" in here.err
    assert here("perplexity", "demo", "-", "--device", "cpu", stdin=b"Once upon a time, there was a fox.") == 0
    assert re.search(r"scored in 1 window$", here.out, re.MULTILINE)
    assert here("compare", "demo", "demo", "-", "--documents", "--device", "cpu", stdin=b"Once upon a time.") == 0
    assert re.search(r"scored in 1 document$", here.out, re.MULTILINE)


def test_pieces(here: Here) -> None:
    assert here("tokenize", "demo", "the 猫", "--pieces") == 0
    rows = [line.split("\t") for line in here.out.splitlines()]
    assert [piece for _, piece in rows] == ["<s>", "' the'", "' '", r"'\xe7'", r"'\x8c'", r"'\xab'"]
    assert here("tokenize", "demo", "the 猫", "--pieces", "--json") == 0
    told = json.loads(here.out)
    assert told["ids"] == [int(token) for token, _ in rows]
    assert told["pieces"] == ["<s>", " the", " ", [0xE7], [0x8C], [0xAB]]
    assert here("tokenize", "demo", "the", "--json", "--no-bos") == 0
    assert json.loads(here.out) == {"ids": told["ids"][1:2]}


def test_json_of_info_and_doctor(here: Here) -> None:
    assert here("info", "--json") == 0
    told = json.loads(here.out)
    assert told["n_parameters"] == 1115520
    assert (told["config"]["dim"], told["config"]["n_layers"], told["positions"]) == (128, 5, 512)
    assert told["tokenizer"]["n_tokens"] == told["config"]["vocab_size"] == 1024
    assert told["kv_cache_bytes"] == 2 * 5 * 2 * 32 * 4 * 512
    assert here("info", "--json", "-c", "10") == 0
    assert json.loads(here.out)["kv_cache_bytes"] == 2 * 5 * 2 * 32 * 4 * 10
    assert here("doctor", "--json") == 0
    assert json.loads(here.out)["self_test"].startswith("passed: Once upon a time")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rum", "did you mean llamagpu run?"),
        ("perplexty", "did you mean llamagpu perplexity?"),
        ("generate", "did you mean llamagpu run?"),
        ("model.gguf", 'to run a model: llamagpu run model.gguf "a prompt"'),
        ("demo", "to run a model: llamagpu run demo"),
        ("xyzzy", "the commands are run, chat, pull, info"),
    ],
)
def test_a_command_that_is_nearly_right(name: str, hint: str, here: Here) -> None:
    assert here(name) == 2
    assert here.err.startswith(f"llamagpu: error: there is no command {name!r}: {hint}")
    assert here.err.count("\n") == 1


def test_every_other_name_is_of_a_command() -> None:
    assert set(OTHER_NAMES.values()) <= set(COMMANDS)
    assert not set(OTHER_NAMES) & set(COMMANDS)
    for name, (_, summary) in HOMES.items():
        assert (COMMANDS[name].__doc__ or "").startswith(summary), name


@pytest.mark.parametrize("columns", [60, 80, 300])
def test_help_fits_the_terminal(columns: int, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert here("--help") == 0
    starts = [line.index(HOMES[name][1][:12]) for name in COMMANDS for line in here.out.splitlines()
              if line.startswith(f"  {name} ")]  # fmt: skip
    assert len(starts) == len(COMMANDS)
    assert len(set(starts)) == 1  # aligned
    for name in COMMANDS:
        assert here(name, "--help") == 0
        of_command = here.out
        assert max(map(len, of_command.split("Examples:")[0].splitlines())) <= min(columns, 100)
        assert here("help", name) == 0
        assert here.out == of_command
        assert all(f"--{parameter}" in of_command.replace("[no-]", "") or f"{parameter.upper()}" in of_command
                   for parameter in words_of(name))  # fmt: skip
        assert of_command.rstrip().splitlines()[-1].strip() == EXAMPLES[name][-1]
    assert here("help", "rum") == 2


def words_of(name: str) -> list[str]:
    import inspect

    return list(inspect.signature(COMMANDS[name]).parameters)


def test_flags_are_in_groups(here: Here) -> None:
    assert here("run", "--help") == 0
    titles = [title for title in GROUPS if f"\n{title}:\n" in here.out]
    assert titles[:4] == ["Text", "Sampling", "Session", "Model and device"]
    assert here.out.index("Sampling:") < here.out.index("--temperature X") < here.out.index("Session:")
    assert "--session FILE" in here.out
    assert "-n, --max_tokens N" in here.out
    assert "--memory " not in here.out
    assert "\nFlags:\n" not in here.out  # each flag of run has its group


def test_the_version(here: Here) -> None:
    assert here("-V") == 0
    assert re.fullmatch(r"llamagpu \d+\.\d+\.\d+\S*\n", here.out)


def test_a_picture_is_an_svg(here: Here, tmp_path: Path) -> None:
    assert here("bench", "demo", "--plot", tmp_path / "x.png") == 2
    assert "the picture is SVG, so the name must end in .svg" in here.err
    assert not (tmp_path / "x.png").exists()


IMPORTED = "import sys; from llamagpu.cli import run_command; status = run_command(sys.argv[1:]); "
IMPORTED += "print(*sys.modules, file=sys.stderr); sys.exit(status)"


def imported(*arguments: str) -> set[str]:
    """The modules that are there once a command line has been run, in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return set(result.stderr.splitlines()[-1].split())


def test_run_imports_what_it_needs() -> None:
    modules = imported("run", "demo", "-n", "2", "--device", "cpu")
    assert {"llamagpu.commands", "fire", "numpy"} <= modules
    unwanted = ("asyncio", "bench", "convert", "cuda", "cupy", "tqdm", "jinja2", "quality", "chat_command", "inspect_c")
    found = [name for name in modules for part in unwanted if name.removeprefix("llamagpu.").startswith(part)
             or f".{part}" in name]  # fmt: skip
    assert not found


def test_help_imports_little() -> None:
    modules = imported("--help")
    assert not {"numpy", "llamagpu.commands", "llamagpu.bench", "asyncio"} & modules
    assert "numpy" not in imported("-V")


def test_fire_works_without_asyncio_and_leaves_it_alone() -> None:
    code = (
        "from llamagpu.late_fire import fire_module; fire = fire_module(); import sys; "
        "assert 'asyncio' not in sys.modules; import asyncio, inspect; assert asyncio.run; "
        "assert sys.modules['fire.core'].asyncio.get_event_loop is asyncio.get_event_loop"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["demo"]),
        (["Once upon"], ["demo", "Once upon"]),
        (["Once upon", "-n", "3"], ["demo", "Once upon", "-n", "3"]),
        (["FILE", "Once upon"], ["FILE", "Once upon"]),
        (["FILE"], ["FILE"]),
        (["nosuch.bin", "Once upon"], ["nosuch.bin", "Once upon"]),
        (["-m", "FILE", "Once"], ["-m", "FILE", "Once"]),
        (["--seed", "3"], ["demo", "--seed", "3"]),
        (["demo", "-n", "3"], ["demo", "-n", "3"]),
    ],
    ids=str,
)
def test_the_script_runs_the_model_that_it_is_given(arguments: list[str], expected: list[str], tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "run").write_text((ROOT / "scripts" / "run").read_text())
    (scripts / "setup.sh").write_text("python=echo\nsetup_venv() { true; }\n")
    file = tmp_path / "model.bin"
    file.touch()
    given: list[Any] = [str(file) if word == "FILE" else word for word in arguments]
    result = subprocess.run(["bash", scripts / "run", *given], capture_output=True, text=True, check=True, timeout=30)
    wanted = " ".join(str(file) if word == "FILE" else word for word in expected)
    assert result.stdout.strip() == f"-P -m llamagpu run {wanted}"
