"""rllama's greedy reading of a SentencePiece model."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagpu.checkpoint import TokenizerSpec
from llamagpu.formats import open_checkpoint
from llamagpu.llm import model_path
from llamagpu.tokenizers import open_spec
from llamagpu.tokenizers.greedy import GreedyTokenizer
from llamagpu.tokenizers.sentencepiece import SentencePieceTokenizer


@pytest.fixture(scope="module")
def demo() -> GreedyTokenizer:
    spec = open_checkpoint(model_path("demo")).tokenizer
    assert spec is not None
    opened = open_spec(TokenizerSpec("sentencepiece-greedy", spec.data), Path("demo"))
    assert isinstance(opened, GreedyTokenizer)
    return opened


def test_the_known_ids_of_llama(data: Path) -> None:
    """Of rllama itself, where the longest piece is not what BPE takes."""
    path = data / "tokenizer" / "tokenizer.model"
    greedy = GreedyTokenizer(path.read_bytes(), path)
    bpe = SentencePieceTokenizer(path.read_bytes(), path)
    text = "Computers are pretty complica"
    assert greedy.encode(text) == [1, 20972, 29879, 526, 5051, 13162, 983]
    assert bpe.encode(text) == [1, 11796, 414, 526, 5051, 752, 10123]
    assert greedy.encode("The meaning of life is") == bpe.encode("The meaning of life is")
    assert greedy.encode_text("") == [29871]  # a prompt begins with a space, also an empty one
    assert greedy.encode("a\nb")[2:] == [13, 29890]
    assert greedy.encode("a</s>b<0x41>")[2:] == [2, 29890, 3 + 0x41]
    # Characters that are no piece, though their bytes are: ASCII is left out, anything else ends the text.
    assert greedy.encode("a\x01b") == [1, 263, 29890]
    assert greedy.encode("a\U0001f9ff and more") == greedy.encode("a")
    assert greedy.decode([3 + 0x41, 3 + 0x0A, 2, 29890]) == "<0x41>\nb"


def longest_match(text: str, pieces: list[str]) -> list[int]:
    text = "\u2581" + text.replace(" ", "\u2581").replace("\n", "<0x0A>")
    ids = []
    while text:
        fitting = [piece for piece in pieces if piece and text.startswith(piece)]
        if fitting:
            best = max(fitting, key=len)
            ids.append(pieces.index(best))
            text = text[len(best) :]
        elif ord(text[0]) < 128:
            text = text[1:]
        else:
            break
    return ids


def test_the_longest_piece_is_taken(demo: GreedyTokenizer) -> None:
    pieces = [demo.processor.id_to_piece(token) for token in range(demo.vocab_size)]
    texts = [
        "Once upon a time, there lived a fox.\nHe was happy.", "two  spaces", "x", " ", "tab\there", "Zürich is far",
        "猫 is a cat", "</s><s><0x0A>", "@#$%^&*()", "unbelievable storytelling",
    ]  # fmt: skip
    for text in texts:
        assert demo.encode(text, add_bos=False) == longest_match(text, pieces), repr(text)
    assert demo.encode("Once")[0] == demo.bos_id


def test_known_text_comes_back(demo: GreedyTokenizer) -> None:
    text = "Once upon a time, there was a fox.\nThe fox was happy."
    assert demo.decode(demo.encode(text)) == text
