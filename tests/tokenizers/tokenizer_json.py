"""Small tokenizer.json files in the forms that models have, trained on a few sentences by the tokenizers library.

That is imported late, so that tests which need none of these can be collected without it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from llamagpu.formats.gguf_splits import GPT2
from llamagpu.tokenizers.sentencepiece import SentencePieceTokenizer

SENTENCES = [
    "Once upon a time there was a little cat, and the cat sat on the mat; then the other cat sat there, too.",
    "In 1984 they counted 12345 sheep, 678 goats and 90 dogs. It's what we'd do, isn't it? They've said: \"No!\"",
    "Die Straße führt über die Brücke; où est le café? Ele não está. Ça va, naïve fiancée? Jalapeño, señor!",
    "def main(argv):\n    for arg in argv:\n        print(arg)\n\n\treturn 0\n\n\n    # the end of the function",
    "猫は小さい。猫が好きです。Кошка сидит на ковре. القطة على السجادة. 🙂🙂 naïve e\u0301te\u0301 ｜ ▁ x",
] * 3
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
END = "<|endoftext|>"
LEGACY_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
LEGACY_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def added_token(token: int, content: str, special: bool = True) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token, "content": content} | flags


def bos_template(content: str, token: int) -> dict[str, Any]:
    """Puts one token in front of a text, as transformers writes it."""
    special, first = {"SpecialToken": {"id": content, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {content: {"id": content, "ids": [token], "tokens": [content]}},
    }


def tokenizer_json(
    added: list[dict[str, Any]],
    model: dict[str, Any],
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    post_processor: dict[str, Any] | None,
    decoder: dict[str, Any] | None,
) -> bytes:
    parts = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder, "model": model,
    }  # fmt: skip
    return json.dumps(parts, ensure_ascii=False).encode()


def byte_level(pattern: str, nfc: bool, ignore_merges: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """A trained BPE model and the pre-tokenizer that cuts the text for it."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers

    cut: dict[str, Any] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    tokenizer = Tokenizer.from_buffer(
        tokenizer_json([], {"type": "BPE", "vocab": {}, "merges": []}, None, cut, None, None)
    )
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model | {"ignore_merges": ignore_merges}, cut


@lru_cache
def llama3_like() -> bytes:
    """500 trained tokens, then special ones, of which the first goes before every text."""
    model, cut = byte_level(LLAMA3_PATTERN, nfc=False, ignore_merges=True)
    size = len(model["vocab"])
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    steps = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    post = {"type": "Sequence", "processors": [steps, bos_template(names[0], size)]}
    added = [added_token(size + i, name) for i, name in enumerate(names)]
    return tokenizer_json(added, model, None, cut, post, steps)


@lru_cache
def pile_like() -> bytes:
    """As 20B_tokenizer.json: two special tokens first, then those of the model, then runs of spaces as plain text."""
    model, _ = byte_level(GPT2, nfc=True, ignore_merges=False)
    texts = [END, "<|padding|>", *sorted(model["vocab"], key=model["vocab"].__getitem__)]
    added = [added_token(0, END), added_token(1, "<|padding|>")]
    added += [
        added_token(len(texts) + i, " " * n, False) | {"normalized": True} for i, n in enumerate(range(24, 1, -1))
    ]
    steps = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model |= {"vocab": {text: i for i, text in enumerate(texts)}}
    return tokenizer_json(added, model, {"type": "NFC"}, steps, steps, steps)


@lru_cache
def qwen2_like() -> bytes:
    """NFC, digits one by one, no start token, and an added token that is none of the special ones."""
    model, cut = byte_level(QWEN2_PATTERN, nfc=True, ignore_merges=False)
    size = len(model["vocab"])
    added = [added_token(size, "<|endoftext|>"), added_token(size + 1, "<|im_end|>")]
    added.append(added_token(size + 2, "<think>", special=False))
    steps = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return tokenizer_json(added, model, {"type": "NFC"}, cut, steps, steps)


def sentencepiece_like_model() -> dict[str, Any]:
    """<unk>, <s>, </s>, 256 byte tokens, then pieces with U+2581 for a space, and their merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    trained: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    return trained | {
        "vocab": {piece: token for token, piece in enumerate(pieces)}, "unk_token": "<unk>", "fuse_unk": True,
        "byte_fallback": True,
    }  # fmt: skip


@lru_cache
def llama2_like() -> bytes:
    """Llama 2's: the normaliser prepends a space, and writes each as U+2581."""
    added = [added_token(token, content) for token, content in enumerate(("<unk>", "<s>", "</s>"))]
    model, post = sentencepiece_like_model(), bos_template("<s>", 1)
    return tokenizer_json(added, model, LEGACY_NORMALIZER, None, post, LEGACY_DECODER)


@lru_cache
def mistral_like() -> bytes:
    """The newer way to say it: a Metaspace pre-tokenizer that does not split."""
    added = [added_token(token, content) for token, content in enumerate(("<unk>", "<s>", "</s>"))]
    cut = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    model, post = sentencepiece_like_model(), bos_template("<s>", 1)
    return tokenizer_json(added, model, None, cut, post, LEGACY_DECODER)


def from_sentencepiece(tokenizer: SentencePieceTokenizer) -> bytes:
    """The tokenizer.json of a SentencePiece BPE model: two pieces that make a third are a merge, best thirds first."""
    processor = tokenizer.processor
    pieces = [processor.id_to_piece(token) for token in range(tokenizer.vocab_size)]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    merges = []
    for token in range(259, len(pieces)):
        cuts = ((pieces[token][:at], pieces[token][at:]) for at in range(1, len(pieces[token])))
        merges += sorted((vocab[a], vocab[b], token) for a, b in cuts if a in vocab and b in vocab)
    merges.sort(key=lambda merge: -processor.get_score(merge[2]))
    added = [added_token(token, content) for token, content in enumerate(("<unk>", "<s>", "</s>"))]
    model = {"type": "BPE", "vocab": vocab, "merges": [[pieces[a], pieces[b]] for a, b, _ in merges],
             "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}  # fmt: skip
    return tokenizer_json(added, model, LEGACY_NORMALIZER, None, bos_template("<s>", 1), LEGACY_DECODER)


KINDS = {
    "Llama 3": llama3_like, "Qwen 2": qwen2_like, "Llama 2": llama2_like, "Mistral": mistral_like,
}  # fmt: skip
