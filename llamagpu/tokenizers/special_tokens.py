"""Which tokens begin a text, end it or steer a model: the one place that decides, from all that its files say.

The tokens that a file names (bos_token, eos_token, ...) are what chat templates get by those names. Whether a plain
text begins with BOS is another question: add_bos_token answers it, and where no file has that, what the tokenizer
itself puts before a text. The kinds of tokenizer know what is inside their own file, and ask nobody.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from llamagpu.checkpoint import AddedToken, TokenFacts
from llamagpu.tokenizers.base import Tokenizer

END = "<|endoftext|>"
MARKED = re.compile(r"[^\w\s].*\w.*[^\w\s]")  # <s>, [PAD], <|im_end|>
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# What the classes of transformers name where tokenizer_config.json does not; Fast at the end of a name changes nothing.
CLASS_NAMES: dict[str, Mapping[str, str]] = {
    "CodeLlamaTokenizer": LLAMA,
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "GPT2Tokenizer": {"bos_token": END, "eos_token": END, "unk_token": END},
    "GPTNeoXTokenizer": {"bos_token": END, "eos_token": END, "unk_token": END},
    "LlamaTokenizer": LLAMA,
    "Qwen2Tokenizer": {"eos_token": END, "unk_token": END, "pad_token": END},
}
# Those that obey add_bos_token where a tokenizer.json lies beside it; of the others that file alone says.
FLAG_CLASSES = ("", "CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer")
# Control tokens that end what a model says: some models do not name theirs as an end. Of a text they are the end in any
# chat, of a turn where the template writes them. A GGUF file has room for three ends: there all of these are, as in
# llama.cpp.
TEXT_ENDS = ("</s>", END, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>")
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")


def settle(tokenizer: Tokenizer, facts: TokenFacts | None) -> None:
    """Give a tokenizer its special tokens: its ``names``, ``controls``, ``bos_id``, ``eos_id`` and ``stop_ids``.

    facts: None where no file says anything; then what the tokenizer knows by itself is all there is.
    """
    if facts is None:
        own = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        tokenizer.names = {name: text for name, token in own.items() if (text := control_text(tokenizer, token))}
        return
    named = names_of(tokenizer, facts)
    said = {text for text in facts.names.values() if text}
    # what a class names and the vocabulary lacks is no token
    there = [text for text in named.values() if text in said or tokenizer.id_of(text) is not None]
    control = dict.fromkeys(text for text in (*there, *facts.more) if may_be_control(tokenizer, text))
    tokenizer.add_tokens(added_tokens(tokenizer, facts.added), list(control))
    tokenizer.names = {**named, "additional_special_tokens": list(facts.more)} if facts.more else named
    if facts.legacy is not None:
        tokenizer.begins_anew = facts.legacy
    before, after = tokenizer.bos_id, tokenizer.eos_id
    bos, eos = (id_of(tokenizer, facts, name) for name in ("bos_token", "eos_token"))
    if facts.add_bos is not None and (not tokenizer.says_bos or class_of(facts) in FLAG_CLASSES):
        tokenizer.bos_id = (before if bos is None else bos) if facts.add_bos else None
    tokenizer.eos_id = after if eos is None else eos
    if after is not None and after != tokenizer.eos_id:
        tokenizer.stop_ids = (*tokenizer.stop_ids, after)
    if facts.ids:  # of a GGUF file
        tokenizer.stop_ids = (*tokenizer.stop_ids, *controls_of(tokenizer, TEXT_ENDS + TURN_ENDS))


def added_tokens(tokenizer: Tokenizer, added: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
    """Those of added_tokens.json are what a tokenizer.json says that they are. Where it does not have them they are
    control tokens, since what users write must not become one."""
    own = {token for token, about in added.items() if tokenizer.says_bos and tokenizer.id_of(about.text) is not None}
    kept = {token: about for token, about in added.items() if about.special is not None or token not in own}
    return {token: replace(about, special=about.special is not False) for token, about in kept.items()}


def may_be_control(tokenizer: Tokenizer, text: str) -> bool:
    """Some models pad with "!", or end with a newline: an ordinary token stays text, whatever it is named."""
    return text in tokenizer.controls or tokenizer.id_of(text) is None or MARKED.fullmatch(text) is not None


def names_of(tokenizer: Tokenizer, facts: TokenFacts) -> dict[str, str]:
    """Text by name. What a file calls null has no name, whatever the class would call it."""
    names: dict[str, str | None] = dict(CLASS_NAMES.get(class_of(facts), {}))
    if not facts.names and not names:
        own = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        names |= {name: control_text(tokenizer, token) for name, token in own.items()}
    names |= {name: tokenizer.text_of(token) for name, token in facts.ids.items()}
    names |= facts.names
    return {name: text for name, text in names.items() if text}


def class_of(facts: TokenFacts) -> str:
    return facts.tokenizer_class.removesuffix("Fast")


def id_of(tokenizer: Tokenizer, facts: TokenFacts, name: str) -> int | None:
    text = tokenizer.names.get(name)
    if name in facts.ids and name not in facts.names:  # several tokens may have one text
        return facts.ids[name]
    return tokenizer.id_of(text) if isinstance(text, str) else None


def control_text(tokenizer: Tokenizer, token: int | None) -> str | None:
    """The text by which templates write a control token; None for others."""
    return next((text for text, found in tokenizer.controls.items() if found == token), None)


def template_names(tokenizer: Tokenizer, stop_tokens: Collection[int]) -> dict[str, Any]:
    """What a chat template gets by the names of transformers. stop_tokens: of the checkpoint, the only place where
    files that name no tokens say what ends a text."""
    if tokenizer.facts is not None:
        return dict(tokenizer.names)
    texts = [text for token in stop_tokens if (text := control_text(tokenizer, token))]
    return {"bos_token": "", "eos_token": "".join(texts[:1]), **tokenizer.names}


def named_ids(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """BOS and EOS as a config.json has them: the named ones, whether or not a plain text begins with BOS."""
    bos = tokenizer.names.get("bos_token")
    named = tokenizer.id_of(bos) if isinstance(bos, str) else None
    return tokenizer.bos_id if named is None else named, tokenizer.eos_id


def end_ids(tokenizer: Tokenizer, stop_tokens: Collection[int]) -> set[int]:
    """Tokens that end what a model says, whatever it is asked. stop_tokens: of the checkpoint."""
    # BOS too: llama2.c's models open the next story with it
    own = (tokenizer.bos_id, tokenizer.eos_id, *tokenizer.stop_ids, *stop_tokens)
    return {token for token in own if token is not None}


def answer_ends(tokenizer: Tokenizer, template: str) -> set[int]:
    """Tokens that end an answer, beside those that end any text. template: the source, which shows how turns end."""
    return controls_of(tokenizer, TEXT_ENDS) | controls_of(tokenizer, [text for text in TURN_ENDS if text in template])


def controls_of(tokenizer: Tokenizer, texts: Iterable[str]) -> set[int]:
    """Those of these control tokens that a vocabulary has."""
    return {tokenizer.controls[text] for text in texts if text in tokenizer.controls}
