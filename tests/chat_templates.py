"""Chat templates in the styles of published models, conversations, and a tokenizer with their control tokens."""

from __future__ import annotations

from tests.tokenizers.tokenizer_json import QWEN2_PATTERN, added_token, byte_level, tokenizer_json

CONTROLS = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",
)  # fmt: skip
TEMPLATES = {
    "chatml": """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "headers": """{% set loop_messages = messages %}
{% for message in loop_messages %}
    {% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' ~ message['content'] | trim
        + '<|eot_id|>' %}
    {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
    {{- content }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "inst": """{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{%- for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if loop.index0 == 0 and system_message %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{%- else %}{% set content = message['content'] %}{% endif %}
{%- if message['role'] == 'user' -%}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' -%}
{{ ' ' + content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}""",
    "others": """{%- macro line(role, text) %}{{ role | upper }}: {{ text }}{% endmacro %}
{% generation %}{{ messages | length }} {% endgeneration %}
{%- for m in messages if m.role != 'tool' -%}
    {% if loop.index > 9 %}{% break %}{% endif %}
{{ line(m.role, m.content | replace('\\n', ' ')) }} {{ m | tojson }}
{%- endfor %}{{ {'b': [1, 2], 'a': 'é'} | tojson(indent=2) }}{{ namespace(x=1).x }}{{ '%03d' % 7 }}""",
}
# Rewrites what the assistant has said: without its thoughts.
FORGETFUL = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('e')[-1] if m.role == 'assistant' else m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
FIRST = [{"role": "user", "content": "Hello, who are you?"}]
TURNS = [
    *FIRST, {"role": "assistant", "content": "I'm a cat.\n"}, {"role": "user", "content": " What does\n猫 mean? "}
]  # fmt: skip
CONVERSATIONS = {
    "one": FIRST,
    "three": TURNS,
    "system": [{"role": "system", "content": 'Be brief & "kind" <b>.'}, *TURNS],
}


def chat_tokenizer() -> bytes:
    """Byte-level BPE, as Qwen's, with the control tokens of all these templates."""
    model, cut = byte_level(QWEN2_PATTERN, nfc=False, ignore_merges=False)
    n = len(model["vocab"])
    added = [added_token(n + i, text) for i, text in enumerate(CONTROLS)]
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return tokenizer_json(added, model, None, cut, None, decoder)
