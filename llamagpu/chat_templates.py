"""How a conversation becomes the one text that a model reads.

What a user writes never becomes a control token: a guard is put into all that looks like one, and ``encode_rendered``
of the tokenizer takes it out again. So a template sees the real contents, and may trim or search them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from llamagpu.config import ModelConfig
from llamagpu.errors import UsageError, first_line
from llamagpu.option_names import option
from llamagpu.sampling import shown
from llamagpu.tokenizers import Tokenizer, special_tokens
from llamagpu.tokenizers.special_tokens import template_names

if TYPE_CHECKING:
    from llamagpu.llm import LLM

Message = Mapping[str, Any]  # role, such as system, user or assistant; content; what else a template knows
NONE: Mapping[str, Any] = MappingProxyType({})
NAMES = ("auto", "model", "llama2", "plain")
MARKER = "is7this8read"  # as a system prompt: whether a template writes it
RESERVED = ("messages", "self")
# Why a model that brings no template gets this one.
WHY = {"llama2": "llama2Rnn, whose kind of model it is, knows no other", "plain": "the model brings none"}

Guard = Callable[[Any], Any]


def as_it_is(value: Any) -> Any:
    return value


class Template(Protocol):
    """name: as --template has it. stops: strings that end an answer. source: where control tokens are looked for.

    args: what users give it by name. takes_system: whether a system prompt becomes part of the text.
    """

    name: str
    stops: tuple[str, ...]
    source: str
    args: Mapping[str, Any]

    @property
    def takes_system(self) -> bool: ...

    def render(self, messages: Sequence[Message], guard: Guard = as_it_is) -> str:
        """The conversation, and what asks for the next answer. guard: put over what else users give to the template.

        Raises UsageError for what it does not take.
        """
        ...


class Llama2:
    """Llama 2's: [INST] and <<SYS>>, each turn with its own start and end token."""

    name, source, takes_system, args = "llama2", "", True, NONE
    stops: tuple[str, ...] = ()

    def __init__(self, bos: str, eos: str) -> None:
        self.bos, self.eos = bos, eos

    def render(self, messages: Sequence[Message], guard: Guard = as_it_is) -> str:
        system, text = "", ""
        for message in plain(messages):
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

    name, source, takes_system, args = "plain", "", True, NONE
    stops: tuple[str, ...] = ("\nUser:", "\nAssistant:")

    def __init__(self, bos: str) -> None:
        self.bos = bos

    def render(self, messages: Sequence[Message], guard: Guard = as_it_is) -> str:
        names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
        lines = [f"{names[message['role']]}{message['content'].strip()}\n" for message in plain(messages)]
        return f"{self.bos}{''.join(lines)}Assistant:"


class Model:
    """The model's own, in Jinja. names: special tokens by their names. args: what users give it, by name."""

    name = "model"
    stops: tuple[str, ...] = ()

    def __init__(
        self, source: str, bos: str = "", eos: str = "", names: Mapping[str, Any] = NONE, args: Mapping[str, Any] = NONE
    ) -> None:
        from llamagpu.jinja_sandbox import JinjaTemplate  # jinja2 takes a while to import

        self.source, self.template, self.args = source, JinjaTemplate(source), args
        # None as in transformers: templates ask whether tools are none, and whether a name is defined
        self.names = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        self.names = {name: value for name, value in self.names.items() if value != ""} | without_reserved(names)

    def render(self, messages: Sequence[Message], guard: Guard = as_it_is) -> str:
        # a user may name another token
        args = {name: arg if name.endswith("_token") else guard(arg) for name, arg in self.args.items()}
        return self.template.render(messages, **self.names | args)

    @cached_property
    def takes_system(self) -> bool:
        """Some templates refuse a system prompt, and some leave it out without a word."""
        system, user = {"role": "system", "content": MARKER}, {"role": "user", "content": "x"}
        try:
            return MARKER in self.render([system, user]).lower()
        except UsageError:
            pass
        try:
            self.render([user])
        except UsageError:
            return True  # the system prompt is not what is wrong
        return False


def without_reserved(names: Mapping[str, Any]) -> dict[str, Any]:
    """A file may name a token as it likes, but not as what the template is given in any case."""
    return {name: value for name, value in names.items() if name not in RESERVED}


