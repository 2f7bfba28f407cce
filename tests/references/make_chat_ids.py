"""Writes chat_ids.json: the ids that transformers gives for texts and conversations with tokenizers of several kinds.

python -m tests.references.make_chat_ids        (needs transformers; 4.57 and 5.24 give the same)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.chat_folders import ARGUMENTS, CONVERSATIONS, KINDS, TEMPLATES, TEXTS, fold, write_folder
from tests.tokenizers.tokenizer_json import mistral_like

STORED = Path(__file__).with_name("chat_ids.json")
CHAT = Path(__file__).with_name("chat.json")


def trained() -> dict[str, str]:
    """The tokenizers as trained once: a library may break ties anew."""
    if STORED.exists():
        found: dict[str, str] = json.loads(STORED.read_text())["tokenizers"]
        return found
    pieces = json.loads(mistral_like())
    pieces["post_processor"] = None
    n = len(pieces["model"]["vocab"])
    controls = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    pieces["added_tokens"] += [{"id": n + i, "content": text, **flags} for i, text in enumerate(controls)]
    return {"bytes": json.loads(CHAT.read_text())["tokenizer"], "pieces": json.dumps(pieces, ensure_ascii=False)}


def answers(tokenizers: dict[str, str]) -> dict[str, Any]:
    """Ids by kind, and by kind, template and conversation; a text where transformers refuses."""
    from transformers import AutoTokenizer

    found: dict[str, Any] = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), kind, tokenizers)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        found[kind] = [tokenizer(text).input_ids for text in TEXTS]
        for name, template in TEMPLATES.items():
            for case, messages in CONVERSATIONS.items():
                ids = chat_ids(tokenizer, template, messages, ARGUMENTS if case == "arguments" else {})
                found[f"{kind}/{name}/{case}"] = ids
                if case.startswith("system"):
                    found[f"{kind}/{name}/{case}, folded"] = chat_ids(tokenizer, template, fold(messages), {})
    return found


def chat_ids(tokenizer: Any, template: str, messages: list[dict[str, str]], arguments: dict[str, Any]) -> Any:
    options = {"chat_template": template, "add_generation_prompt": True, "return_dict": False, **arguments}
    try:
        return tokenizer.apply_chat_template(messages, tokenize=True, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    tokenizers = trained()
    found = {"tokenizers": tokenizers, **answers(tokenizers)}
    lines = (f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in found.items())
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
