"""What a Python program sees: the names, their types, and errors in Python's words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import llamagpu
from llamagpu.chat import Chat
from llamagpu.chat_templates import choose_template
from llamagpu.cli import run_command
from llamagpu.errors import UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.load_options import LoadOptions
from llamagpu.option_names import named_as_flags, option
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session

NAMES = {"load", "LLM", "LoadOptions", "SamplingParams", "Session", "Chat", "Answer"}
ERRORS = {
    "LlamaGPUError", "UsageError", "ContextFullError", "TemplateError", "DeviceError", "ModelFormatError", "HubError",
    "ModelChangedError", "OutOfMemoryError",
}  # fmt: skip


def test_dir_shows_the_names_and_each_is_there() -> None:
    shown = {name for name in dir(llamagpu) if not name.startswith("_")}
    assert shown == NAMES | ERRORS == set(llamagpu.__all__)
    for name in NAMES | ERRORS:
        assert getattr(llamagpu, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Lama'"):
        llamagpu.Lama  # noqa: B018


def test_import_and_dir_import_nothing_else() -> None:
    code = "import sys, llamagpu; dir(llamagpu); print([m for m in sys.modules if m.startswith(('numpy', 'cupy'))])"
    code += "; print([m for m in sys.modules if m.startswith('llamagpu.')])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["[]", "['llamagpu.privacy']"]  # which sets variables of the environment


USER_SCRIPT = """
import llamagpu
from llamagpu import LoadOptions, SamplingParams

llm = llamagpu.load("demo", options=LoadOptions(device="cpu"))
reveal_type(llm)
reveal_type(llm.generate("x"))
reveal_type(SamplingParams().top_k)
llamagpu.load("demo", contxt=3)
"""


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_sees_the_types_in_a_users_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(USER_SCRIPT)
    flags = ["--config-file", "", "--follow-imports=silent", "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *flags, str(script)]
    root = Path(llamagpu.__file__).parent.parent
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    for shown in ('"llamagpu.llm.LLM"', '"llamagpu.generation.Generation"', '"int"', '"contxt" for "load"'):
        assert shown in result.stdout.replace("builtins.", ""), result.stdout + result.stderr


def test_objects_say_what_they_are(small_model: Path) -> None:
    llm = llamagpu.load(small_model, "cpu")
    assert repr(llm) == "<LLM 'small.bin': llama, 2 layers of 16, context 32, on cpu>"
    session = Session(llm)
    assert repr(session) == f"<Session: 0 tokens, 0 of them run, of {llm!r}>"
    assert session._state is None  # no memory is taken to say so
    session.add([1, 5, 6])
    assert repr(session) == f"<Session: 3 tokens, 0 of them run, of {llm!r}>"
    generation = llm.generate("the on", max_tokens=4, temperature=0)
    assert repr(generation) == "<Generation: 3 tokens of prompt, 0 new ones, unfinished>"
    "".join(generation)
    assert repr(generation) == "<Generation: 3 tokens of prompt, 4 new ones, max_tokens>"
    chat = Chat(session, choose_template("plain", llm)[0], "Be brief.")
    assert repr(chat) == f"<Chat: 1 messages, template plain, {session!r}>"
    assert repr(SamplingParams(seed=3)).startswith("SamplingParams(temperature=0.8, top_k=40,")
    assert repr(LoadOptions(context=8)).startswith("LoadOptions(device='auto', tokenizer=None, context=8, faithful=")


def test_options_are_kept_in_one_value(small_model: Path) -> None:
    options = LoadOptions("cpu", context=8, kv_bits=8)
    with pytest.raises(FrozenInstanceError):
        options.context = 9  # type: ignore[misc]
    for llm in (llamagpu.load(small_model, options=options), LLM(open_checkpoint(small_model), options=options)):
        assert (llm.context, llm.kv_bits, llm.options) == (8, 8, options)
    assert llamagpu.load(small_model, options=replace(options, context=9)).context == 9


def test_options_are_those_of_load_and_llm() -> None:
    """In the same order, so that positional calls of old go on."""
    names = [option.name for option in fields(LoadOptions)]
    assert list(signature(llamagpu.load).parameters) == ["model", *names, "options"]
    assert list(signature(LLM).parameters) == ["checkpoint", *names, "options"]
    for one in fields(LoadOptions):
        assert one.default == signature(llamagpu.load).parameters[one.name].default
        assert one.default == signature(LLM).parameters[one.name].default


def test_options_beside_options_are_refused(small_model: Path) -> None:
    with pytest.raises(UsageError, match="context is given beside options"):
        llamagpu.load(small_model, context=8, options=LoadOptions("cpu"))
    with pytest.raises(UsageError, match=r"options must be LoadOptions, not \{'device': 'cpu'\}"):
        llamagpu.load(small_model, options={"device": "cpu"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"device": None}, "device must be auto, cuda, cuda:N or cpu, not None"),
        ({"device": "tpu"}, "device must be auto, cuda, cuda:N or cpu, not 'tpu'"),
        ({"tokenizer": 5}, "tokenizer must be a path or a name, not 5"),
        ({"context": "8"}, "context must be a whole number from 1, not '8'"),
        ({"context": 33}, "context must be a whole number from 1 to 32, not 33"),
        ({"on_work": 1}, "on_work must be a function, not 1"),
        ({"faithful": "yes"}, "faithful must be True or False, not 'yes'"),
        ({"kv_bits": 8.0}, "kv_bits must be 8 or 16, not 8.0"),
        ({"window": "12"}, "window must be a whole number from 1, not '12'"),
        ({"sinks": None}, "sinks must be a whole number from 0, not None"),
        ({"memory_update": 1}, "memory_update must be chunk or token, not 1"),
        ({"recurrent": 0}, "recurrent must be True or False, not 0"),
        ({"model": 5}, "model must be a path or a name, not 5"),
        ({"model": b"x"}, "model must be a path or a name, not b'x'"),
    ],
)
def test_wrong_options_are_told_in_pythons_words(values: dict[str, Any], words: str, small_model: Path) -> None:
    with pytest.raises(UsageError) as raised:
        llamagpu.load(**{"model": small_model, "device": "cpu", **values})
    assert str(raised.value) == words


def test_a_path_in_place_of_a_checkpoint_is_told() -> None:
    with pytest.raises(UsageError, match=r"LLM takes an opened checkpoint, not 'demo': llamagpu\.load opens a file"):
        LLM("demo")  # type: ignore[arg-type]


def test_errors_name_arguments_in_python_and_flags_in_a_command(
    small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_model.parent / "tokenizer.bin").unlink()
    with pytest.raises(UsageError, match=r": give one with tokenizer=FILE$"):
        llamagpu.load(small_model, "cpu").generate("a")
    with named_as_flags(), pytest.raises(UsageError, match=r": give one with --tokenizer FILE$"):
        llamagpu.load(small_model, "cpu").generate("a")
    assert run_command(["run", str(small_model), "a", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.endswith(": give one with --tokenizer FILE\n")


def test_how_options_are_named() -> None:
    assert [option("context"), option("kv_bits", 8), option("device", "cpu"), option("tokenizer", "FILE")] == [
        "context", "kv_bits=8", "device='cpu'", "tokenizer=FILE"
    ]  # fmt: skip
    with named_as_flags():
        assert [option("context"), option("kv_bits", 8)] == ["--context", "--kv_bits 8"]
    assert option("context") == "context"
