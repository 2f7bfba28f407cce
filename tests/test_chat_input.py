"""What a user says in a chat: several lines, a paste, history, JSON; and the commands that change a conversation."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

import llamagpu
from llamagpu.chat import Chat
from llamagpu.chat_templates import choose_template
from llamagpu.memory import Memory
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.test_chat_command import GREEDY, PROMPT, Terminal
from tests.test_cli import llamagpu as command

OPTIONS = ("demo", *GREEDY, "--template", "plain", "--max_tokens", "4")


def said(path: Path) -> list[str]:
    """What the user said in a saved chat."""
    conversation = Memory(str(path)).load(llamagpu.load("demo", device="cpu"))[1]
    return [message["content"] for message in json.loads(conversation)["messages"] if message["role"] == "user"]


def test_several_lines_and_a_paste_are_one_turn(tmp_path: Path) -> None:
    kept, state = tmp_path / "a", tmp_path / "state"
    variables = {"TERM": "xterm", "XDG_STATE_HOME": str(state)}
    terminal = Terminal(*OPTIONS, "--session", kept, variables=variables)
    terminal.wait_for(PROMPT)
    terminal.type('"""One\n')
    terminal.wait_for(r"\.\.\. ")
    terminal.type(" two\n")
    terminal.wait_for(r"\.\.\. ")
    terminal.type('three"""\n')
    terminal.wait_for(PROMPT)
    terminal.type("\x1b[200~Four\nfive\x1b[201~\r")
    terminal.wait_for(PROMPT)
    terminal.type('"""six"""\n')
    terminal.wait_for(PROMPT)
    terminal.type("/bye\n")
    assert terminal.end() == 0
    assert said(kept) == ["One\n two\nthree", "Four\nfive", "six"]
    file = state / "llamagpu" / "chat_history"
    assert "six" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    terminal = Terminal(*OPTIONS, "--session", kept, variables=variables)
    terminal.wait_for(PROMPT)
    terminal.type("\x1b[A\x1b[A\n")  # up twice: the last line but one of the chat before
    terminal.wait_for(PROMPT)
    terminal.type("/exit\n")
    assert terminal.end() == 0
    assert said(kept)[3:] == ["six"]


def test_the_history_can_be_switched_off(tmp_path: Path) -> None:
    terminal = Terminal(*OPTIONS, "--no-history", variables={"XDG_STATE_HOME": str(tmp_path)})
    terminal.wait_for(PROMPT)
    terminal.type("secret\n")
    terminal.wait_for(PROMPT)
    terminal.type("/exit\n")
    assert terminal.end() == 0
    assert not list(tmp_path.iterdir())


