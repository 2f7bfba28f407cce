"""Answers for chat_reference, run by a Python that has transformers: the ids it gives for texts and conversations.

Each line of stdin is a job: {"folder": of a tokenizer, "tasks": a JSON file}. The file holds {"texts": [...], "chats":
[{"messages": [...], "args": {...}, "chat_template": a text, or null for the folder's own}]}. Each line of stdout is an
answer: a list of ids for each of them, or the reason of a refusal, and the version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers


def attempt(work: Callable[..., Any], *values: Any) -> Any:
    """What it returns, or as text why not: templates raise what they like."""
    try:
        return work(*values)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]


def answer(folder: str, tasks: dict[str, Any]) -> dict[str, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def chat(task: dict[str, Any]) -> Any:
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False, **task["args"]}
        options["chat_template"] = task["chat_template"]
        return attempt(lambda: tokenizer.apply_chat_template(task["messages"], **options))

    return {
        "version": transformers.__version__,
        "kind": type(tokenizer).__name__,
        "texts": [attempt(lambda text: tokenizer(text).input_ids, text) for text in tasks["texts"]],
        "chats": [chat(task) for task in tasks["chats"]],
    }


def main() -> int:
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:  # one job a line, so that the library is loaded once
        job = json.loads(line)
        found = attempt(answer, job["folder"], json.loads(Path(job["tasks"]).read_text()))
        if not isinstance(found, dict):
            found = {"version": transformers.__version__, "error": found}
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
