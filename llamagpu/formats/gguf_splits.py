"""How a byte-level vocabulary of GGUF cuts text before its merges: what the names under tokenizer.ggml.pre stand for.

The files hold a name, not the regular expressions. These are the published ones, of the tokenizer.json of the models
that the names stand for, as the tokenizers library reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
MAY_BE_CONTRACTED = f"{CONTRACTIONS}?"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SYMBOLS = r" ?[^\s\p{L}\p{N}]+"
LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
REST = rf"{SYMBOLS}[\r\n]*|{LINES_AND_SPACES}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
THREE_DIGITS = r"\p{N}{1,3}"
NOT_HAN = r"&&[^\p{Han}]"
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


def cased(contractions: str = "", beside: str = "") -> str:
    """Words cut where small letters end, with contractions behind them; ``beside``: what letters are not."""
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{beside}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{beside}]"
    front = r"[^\r\n\p{L}\p{N}]?"
    return f"{front}{upper}*{lower}+{contractions}|{front}{upper}+{lower}*{contractions}"


@dataclass(frozen=True)
class Split:
    """patterns: one after the other, each cuts the pieces of those before it. bos: whether text begins with it where
    the file does not say. ignore_merges: a piece that is a token is that token, whatever the merges."""

    patterns: tuple[str, ...]
    bos: bool = False
    ignore_merges: bool = False
    nfc: bool = False


# Letters that have a case, as DeepSeek's first tokenizers list them.
DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdb"
    "ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ\uff21-\uff3a\uff41-\uff5a𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲"
    "𑢠-𑣟𞤀-𞥃"
)
DEEPSEEK_SIGNS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"
DEEPSEEK_WIDE = "[一-龥\u0800-一가-\ud7ff]+"

LLAMA3 = Split((rf"{CONTRACTIONS}|{LETTERS}|{THREE_DIGITS}|{REST}",), bos=True, ignore_merges=True)
CL100K = Split(LLAMA3.patterns)
PLAIN = Split((GPT2,))
PLAIN_NFC = replace(PLAIN, nfc=True)
DIGITS = Split((r"\p{N}", GPT2))
QWEN2 = Split((rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{REST}",))
O200K_PATTERN = rf"{cased(MAY_BE_CONTRACTED)}|{THREE_DIGITS}|{SYMBOLS}[\r\n/]*|{LINES_AND_SPACES}"
O200K = Split((O200K_PATTERN,))
TEKKEN_PATTERN = rf"{cased()}|\p{{N}}|{SYMBOLS}[\r\n/]*|{LINES_AND_SPACES}"
DEEPSEEK3 = Split((THREE_DIGITS, CJK, rf"{DEEPSEEK_PUNCTUATION}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{LINES_AND_SPACES}"))
AYA = Split((r"\d{1,3}(?=(?:\d{3})*\b)", O200K_PATTERN))
LING = Split(
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
BY_SPLIT: list[tuple[Split, str]] = [
    (LLAMA3, "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (CL100K, "smaug-bpe dbrx glm4 chatglm-bpe"),
    (PLAIN, "gpt-2 phi-2 gigachat a.x-4.0 mellum jais trillion granite-docling exaone4"),
    (PLAIN_NFC, "gpt-neox mpt olmo"),
    (DIGITS, "smollm starcoder refact codeshell exaone minerva-7b mellum2"),
    (replace(DIGITS, nfc=True), "command-r"),
    (QWEN2, "deepseek-r1-qwen stablelm2 hunyuan solar-open grok-2 kormo f2llmv2 megrez"),
    (replace(QWEN2, nfc=True), "qwen2"),
    (O200K, "gpt-4o o200k llama4 kanana2 minimax-m2 talkie"),
    (DEEPSEEK3, "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    (Split((BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (AYA, "tiny_aya cohere2moe"),
    (LING, "bailingmoe bailingmoe2 llada-moe"),
]
SPLITS: dict[str, Split] = {name: split for split, names in BY_SPLIT for name in names.split()} | {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "falcon": Split((PUNCTUATION, GPT2, r"[0-9][0-9][0-9]")),
    "tekken": Split((TEKKEN_PATTERN,), bos=True, ignore_merges=True),
    "deepseek-llm": Split(
        (r"[\r\n]", rf"\s?[{DEEPSEEK_LETTERS}]+", rf"\s?{DEEPSEEK_SIGNS}+", r"\s+$", DEEPSEEK_WIDE, r"\p{N}")
    ),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_WIDE, r"\p{N}")),
    "viking": Split((BLOOM, r"\p{N}")),
    "kimi-k2": Split((rf"\p{{Han}}+|{cased(MAY_BE_CONTRACTED, NOT_HAN)}|{THREE_DIGITS}|{REST}",)),
    "qwen35": Split(
        (
            rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
            rf"|{LINES_AND_SPACES}",
        ),
        nfc=True,
    ),
    "seed-coder": Split((rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{LINES_AND_SPACES}",)),
    "superbpe": Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "minicpm5": Split((THREE_DIGITS, rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}+|{REST}"), ignore_merges=True),
    "exaone-moe": Split(
        (
            rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|{SYMBOLS}[\r\n/]?"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    "chameleon": Split(
        (
            "<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]", GPT2,
        ),
        bos=True,
    ),
}  # fmt: skip
DEFAULT = "default"
# Of these llama.cpp's files write the tokens as they are, not bytes as GPT-2's letters.
NOT_BYTE_LEVEL = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")


def split_of(pre: str | None) -> Split:
    """What a name stands for; of a missing or unknown one llama.cpp's default. Raises ValueError for other kinds."""
    if pre in NOT_BYTE_LEVEL:
        raise ValueError(f"is of pre-tokenizer {pre}, whose tokens are not byte-level: this version does not read them")
    return SPLITS.get(DEFAULT if pre is None else pre, SPLITS[DEFAULT])
