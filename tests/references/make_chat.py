"""Writes chat.json: what transformers makes of conversations with templates in the styles of published models.

python -m tests.references.make_chat        (needs transformers and torch)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.chat_templates import CONVERSATIONS, TEMPLATES, chat_tokenizer


def main() -> None:
    found: dict[str, Any] = {"tokenizer": chat_tokenizer().decode()}  # as trained once: a library may break ties anew
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(found["tokenizer"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="</s>")
    for name, template in TEMPLATES.items():
        for kind, messages in CONVERSATIONS.items():
            options = {"chat_template": template, "add_generation_prompt": True}
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
            found[f"{name}/{kind}"] = {"text": text, "ids": ids}
    Path(__file__).with_name("chat.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