def plain(messages: Sequence[Message]) -> Sequence[Message]:
    """The same messages. Raises UsageError for those that only a model's own template can write."""
    for message in messages:
        if message["role"] not in ("system", "user", "assistant") or not isinstance(message.get("content"), str):
            raise UsageError(
                "this template writes texts of system, user and assistant alone:"
                f" {option('template', 'model')} for other messages"
            )
    return messages


def choose_template(name: str, llm: LLM, template_args: Mapping[str, Any] = NONE) -> tuple[Template, str]:
    """The template, and why it is this one. template_args: more of what the model's own may ask for. Raises
    UsageError."""
    checkpoint = llm.checkpoint
    return make_template(
        name, checkpoint.chat_template, llm.tokenizer, checkpoint.stop_tokens, template_args,
        default=default_name(checkpoint.config), adds_bos=llm.quirks.adds_bos,
    )  # fmt: skip


def make_template(
    name: str,
    source: str | None,
    tokenizer: Tokenizer,
    stop_tokens: Collection[int] = (),
    template_args: Mapping[str, Any] = NONE,
    *,
    default: str = "plain",
    adds_bos: bool = True,
) -> tuple[Template, str]:
    """The same for a tokenizer. source: of the model's own template, where it has one; default: the name of the one
    without. adds_bos: whether a text begins with BOS where the model has one."""
    if name not in NAMES:
        raise UsageError(f"template must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, not {shown(name)}")
    check_template_args(template_args)
    names, why = template_names(tokenizer, stop_tokens), "as asked for"
    if not adds_bos:
        names.pop("bos_token", None)
    if name == "auto":
        name, why = ("model", "the model brings it") if source is not None else (default, WHY[default])
    if name == "model":
        if source is None:
            plain = option("template", "plain")
            raise UsageError(f"the model brings no chat template: {plain}, or llama2 for models of that kind")
        return Model(source, names=names, args=template_args), why
    if template_args:
        raise UsageError(f"template_args are for the model's own template, and this is {name}: leave them out")
    bos, eos = str(names.get("bos_token", "")), str(names.get("eos_token", ""))
    if name == "llama2":
        return Llama2(bos, eos), why
    return Plain(bos if tokenizer.bos_id is not None else ""), why


def answer_ends(llm: LLM, template: Template, ignore_eos: bool = False) -> tuple[set[int], set[int] | None]:
    """Tokens that end an answer, beside the model's own; and the only ones that do, None where all of these do."""
    written = special_tokens.answer_ends(llm.tokenizer, template.source)
    if ignore_eos:
        return written, set()
    if llm.quirks.ends is None:
        return written, None
    eos = llm.tokenizer.eos_id  # programs whose texts have other ends end their answers so
    return written, written | ({eos} if eos is not None else set())


def default_name(config: ModelConfig) -> str:
    """The template of a model that brings none."""
    return "llama2" if config.mem_len else "plain"


def check_template_args(values: Mapping[str, Any]) -> None:
    """Raises UsageError for what no template can be given."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UsageError("template_args must be values by their names")
    for name in RESERVED:
        if name in values:
            raise UsageError(f"template_args cannot have {name!r}: that is what the template is given in any case")
    try:
        json.dumps(dict(values), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise UsageError("template_args must be values that JSON has: texts, numbers, true, lists, objects") from None


def read_template_args(text: str | None) -> dict[str, Any]:
    """Of a command line. Raises UsageError."""
    try:
        values = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--template_args is not valid JSON ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise UsageError("--template_args must be a JSON object, such as '{\"enable_thinking\": false}'")
    return values


def guarded(text: str, tokenizer: Tokenizer, guard: str) -> str:
    """``text`` with the guard after the first character of all that looks like a control token."""
    if not tokenizer.controls:
        return text
    rests: dict[str, list[str]] = {}  # by the first character: some models have thousands, which all begin with <
    for control in filter(None, tokenizer.controls):
        rests.setdefault(control[0], []).append(re.escape(control[1:]))
    pattern = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    return re.sub(pattern, lambda match: match[0] + guard, text)
