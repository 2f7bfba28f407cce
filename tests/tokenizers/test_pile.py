"""20B_tokenizer.json, of GPT-NeoX and RWKV-4 Pile: an ordinary tokenizer.json whose token 0 ends a text."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import tokenizers

from llamagpu.tokenizers import StreamDecoder, find_beside
from llamagpu.tokenizers.huggingface import HuggingFaceTokenizer
from tests.tokenizers.test_tokenizers import random_texts
from tests.tokenizers.tokenizer_json import END, llama3_like, pile_like, qwen2_like

PATH = Path("20B_tokenizer.json")


def test_ids_and_texts_are_the_librarys() -> None:
    ours, library = HuggingFaceTokenizer(pile_like(), PATH), tokenizers.Tokenizer.from_buffer(pile_like())
    library.encode_special_tokens = True
    n_of_spaces = 0
    for text in [" " * 50, "a\n    b\n        c", f"{END} a {END}", *random_texts(1000)]:
        ids = ours.encode(text)
        assert ids == library.encode(text).ids, repr(text)
        assert ours.decode(ids) == unicodedata.normalize("NFC", text)
        assert min(ids, default=2) >= 2, "special text is ordinary text"
        n_of_spaces += sum(token >= library.get_vocab_size() - 23 for token in ids)
    assert n_of_spaces > 50
    rng = random.Random(0)
    for _ in range(100):
        ids = [rng.randrange(ours.vocab_size + 5) for _ in range(30)]
        decoder = StreamDecoder(ours)
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == ours.decode(ids)


def test_token_0_ends_a_text() -> None:
    ours = HuggingFaceTokenizer(pile_like(), PATH)
    assert (ours.bos_id, ours.eos_id) == (None, 0)
    assert ours.encode("") == []
    assert ours.token_bytes(0) == ours.token_bytes(1) == b""
    assert ours.controls == {END: 0, "<|padding|>": 1}
    for other in (llama3_like(), qwen2_like()):  # Qwen 2 has the same special token, at another place
        assert HuggingFaceTokenizer(other, PATH).eos_id is None


def test_it_is_found_under_its_name_beside_models_with_more_rows(tmp_path: Path) -> None:
    """50,277 tokens; models have as many rows, or 50,432."""
    path = tmp_path / PATH
    path.write_bytes(pile_like())
    n = HuggingFaceTokenizer(pile_like(), PATH).vocab_size
    for n_rows, fits in [(n, True), (n + 155, True), (n - 1, False), (n + 5000, False)]:
        found = find_beside(tmp_path / "RWKV-4-Pile-169M.pth", n_rows)
        assert (found is not None) == fits
        assert found is None or (found[0].kind, found[2]) == ("huggingface", path)
    path.rename(tmp_path / "tokenizer.json")  # a model's own, whatever its rows
    assert find_beside(tmp_path, n + 5000) is not None
    assert find_beside(tmp_path / "model.pth", n + 5000) is None, "beside a file it may be anybody's"
