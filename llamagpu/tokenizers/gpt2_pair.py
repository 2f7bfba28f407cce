"""GPT-2's vocabulary in two files: ids of the tokens (encoder.json, vocab.json) and merges (vocab.bpe, merges.txt).

OpenAI's and Hugging Face's pairs are the same. Ranks as in a tiktoken file are made of them: a token's rank is its id.
"""

from __future__ import annotations

import binascii
import re
from pathlib import Path

from llamagpu.errors import ModelFormatError
from llamagpu.formats.json_file import read_json_object, read_text
from llamagpu.tokenizers.byte_letters import BYTE_OF_LETTER

END = "<|endoftext|>"
PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # ids of the tokens, and merges
MERGES = b"#version"  # how a file of merges begins
IDS = re.compile(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\d')  # and how the other does
REMEDY = "give GPT-2's encoder.json and vocab.bpe, vocab.json and merges.txt, tokenizer.json, or gpt2.tiktoken"


def ranks_of_pair(path: Path) -> bytes:
    """A tiktoken file of the ranks that a pair of files holds. path: one of the two. Raises ModelFormatError."""
    names = next((pair for pair in PAIRS if path.name in pair), None)
    if names is None:
        known = ", ".join(f"{tokens} and {merges}" for tokens, merges in PAIRS)
        raise ModelFormatError(path, "path", f"is one file of two, which must be named {known}", REMEDY)
    ids, merges = (path.with_name(name) for name in names)
    for file in (ids, merges):
        if not file.is_file():
            raise ModelFormatError(file, "path", f"is missing beside {path.name}: both are needed", REMEDY)
    lines = (binascii.b2a_base64(token, newline=False) for token in ranked_tokens(ids, merges))
    return b"".join(b"%s %d\n" % (line, rank) for rank, line in enumerate(lines))


def ranked_tokens(ids: Path, merges: Path) -> list[bytes]:
    """Tokens by rank, which is their id: the 256 bytes, in any order, and what the merges make, the first the best.

    What is not so, or does not end with <|endoftext|>, is another model's vocabulary: a ModelFormatError.
    """

    def refuse(field: str, problem: str) -> ModelFormatError:
        return ModelFormatError(ids, field[:80], problem, REMEDY)

    vocabulary = read_json_object(ids)
    n_ranks = len(vocabulary) - 1
    if vocabulary.get(END) != n_ranks:
        raise refuse(END, f"is not the last of its {len(vocabulary)} tokens, as it is in GPT-2's")
    by_rank = {rank: text for text, rank in vocabulary.items() if type(rank) is int}
    if by_rank.keys() != set(range(n_ranks + 1)):
        raise refuse("ids", f"are not 0 to {n_ranks}, each once")
    lines = [line.rstrip("\r") for line in read_text(merges).split("\n")]
    made = [line.replace(" ", "", 1) for line in lines[lines[0].startswith(MERGES.decode()) :] if line]
    if len(made) != n_ranks - 256:
        raise refuse("ids", f"are of {n_ranks} tokens, which is not 256 and the {len(made)} merges of {merges.name}")
    for rank, text in enumerate(made, 256):
        if by_rank[rank] != text:
            raise refuse(f"token {rank}", f"is {by_rank[rank][:40]!r}, and {merges.name} makes {text[:40]!r} for it")
    try:
        return [bytes(BYTE_OF_LETTER[letter] for letter in by_rank[rank]) for rank in range(n_ranks)]
    except KeyError as error:
        raise refuse("tokens", f"hold {error.args[0]!r}, which stands for no byte") from None
