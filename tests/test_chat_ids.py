"""The ids that a model reads are those of transformers: of texts, and of conversations with templates of many kinds."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from llamagpu.errors import UsageError
from llamagpu.model_text import open_text
from tests.chat_folders import ARGUMENTS, CONVERSATIONS, KINDS, TEMPLATES, TEXTS, write_folder

STORED: dict[str, Any] = json.loads((Path(__file__).parent / "references" / "chat_ids.json").read_text())
# All conversations with two kinds of tokenizer; with the others those parts that depend on what BOS and EOS are.
TRIED = [
    (kind, name, list(CONVERSATIONS) if kind in ("begins", "pieces") else ["user", "system"])
    for kind in KINDS
    for name in TEMPLATES
    if kind in ("begins", "pieces") or "_token" in TEMPLATES[name]
]
TAKES_NONE = ("refuses a system prompt", "drops a system prompt")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_read_as_transformers_reads_them(kind: str, tmp_path: Path) -> None:
    write_folder(tmp_path, kind, STORED["tokenizers"])
    tokenizer = open_text(tmp_path).tokenizer
    assert [tokenizer.encode(text) for text in TEXTS] == STORED[kind]


@pytest.mark.parametrize(("kind", "name", "cases"), TRIED, ids=[f"{kind}, {name}" for kind, name, _ in TRIED])
def test_conversations_are_read_as_transformers_reads_them(
    kind: str, name: str, cases: list[str], tmp_path: Path
) -> None:
    write_folder(tmp_path, kind, STORED["tokenizers"])
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    model = open_text(tmp_path)
    for case in cases:
        messages = CONVERSATIONS[case]
        folded = case.startswith("system") and name in TAKES_NONE
        wanted = STORED[f"{kind}/{name}/{case}{', folded' if folded else ''}"]
        notices: list[str] = []
        arguments = ARGUMENTS if case == "arguments" else {}
        if isinstance(wanted, str):
            with pytest.raises(UsageError, match="template"):
                model.chat_ids(messages, arguments, notice=notices.append)
        else:
            assert model.chat_ids(messages, arguments, notice=notices.append) == wanted, case
        assert len(notices) == folded


def test_one_template_refuses_and_another_drops_what_is_folded() -> None:
    """So that the conversations above do try both."""
    for kind in KINDS:
        assert "System role not supported" in STORED[f"{kind}/refuses a system prompt/system"]
        assert STORED[f"{kind}/drops a system prompt/system"] == STORED[f"{kind}/drops a system prompt/user"]
        assert STORED[f"{kind}/default system/system"] != STORED[f"{kind}/default system/system, folded"]


def test_stored_ids_are_what_transformers_gives_today() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own
        pytest.importorskip("transformers", reason="transformers is not installed: its stored answers are used")
        from tests.references.make_chat_ids import answers

        found = answers(STORED["tokenizers"])
    assert found == {name: value for name, value in STORED.items() if name != "tokenizers"}
