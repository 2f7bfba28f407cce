"""Texts for comparing tokenizers: 200 of many scripts and kinds, the same ones each time.

None holds the text of a control token that a tokenizer might have.
"""

from __future__ import annotations

import numpy as np

KNOWN = [
    "", " ", "  ", "\n", "\n\n", "\t", "\r\n", "a", " a", "a ", "  a  b   c    d", "Hello, world!",
    "Hello\nworld\n", "\n\n\nHello", "tabs\tand\t\ttabs", "trailing   ", "   leading", "\r\n\r\nCRLF\r\n",
    "I'm you're we'll they've he'd", "DON'T I'LL", "1234567890", "3.14159 1,000,000 1e-9 0x1F 007",
    "x=1;y=x**2", "def f(x):\n    return x + 1\n\n\n", "\tif (a != b) { c->d(); }\n",
    "<div class='a'>&amp;</div>", "https://example.com/a?b=c&d=%20#e", "user@mail.org",
    "snake_case camelCase PascalCase kebab-case", "... --- !!! ??? ;;; ,,,", "\"quoted\" 'single' `code`",
    "[INST] [/INST]", "{\"key\": [1, 2, null]}", "| a | b |\n|---|---|\n", "# Title\n\n* item\n  * inner\n",
    "über straße ÄÖÜ ß", "éèêë àâ ç ñ", "e\u0301 o\u0308 a\u030a", "ﬁ ﬂ ½ ² ™ ①", "Ａ Ｂ Ｃ １２３",
    "привет мир", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "你好，世界！", "こんにちは世界", "カタカナ ひらがな", "안녕하세요 세계", "ᄒ\u1161\u11ab", "ខ្មែរ", "አማርኛ",
    "தமிழ்", "😀", "😀😀 😀", "👩\u200d👩\u200d👧\u200d👦",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "🇫🇷🇩🇪", "👍🏽", "❤\ufe0f",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋", "α β → ∞", "\xa0no\xa0break\xa0", "\u200bzero\u200b width", "\u2028line\u2029para",
    "\u3000wide\u3000", "\ufeffbom", "\xad soft", "\x00 nul", "\x1b[0m", "\x7f", "�", "\ufdd0", "\U0010ffff",
    "𝔘𝔫𝔦", "𠜎𠜱", "▁ lower block ▁▁", "Ġ Ċ", "<0x0A> <0xFF>", "a" * 100, " " * 100, "\n" * 40, "ab" * 60,
    "1" * 50, "é" * 30, "猫" * 30, "😀" * 12, "the " * 30, "A.B.C.D.", "O'Neill's", "end.Start of", "a,b,c",
    "100%", "$5.00", "5°C", "№ 5", "C++ & C#", "x\u0301\u0302\u0303", "mixed 混合 смесь مزيج 😀 mix",
]  # fmt: skip
# Code points to mix: Latin, Greek and Cyrillic, Hebrew and Arabic, Devanagari, Thai, kana, Han, Hangul, emoji
RANGES = [
    (32, 127), (160, 592), (880, 1328), (1424, 1792), (2304, 2432), (3584, 3712), (8192, 8304), (12352, 12544),
    (19968, 20992), (44032, 45056), (0x1F300, 0x1F650), (9, 14),
]  # fmt: skip
JOINTS = ["", " ", "\n", ", "]


def texts(n: int = 200) -> list[str]:
    """The known ones, and mixtures of them and of what no text has."""
    rng = np.random.default_rng(5)
    words = [text for text in KNOWN if 1 < len(text) < 20]
    return KNOWN + [mixture(rng, words) for _ in range(n - len(KNOWN))]


def mixture(rng: np.random.Generator, words: list[str]) -> str:
    parts = []
    for _ in range(int(rng.integers(2, 9))):
        if rng.random() < 0.5:
            parts.append(words[int(rng.integers(len(words)))])
        else:
            low, high = RANGES[int(rng.integers(len(RANGES)))]
            parts.append("".join(chr(int(code)) for code in rng.integers(low, high, int(rng.integers(1, 8)))))
    return JOINTS[int(rng.integers(len(JOINTS)))].join(parts)
