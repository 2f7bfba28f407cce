"""Tokenizer folders of the kinds that models have, and chat templates with what public ones do; all made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tokenizers.tokenizer_json import bos_template

BEGIN, END = "<|begin_of_text|>", "<|eot_id|>"
# By kind: which stored tokenizer, what its post-processor puts before a text, and what tokenizer_config.json says.
KINDS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    # named by the file, and put there by its post-processor
    "begins": ("bytes", BEGIN, {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}),
    # named as an object; nothing puts it there, and nothing is said of it
    "named": (
        "bytes", None,
        {"bos_token": {"__type": "AddedToken", "content": "<s>"},
         "eos_token": {"__type": "AddedToken", "content": "</s>"}, "tokenizer_class": "PreTrainedTokenizerFast"},
    ),
    # none before a text, though a token of that name could be
    "no start": ("bytes", None, {"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
                                 "pad_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}),
    "pieces": ("pieces", "<s>", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                                 "tokenizer_class": "PreTrainedTokenizerFast"}),
}  # fmt: skip
TEMPLATES = {
    "default system": """{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nHelp.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "starts with BOS": """{% for message in messages %}
{% set content = '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim %}
{{ (bos_token if loop.first else '') + content + eos_token }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "BOS and EOS in each turn": """{% for message in messages %}{% if message.role == 'user' -%}
{{ bos_token }}[INST] {{ message.content.strip() }} [/INST]
{%- elif message.role == 'assistant' %} {{ message.content.strip() + ' ' }}{{ eos_token }}{% else -%}
{{ '<<SYS>> ' ~ message.content }}{% endif %}{% endfor %}""",
    "refuses a system prompt": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<|im_start|>' + role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}""",
    "drops a system prompt": """{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}
{{ '<|im_start|>\\n' + message.content + '<|im_end|>\\n<|im_start|>\\n' }}{% elif message.role == 'assistant' %}
{{ message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}""",
    "asks for arguments": """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% if effort %}Effort: {{ effort }}
{% endif %}{% endif %}""",
    "asks for tools": """{{ bos_token }}{% if tools is not none %}{{ '[TOOLS] ' + tools | tojson }}{% endif %}
{% if documents is defined and documents is not none %}[DOCUMENTS]{% endif %}
{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{{ 'Today is ' + date_string }}{% for m in messages %}
{% if m.content is string %}{% set text = m.content %}{% else %}{% set text = m.content[0].text %}{% endif %}
<|start_header_id|>{{ m.role }}<|end_header_id|>{{ text }}<|eot_id|>{% endfor %}""",
    "forgets thoughts": """{% set ns = namespace(last=-1) %}{% for m in messages[::-1] %}
{% if ns.last < 0 and m.role == 'user' %}{% set ns.last = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}
{% for m in messages %}{% set content = m.content %}{% if '</think>' in content and loop.index0 < ns.last %}
{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{ '<|im_start|>' ~ m.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}{% endfor %}
{{ '<|im_start|>assistant\\n<think>\\n' }}""",
    "macros and JSON": """{%- macro turn(m, n=1) -%}{{ m.role | upper }} {{ n }}: {{ m.content | replace('\\n', ' ') }}
{%- endmacro %}{% for m in messages if m.role != 'tool' %}{% generation %}{{ turn(m, n=loop.index) }}
{% endgeneration %}{% if loop.index > 8 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}{{ messages | length }}
{{ {'b': [1, 2.5, none, true], 'a': 'é <&>'} | tojson(indent=2) }}{{ '%05.1f|%s' % (2.25, 'x') }}</s>""",
}
HELLO = {"role": "user", "content": "Where is the cat?"}
SYSTEM = {"role": "system", "content": "Be brief & 'kind'."}
SAID = {"role": "assistant", "content": "  <think>hm</think>\n On the mat, \n I think."}
MORE = {"role": "user", "content": "  naïve 猫, 12345 \n\n"}
CONVERSATIONS = {
    "user": [HELLO],
    "system": [SYSTEM, HELLO],
    "three turns": [HELLO, SAID, MORE],
    "unicode": [MORE],
    "system and turns": [SYSTEM, HELLO, SAID, MORE],
    "arguments": [HELLO],
}
ARGUMENTS: dict[str, Any] = {"enable_thinking": False, "effort": "low", "date_string": "1 Jan 2026"}
TEXTS = [
    "",
    "the cat",
    " the cat ",
    "a\n\nb",
    "\n",
    "12345 it's",
    "naïve 猫 🙂",
    "e\u0301 ﬁ",
    "def f():\n\treturn",
    "  x   y",
]


def fold(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """With the system prompt in the first user turn, as for a template that takes none."""
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]


def write_folder(folder: Path, kind: str, tokenizers: dict[str, str]) -> None:
    """tokenizers: the stored tokenizer.json by name, without post-processors."""
    base, front, config = KINDS[kind]
    data = json.loads(tokenizers[base])
    if front is not None:
        token = next(about["id"] for about in data["added_tokens"] if about["content"] == front)
        data["post_processor"] = bos_template(front, token)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
