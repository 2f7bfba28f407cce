"""How a conversation becomes the one text that a model reads.

What a user writes never becomes a control token: a guard is put into all that looks like one, and ``encode_rendered``
of the tokenizer takes it out again. So a template sees the real contents, and may trim or search them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from llamagpu.errors import UsageError
from llamagpu.tokenizers import Tokenizer

if TYPE_CHECKING:
    from llamagpu.llm import LLM

Message = Mapping[str, str]  # role: system, user or assistant; content
NAMES = ("auto", "model", "llama2", "plain")
# Tokens that end what a model says, where its template writes them: some models do not name theirs as an end.
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "</s>",
    "<|endoftext|>",
)


class Template(Protocol):
    """name: as --template has it. stops: strings that end an answer. source: where control tokens are looked for."""

    name: str
    stops: tuple[str, ...]
    source: str

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation, and what asks for the next answer. Raises UsageError for what it does not take."""
        ...


class Llama2:
    """Llama 2's: [INST] and <<SYS>>, each turn with its own start and end token."""

    name, source = "llama2", ""
    stops: tuple[str, ...] = ()

    def __init__(self, bos: str, eos: str) -> None:
        self.bos, self.eos = bos, eos

    def render(self, messages: Sequence[Message]) -> str:
        system, text = "", ""
        for message in messages:
            content = message["content"].strip()
            if message["role"] == "system":
                system = f"<<SYS>>\n{content}\n<</SYS>>\n\n"
            elif message["role"] == "user":
                text += f"{self.bos}[INST] {system}{content} [/INST]"
                system = ""
            else:
                text += f" {content} {self.eos}"
        return text


class Plain:
    """Lines that begin with the speaker, for models that were not made for conversations."""

    name, source = "plain", ""
    stops: tuple[str, ...] = ("\nUser:", "\nAssistant:")

    def __init__(self, bos: str) -> None:
        self.bos = bos

    def render(self, messages: Sequence[Message]) -> str:
        names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
        lines = [f"{names[message['role']]}{message['content'].strip()}\n" for message in messages]
        return f"{self.bos}{''.join(lines)}Assistant:"


class Model:
    """The model's own, in Jinja."""

    name = "model"
    stops: tuple[str, ...] = ()

    def __init__(self, source: str, bos: str, eos: str) -> None:
        from llamagpu.jinja_sandbox import JinjaTemplate  # jinja2 takes a while to import

        self.source = source
        self.template, self.texts = JinjaTemplate(source), {"bos_token": bos, "eos_token": eos}

    def render(self, messages: Sequence[Message]) -> str:
        return self.template.render(messages, **self.texts)


def choose_template(name: str, llm: LLM) -> tuple[Template, str]:
    """The template, and why it is this one. Raises UsageError."""
    if name not in NAMES:
        raise UsageError(f"template must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, not {name[:40]!r}")
    source, tokenizer = llm.checkpoint.chat_template, llm.tokenizer
    texts = {token: text for text, token in tokenizer.controls.items()}
    begins = tokenizer.bos_id is not None and llm.quirks.adds_bos
    bos = texts.get(tokenizer.bos_id, "") if begins and tokenizer.bos_id is not None else ""
    ends = [token for token in (tokenizer.eos_id, *llm.checkpoint.stop_tokens) if token in texts]
    eos = texts[ends[0]] if ends and ends[0] is not None else ""
    why = "as asked for"
    if name == "auto":
        name, why = ("model", "the model brings it") if source is not None else default_name(llm)
    if name == "model":
        if source is None:
            raise UsageError("the model brings no chat template: --template plain, or llama2 for models of that kind")
        return Model(source, bos, eos), why
    return (Llama2(bos, eos) if name == "llama2" else Plain(bos)), why


def default_name(llm: LLM) -> tuple[str, str]:
    """The template of a model that brings none, and why."""
    if llm.config.mem_len:
        return "llama2", "llama2Rnn, whose kind of model it is, knows no other"
    return "plain", "the model brings none"


def end_ids(template: Template, tokenizer: Tokenizer) -> list[int]:
    """Control tokens by which the template shows that an answer ends."""
    return [tokenizer.controls[text] for text in ENDS if text in tokenizer.controls and text in template.source]


def guarded(text: str, tokenizer: Tokenizer, guard: str) -> str:
    """``text`` with the guard after the first character of all that looks like a control token."""
    if not tokenizer.controls:
        return text
    starts = (f"{re.escape(control[0])}(?={re.escape(control[1:])})" for control in tokenizer.controls if control)
    pattern = "|".join(starts)
    return re.sub(pattern, lambda match: match[0] + guard, text)
