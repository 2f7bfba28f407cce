"""Small hostile inputs of each kind, fixed and at random, for scripts/attack and the tests of what they met."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.tokenizers.tokenizer_json import llama3_like

Step = dict[str, Any]

TEMPLATES = {
    "a long comparison": "{% set n = namespace(a=[0], b=[0]) %}{% for i in range(40) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "sums of lists": "{{ ([[0] * 9999] * 9999) | sum(start=[]) | length }}",
    "a long format": "{{ '{0[a]}{0[a]}' | format }}{{ '%(a)s' * 9999 % {'a': 'b' * 99999} }}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a doubled text": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a large power": "{{ 9 ** 999999999 }}",
    "a large width": "{{ '%99999999999d' % 1 }}{{ 'a' | center(10000000000) }}",
    "a recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "brackets": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "a way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a way out by a filter": "{{ cycler.__init__.__globals__ }}{{ ''|attr('__class__') }}",
    "a file": "{% include '/etc/passwd' %}",
    "a refusal with a command in it": "{{ raise_exception('\x1b]0;PWNED\x07\n\n\u009b31m') }}",
    "half a template": "{% for m in messages %}",
    "a lot of text": "{% for i in range(99999) %}{{ 'abcdefgh' * 99 }}{% endfor %}",
    "a long regular expression": "{{ ('a' * 30000 ~ '!') | urlize | wordwrap(1) | length }}",
}
PRELUDE = "{% for m in messages %}{{ m.content }}{% endfor %}"  # of a template that works

ATOMS = [
    "'a'",
    "9",
    "messages",
    "[1]",
    "{'a': 1}",
    "range(9999)",
    "messages[0].content",
    "namespace(s='a')",
    "1.5",
    "none",
]
OPERATIONS = [
    "({} * 9999)", "({} ~ {})", "({} + {})", "({} | list)", "({} | string)", "({} | join({}))",
    "({} | replace('a', {}))", "({} ** 99)", "({} | string | center(99999))", "({} | tojson)", "({} == {})",
    "({} | sort | list)", "('%s%s' % ({}, {}))", "([{}] * 9999)", "({} | sum(start=[]))", "({} | batch(2) | list)",
    "({} | wordwrap(1))", "({} | urlize)", "({}[::-1])", "({} | indent(9999))", "({} | map('string') | list)",
    "({} | groupby('role'))", "({} | unique | list)", "({}.__class__)", "({} in {})", "({}.format({}))",
    "({}.split({}))", "(dict(a={}) | xmlattr)", "({} | trim)", "({} | pprint)", "lipsum(99)",
]  # fmt: skip
FRAMES = [
    "{{ E }}", "{% for i in range(9999) %}{{ E }}{% endfor %}", "{% set x = E %}{{ x ~ x }}",
    "{% set n = namespace(s=E) %}{% for i in range(30) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s == [n.s] }}",
    "{% macro m(a) %}{{ a ~ E }}{% endmacro %}{{ m(m(m(1))) }}", "{% if E %}{{ E }}{% endif %}",
]  # fmt: skip


def random_template(rng: random.Random) -> str:
    def expression(depth: int) -> str:
        if depth == 0 or rng.random() < 0.1:
            return rng.choice(ATOMS)
        operation = rng.choice(OPERATIONS)
        for _ in range(operation.count("{}")):
            operation = operation.replace("{}", expression(depth - 1), 1)
        return operation

    return "".join(rng.choice(FRAMES).replace("E", expression(rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))


def replace(pattern: str, content: str, kind: str = "Regex") -> Step:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def split(pattern: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(name: str, *steps: Step) -> Step:
    return {"type": "Sequence", name: list(steps)}


BYTE_LEVEL: Step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": False}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "letters that grow": {"normalizer": sequence("normalizers", *[replace(".", "a" * 100)] * 3)},
    "a letter that grows": {"normalizer": replace("a", "a" * 100_000, "String")},
    "nothing that grows": {"normalizer": sequence("normalizers", *[replace("x*", "y")] * 40)},
    "bytes of bytes": {"pre_tokenizer": sequence("pretokenizers", *[BYTE_LEVEL] * 20)},
    "an expression that goes back": {"pre_tokenizer": split("(a+)+(a+)+$")},
    "an expression in one": {"pre_tokenizer": split("((((a?){30}){30}){30})")},
    "a text many times": {
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 9999,
                           "pair": [], "special_tokens": {}},
    },
    "deep": {"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 200 + '{"type":"NFC"}' + "]}" * 200)},
    "no tokenizer": {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}},
    "no vocabulary": {"model": {"type": "BPE", "vocab": {}, "merges": []}},
}  # fmt: skip


def tokenizer_file(parts: dict[str, Any]) -> bytes:
    """A tokenizer.json that works, but for these parts."""
    return json.dumps({**json.loads(llama3_like()), **parts}, ensure_ascii=False).encode()


def random_tokenizer(rng: random.Random) -> dict[str, Any]:
    patterns = [".", "a", "a*", "(a|b)+$", r"\s*", "(?=a)", "", "(.*)*x", r"[\s\S]", "é?", "(a+)+b"]

    def step() -> Step:
        kind = rng.choice(
            ["NFD", "NFKD", "NFC", "Lowercase", "Strip", "Replace", "Replace", "Prepend", "ByteLevel", "Nmt"]
        )
        if kind == "Replace":
            return replace(rng.choice(patterns), "a" * rng.choice([0, 1, 3, 10, 100]), rng.choice(["Regex", "String"]))
        more: dict[str, Step] = {
            "Prepend": {"prepend": "ﷺ" * rng.randint(1, 500)},
            "Strip": {"strip_left": True, "strip_right": True},
        }
        return {"type": kind, **more.get(kind, {})}

    parts: dict[str, Any] = {"normalizer": sequence("normalizers", *(step() for _ in range(rng.randint(1, 8))))}
    if rng.random() < 0.5:
        parts["pre_tokenizer"] = sequence(
            "pretokenizers", *(split(rng.choice(patterns)) for _ in range(rng.randint(1, 3)))
        )
    return parts


TURNS = {
    "braces": "{" * 8_000,
    "control tokens": "<s></s><|im_end|>[INST] <<SYS>> <|eot_id|>",
    "JSON": '"}], "messages": [], \\u0000 \\',
    "not characters": "\ufdd0\ufdd1\ufffe\uffff\ufeff\U0010ffff",
    "commands": "\x1b]0;PWNED\x07\x1b[2J\u009b31m\x7f\0",
    "spaces": "a" + " " * 9999 + "b",
    "much": "Once upon a time, " * 1000,
}


def random_turn(rng: random.Random) -> str:
    largest = rng.choice([0x7F, 0x2FF, 0xFFFF, 0x10FFFF])
    letters = (chr(rng.randrange(1, largest + 1)) for _ in range(rng.randrange(1, 300)))
    return "".join(c for c in letters if not 0xD800 <= ord(c) < 0xE000 and c not in "\n\r") + "a"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with a few bytes changed, put in, or cut off; most of them at its beginning, where the header is."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(out), 2000) if rng.random() < 0.6 else len(out)) if out else 0
        kind = rng.randrange(4)
        if kind == 0:
            del out[at:]
        elif kind == 1:
            out[at:at] = rng.randbytes(rng.randint(1, 9))
        elif out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
    return bytes(out)
