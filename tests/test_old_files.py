"""What version 0.1 wrote opens for ever: models say the same text, sessions go on as they would have, flags still work.

The files and ``expected.json`` were made by tests/references/make_v0_1.py. They are never made again: a version that
writes otherwise gets a folder of its own beside them.
"""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu.chat import Chat
from llamagpu.chat_templates import choose_template
from llamagpu.cli import COMMANDS
from llamagpu.cli_arguments import normalize
from llamagpu.generation import Answer
from llamagpu.memory import Memory
from llamagpu.sampling import SamplingParams

FOLDER = Path(__file__).parent / "data" / "v0.1"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text())
GREEDY = SamplingParams(temperature=0.0)


@pytest.mark.parametrize("name", EXPECTED["models"])
def test_a_model_says_the_same(name: str) -> None:
    expected = EXPECTED["models"][name]
    llm = llamagpu.load(FOLDER / f"{name}.bin", device="cpu")
    answer = llm.generate(expected["prompt"], max_tokens=len(expected["ids"]), temperature=0.0)
    assert ("".join(answer), answer.tokens) == (expected["text"], expected["ids"])
    prompt = answer.prompt_tokens
    logits = llm.logits([*prompt, *answer.tokens])[len(prompt) - 1 : -1]
    best = np.sort(logits, axis=1)
    lead = ((best[:, -1] - best[:, -2]) / logits.std(axis=1)).min()
    assert lead > 0.02, "two tokens are so near one another that the text is the same by luck"


@pytest.mark.parametrize("name", [name for name in EXPECTED["sessions"] if name != "chat"])
def test_a_session_goes_on(name: str, tmp_path: Path) -> None:
    expected = EXPECTED["sessions"][name]
    path = tmp_path / name
    shutil.copyfile(FOLDER / f"{name}.session", path)
    llm = llamagpu.load(FOLDER / f"{expected['model']}.bin", device="cpu", **expected["options"])
    session, chat = Memory(str(path), expected["format"]).load(llm)
    assert chat == ""
    if expected["format"] == "llamagpu":
        told = (session.tokens, session.n_drawn, session.seed)
        assert told == (expected["tokens"], expected["n_drawn"], expected["seed"])
    else:
        assert (session.tokens, session.n_unknown) == ([], len(expected["tokens"]) % llm.config.mem_len)
    session.add(llm.tokenizer.encode_more(expected["more"]))
    answer = Answer(session, len(expected["ids"]), GREEDY)
    assert ("".join(answer), answer.tokens) == (expected["text"], expected["ids"])


def test_a_chat_goes_on(tmp_path: Path) -> None:
    expected = EXPECTED["sessions"]["chat"]
    path = tmp_path / "chat"
    shutil.copyfile(FOLDER / "chat.session", path)
    llm = llamagpu.load(FOLDER / f"{expected['model']}.bin", device="cpu")
    session, conversation = Memory(str(path)).load(llm)
    assert session.tokens == expected["tokens"]
    chat = Chat(session, choose_template("auto", llm)[0], None, GREEDY, 12)
    chat.restore(conversation, path)
    assert chat.messages == expected["messages"]
    text = "".join(chat.ask(expected["ask"]))
    assert chat.answer is not None
    assert (text, chat.answer.tokens) == (expected["text"], expected["ids"])


@pytest.mark.parametrize("name", EXPECTED["flags"])
def test_old_flags_still_work(name: str) -> None:
    """Each parameter of each command is still taken under its name, alone or with what the command must have."""
    command = COMMANDS[name]
    needed = [p.name for p in inspect.signature(command).parameters.values() if p.default is p.empty]
    for flag in EXPECTED["flags"][name]:
        words = normalize(command, [f"--{key}=of {flag}" for key in dict.fromkeys((*needed, flag))])
        assert any(f"of {flag}" in word for word in words), flag