def test_the_prompt_has_the_time_where_it_is_told() -> None:
    terminal = Terminal(*OPTIONS, "--tell_time")
    terminal.wait_for(r"\(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\)  >>> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_jsonl() -> None:
    lines = [{"user": "Tell me of a fox."}, {"user": "/stats\nand more"}]
    result = command("chat", *OPTIONS, "--jsonl", stdin="\n".join(map(json.dumps, lines)).encode())
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert [list(answer) for answer in answers] == [["assistant", "stop_reason"]] * 2
    assert [answer["stop_reason"] for answer in answers] == ["max_tokens"] * 2
    plain = command("chat", *OPTIONS, stdin=b"Tell me of a fox.\n").stdout.decode()
    assert plain == answers[0]["assistant"] + "\n"


@pytest.mark.parametrize(
    "line", ["Hello", '{"user": 3}', '{"assistant": "a"}', "[]", '{"user": "a", "b": 1}', "[" * 9999]
)
def test_lines_that_are_not_such_objects(line: str) -> None:
    result = command("chat", *OPTIONS, "--jsonl", stdin=f"\n{line}\n".encode())
    assert (result.returncode, result.stdout) == (2, b"")
    assert "error: line 2 of standard input: is not a JSON object such as" in result.stderr.decode()


def test_commands_that_change_a_conversation(tmp_path: Path) -> None:
    kept = tmp_path / "a"
    lines = "One.\nTwo.\n/undo\n/regen\n/set\n/set temp 0.5\n/set max-tokens 3\n/set seed 7\n"
    lines += "/system Be brief.\n/system\nThree.\n"
    result = command("chat", *OPTIONS, "--session", kept, stdin=lines.encode())
    assert result.returncode == 0, result.stderr
    notices = result.stderr.decode()
    for part in ("taken back: Two.", "temperature 0.0, top_k 40", "temperature is 0.5", "max_tokens is 3", "seed is 7",
                 "the system prompt is: Be brief.", "stopped after 3 tokens"):  # fmt: skip
        assert part in notices, part
    assert said(kept) == ["One.", "Three."]
    first, second, again, _ = result.stdout.decode().split("\n")[:4]
    assert first == again != second  # greedy
    session = Memory(str(kept)).load(llamagpu.load("demo", device="cpu"))[0]
    text = session.llm.tokenizer.decode(session.tokens)
    assert text.startswith("Be brief.\nUser: One.\nAssistant:")
    assert "Two." not in text


def test_a_turn_that_was_taken_back_leaves_nothing() -> None:
    llm = llamagpu.load("demo", device="cpu")
    greedy = SamplingParams(temperature=0.0)
    chat = Chat(Session(llm), choose_template("plain", llm)[0], None, greedy, 5)
    assert chat.undo() is None
    "".join(chat.ask("One."))
    before = list(chat.session.tokens)
    first = "".join(chat.ask("Two."))
    assert chat.undo() == "Two."
    assert (chat.session.tokens, len(chat.messages)) == (before, 2)
    assert "".join(chat.ask("Two.")) == first
    again = Chat(
        Session(llm), choose_template("plain", llm)[0], None, greedy, 5
    )  # as after a file: nobody knows where turns began
    again.restore(chat.to_json(), Path("a"))
    again.session.add(chat.session.tokens)
    assert again.undo() == "Two."
    assert again.session.tokens == []
    assert "".join(again.ask("Two.")) == first
    assert [message["content"] for message in again.messages] == [message["content"] for message in chat.messages]


def test_a_document_may_come_through_the_pipe() -> None:
    """Where there is no terminal to talk at after it, that is said."""
    result = command("chat", *OPTIONS, "--document", "-", stdin=b"A fox.")
    if os.path.exists("/dev/tty") and result.returncode == 0:
        pytest.skip("this process has a terminal")
    assert result.returncode == 2
    assert re.search("standard input was the document, and there is no terminal", result.stderr.decode())


@pytest.mark.parametrize("command_", ["/save", "/load", "/save!"])
@pytest.mark.parametrize("with_session", [False, True])
def test_a_path_that_names_nothing_does_not_end_the_chat(tmp_path: Path, command_: str, with_session: bool) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    kept = ("--session", str(tmp_path / "a")) if with_session else ()
    terminal = Terminal(*OPTIONS, *kept)
    terminal.wait_for(PROMPT)
    terminal.type(f"{command_} {'x' * 300}\n")
    assert "is no name for a file: File name too long" in terminal.wait_for(PROMPT)
    terminal.type(f"{command_} {circle}\n")
    assert re.search(r"error: .*circle(' is no name for a file| is no regular file)", terminal.wait_for(PROMPT))
    terminal.type("/quit\n")
    assert terminal.end() == 0


def test_settings_stay_after_load(tmp_path: Path) -> None:
    kept = tmp_path / "a"
    lines = f"One\n/save {kept}\n/set temperature 0.3\n/set top_k 7\n/load {kept}\n/set\n"
    told = command("chat", *OPTIONS, stdin=lines.encode())
    assert told.returncode == 0, told.stderr
    last = told.stderr.decode().splitlines()[-1]
    assert "temperature 0.3, top_k 7, " in last


@pytest.mark.parametrize("line", ["/reset", "/load other", "/reset\n/system Be brief."])
def test_the_session_file_stays_until_something_is_said(tmp_path: Path, line: str) -> None:
    """After /reset and /load, which say so."""
    kept, other = tmp_path / "a", tmp_path / "other"
    options = ("chat", *OPTIONS, "--session", kept)
    line = line.replace("other", str(other))
    assert command(*options, stdin=f"Mine\n/save {other}\nAnd more\n".encode()).returncode == 0
    before = kept.read_bytes()
    assert command(*options, stdin=f"{line}\n/quit\n".encode()).returncode == 0
    assert kept.read_bytes() == before
    assert command(*options, stdin=f"{line}\nNew\n".encode()).returncode == 0
    assert said(kept) == (["Mine", "New"] if "load" in line else ["New"])


def test_save_to_the_own_file_after_reset_is_obeyed(tmp_path: Path) -> None:
    kept = tmp_path / "a"
    assert command("chat", *OPTIONS, "--session", kept, stdin=f"One\n/reset\n/save {kept}\n".encode()).returncode == 0
    assert said(kept) == []
