"""Small vocabularies in the files that recurrent models have: RWKV World's, and GPT-2's pair."""

from __future__ import annotations

import json
import random

from tests.tokenizers.test_tiktoken import byte_characters, trained_tokens
from tests.tokenizers.test_tokenizers import random_texts

END = "<|endoftext|>"


def world_tokens(n: int = 400, seed: int = 0) -> list[bytes]:
    """The 256 bytes, then pieces of texts, some of which begin or end within a character."""
    rng = random.Random(seed)
    text = " ".join(["the then there\n\n\t'\\\"", *random_texts(200, seed=9)]).encode()
    tokens = dict.fromkeys(bytes([byte]) for byte in range(256))
    tokens |= dict.fromkeys((b" the", b"there", b"\n\n", b" " * 9, "猫".encode(), "🙂".encode()[:3], b"''", b"'\""))
    while len(tokens) < n:
        at = rng.randrange(len(text))
        tokens[text[at : at + rng.choice([2, 2, 2, 3, 3, 4, 5, 7, 12])]] = None
    return list(tokens)


def literal(token: bytes) -> str:
    """As RWKV's authors write it: a text where it is one, else bytes."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def world_file(tokens: list[bytes]) -> bytes:
    return "".join(f"{i} {literal(token)} {len(token)}\n" for i, token in enumerate(tokens, 1)).encode()


def gpt2_tokens(n: int = 400) -> list[bytes]:
    """The bytes in GPT-2's order, and what training on a text makes of them, by rank."""
    made = [token for token in trained_tokens(n) if len(token) > 1]
    return [bytes([byte]) for byte in byte_characters()] + made


def gpt2_pair(tokens: list[bytes]) -> dict[str, bytes]:
    """encoder.json and vocab.bpe of them."""
    shown = byte_characters()
    texts = ["".join(shown[byte] for byte in token) for token in tokens]
    ids = {text: i for i, text in enumerate([*texts, END])}
    merges = ["#version: 0.2"]
    for text in texts[256:]:
        cuts = ((text[:at], text[at:]) for at in range(1, len(text)))
        merges.append(next(f"{a} {b}" for a, b in cuts if ids.get(a, 1 << 30) < ids[text] > ids.get(b, 1 << 30)))
    return {"encoder.json": json.dumps(ids).encode(), "vocab.bpe": ("\n".join(merges) + "\n").encode()}
