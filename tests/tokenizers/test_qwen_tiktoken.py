"""The first Qwen's qwen.tiktoken, told by its number of ranks, against the tokenizers library."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from llamagpu.errors import ModelFormatError
from llamagpu.tokenizers import Tokenizer, find_beside, open_spec, read_spec
from tests.tokenizers.test_tiktoken import PATTERN, TOKENS, ranks_file, with_the_tokenizers_library
from tests.tokenizers.test_tokenizers import random_texts

N_RANKS = 151643
FILLERS = [b"\xff" + i.to_bytes(4, "big") for i in range(N_RANKS - len(TOKENS))]  # no merge makes them


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen") / "qwen.tiktoken"
    path.write_bytes(ranks_file(TOKENS + FILLERS))
    return path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return open_spec(read_spec(path), path)


def test_ids_are_those_of_the_tokenizers_library(tokenizer: Tokenizer) -> None:
    """With Qwen's expression: each digit is a piece. The text is brought to NFC."""
    library = with_the_tokenizers_library(TOKENS, PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"))
    texts = ["I'LL don't we've 12345 1984 the  the\r\n\r\n x .!?\n", "e\u0301 A\u030a", *random_texts(300)]
    for text in texts:
        composed = unicodedata.normalize("NFC", text)
        ids = tokenizer.encode(text)
        assert ids == library.encode(composed).ids, repr(text)
        assert tokenizer.decode(ids) == composed


def test_control_tokens_follow_the_ranks(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (151851, None, 151643)
    assert tokenizer.controls["<|im_start|>"] == 151644
    assert tokenizer.controls["<|extra_204|>"] == 151850
    assert tokenizer.stop_ids == (151645,)
    assert tokenizer.token_bytes(151645) == b""
    assert max(tokenizer.encode("a<|im_end|>")) < len(TOKENS), "a text is text"
    assert tokenizer.encode_rendered("<|im_start|>", "\ue000", at_start=True) == [151644]


def test_it_is_found_beside_a_model_of_more_rows(path: Path) -> None:
    found = find_beside(path.parent / "model.gguf", 151936)
    assert found is not None
    assert (found[0].kind, found[2]) == ("qwen_tiktoken", path)


@pytest.mark.parametrize(("n_ranks", "name"), [(100256, "cl100k_base"), (151329, "GLM-4's")])
def test_files_of_others_are_refused_by_their_name(n_ranks: int, name: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.tiktoken"
    path.write_bytes(ranks_file((TOKENS + FILLERS)[:n_ranks]))
    with pytest.raises(ModelFormatError, match=f"{n_ranks} ranks: {name}, which.*tokenizer.json"):
        read_spec(path)
