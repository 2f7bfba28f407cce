"""GGUF vocabularies that leave something out, or say it twice: as the same vocabulary with all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamagpu.formats import open_checkpoint
from llamagpu.formats.gguf_splits import SPLITS
from tests.formats.gguf_files import File, Keys, small_model, small_vocabulary, spm_keys
from tests.tokenizers.test_gguf import byte_level_keys, opened, world_keys
from tests.tokenizers.test_tokenizers import random_texts
from tests.tokenizers.vocabularies import world_tokens

TOKEN_TYPE, SCORES = "tokenizer.ggml.token_type", "tokenizer.ggml.scores"
TEXTS = ["the th", "<s>猫é", "the</s>", "a\nb", " the  the", *(text for text in random_texts(200) if text)]


def without(keys: Keys, *names: str) -> Keys:
    return {key: value for key, value in keys.items() if key not in names}


def alike(ours: Any, full: Any) -> None:
    """The same ids of every text, and the same texts of every id."""
    for text in TEXTS:
        assert ours.encode(text) == full.encode(text), repr(text)
        assert ours.decode(ours.encode(text)) == full.decode(full.encode(text))
    assert [ours.token_bytes(i) for i in range(full.vocab_size)] == [
        full.token_bytes(i) for i in range(full.vocab_size)
    ]
    assert (ours.bos_id, ours.eos_id, ours.controls) == (full.bos_id, full.eos_id, full.controls)


@pytest.mark.parametrize("names", [(TOKEN_TYPE,), (SCORES,), (TOKEN_TYPE, SCORES)])
def test_a_sentencepiece_vocabulary_without_types_or_scores(names: tuple[str, ...]) -> None:
    keys = small_vocabulary()
    alike(opened(without(keys, *names)), opened(keys))


def test_the_keys_say_which_tokens_are_control_tokens() -> None:
    keys = without(small_vocabulary(), TOKEN_TYPE)
    keys |= {"tokenizer.ggml.bos_token_id": ("u32", 280), "tokenizer.ggml.eot_token_id": ("u32", 281)}
    tokenizer = opened(keys)
    assert tokenizer.bos_id == 280
    assert tokenizer.token_bytes(280) == tokenizer.token_bytes(281) == b""
    assert tokenizer.token_bytes(282) == b"filler13"
    pieces = list(keys["tokenizer.ggml.tokens"][2])
    pieces[290] = b"<|im_end|>"
    assert opened(keys | {"tokenizer.ggml.tokens": ("arr", "str", pieces)}).controls["<|im_end|>"] == 290


def test_fewer_than_all_bytes_are_no_byte_tokens() -> None:
    keys = without(small_vocabulary(), TOKEN_TYPE)
    pieces = list(keys["tokenizer.ggml.tokens"][2])
    pieces[3] = b"another"
    tokenizer = opened(keys | {"tokenizer.ggml.tokens": ("arr", "str", pieces)})
    assert tokenizer.encode("the") == [1, 266]
    assert tokenizer.token_bytes(4) == b"<0x01>"


def test_scores_as_whole_numbers_and_longer_arrays() -> None:
    """llama.cpp takes both."""
    keys = small_vocabulary()
    scores, types = keys[SCORES][2], keys[TOKEN_TYPE][2]
    more = {SCORES: ("arr", "i32", [int(score) for score in scores] + [0]), TOKEN_TYPE: ("arr", "i32", [*types, 1])}
    alike(opened(keys | more), opened(keys))


def test_a_byte_level_vocabulary_without_types() -> None:
    keys = byte_level_keys("gpt-2")
    del keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]
    tokens = keys["tokenizer.ggml.tokens"][2]
    full, bare = opened(keys), opened(without(keys, TOKEN_TYPE))
    assert tokens[261:263] == ["<|begin|>", "<|end|>"]
    assert bare.controls == full.controls == {"<|begin|>": 261, "<|end|>": 262}
    for text in TEXTS:
        assert bare.encode(text) == full.encode(text)
    keys["tokenizer.ggml.eos_token_id"] = ("u32", 260)
    assert opened(without(keys, TOKEN_TYPE)).token_bytes(260) == b"", "what the keys name is a control token"


def test_rwkv_world_without_types() -> None:
    tokens = world_tokens()
    keys = world_keys(tokens, len(tokens) + 7)
    alike(opened(without(keys, TOKEN_TYPE)), opened(keys))


@pytest.mark.parametrize("of_type", [[0, 280], [0, 280, 281], [280, 281], [0, 290]])
def test_one_of_several_unknown_tokens_is_the_unknown_one(of_type: list[int]) -> None:
    """As in phi-3's: the sentencepiece library says "unk is already defined" of a second one."""
    keys = small_vocabulary()
    plain = opened(keys)
    pieces, types = list(keys["tokenizer.ggml.tokens"][2]), list(keys[TOKEN_TYPE][2])
    types[0] = 3
    pieces[280], pieces[281] = b"<|placeholder1|>", b"<|placeholder2|>"
    for token in of_type:
        types[token] = 2
    tokenizer = opened(spm_keys(pieces, keys[SCORES][2], types))
    for text in TEXTS:
        assert tokenizer.encode(text) == plain.encode(text)
    controls = [token for token in of_type[1:] if token != 290]
    assert sorted(tokenizer.controls.values()) == sorted([1, 2, *controls, *([0] if of_type[0] else [])])
    assert tokenizer.token_bytes(290) == b"filler21", "a text that is of the unknown type can still be written"


def test_bos_that_is_of_unknown_type_and_a_file_without_an_unknown_token() -> None:
    keys = small_vocabulary()
    types = list(keys[TOKEN_TYPE][2])
    types[1], types[0] = 2, 1
    no_unknown = {"tokenizer.ggml.unknown_token_id": ("u32", 2**32 - 1)}
    for changed in (types, [3, 3, 3, *types[3:]]):
        tokenizer = opened(keys | {TOKEN_TYPE: ("arr", "i32", changed)} | no_unknown)
        assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
        assert tokenizer.encode("the th") == [1, 266, 267]


def test_tokens_that_are_there_twice() -> None:
    """A control token or an unused one gives way; two that a text could mean are refused elsewhere."""
    keys = small_vocabulary()
    pieces, types = list(keys["tokenizer.ggml.tokens"][2]), list(keys[TOKEN_TYPE][2])
    pieces[290:296] = [b"<|x|>", b"<|x|>", b"<|y|>", b"<|y|>", b"\xe2\x96\x81the", b"</s>"]
    types[290:296] = [3, 3, 4, 3, 5, 3]
    tokenizer = opened(spm_keys(pieces, keys[SCORES][2], types))
    assert tokenizer.encode("the<|y|>th") == [1, 266, 292, 265]
    assert (tokenizer.controls["<|x|>"], tokenizer.eos_id) == (290, 2)
    assert tokenizer.token_bytes(293) == tokenizer.token_bytes(291) == b""
    assert tokenizer.token_bytes(292) == b"<|y|>"


def test_user_defined_tokens_of_spaces() -> None:
    """llama.cpp's converter writes the spaces of Gemma's tokens as spaces."""
    keys = small_vocabulary()
    pieces, types = list(keys["tokenizer.ggml.tokens"][2]), list(keys[TOKEN_TYPE][2])
    pieces[290], types[290] = b"   ", 4
    tokenizer = opened(spm_keys(pieces, keys[SCORES][2], types))
    assert tokenizer.encode("a   b") == [1, 259, 260, 290, 261]
    assert tokenizer.decode(tokenizer.encode("a   b")) == "a   b"


def notes_of(keys: Keys, folder: Path) -> tuple[str, ...]:
    file, _ = small_model()
    path = folder / "model.gguf"
    path.write_bytes(File(file.keys | keys, file.tensors).to_bytes())
    return open_checkpoint(path).notes


def test_what_is_left_out_is_said_in_a_line(tmp_path: Path) -> None:
    assert notes_of(small_vocabulary(), tmp_path) == ()
    assert notes_of(without(small_vocabulary(), TOKEN_TYPE, SCORES), tmp_path) == (
        "the file does not give the types of its tokens: they are told by its keys and by their texts",
        "the file does not give the scores of its tokens: those of lower ids are merged first",
    )
    assert notes_of(byte_level_keys("gpt-2"), tmp_path) == ()
    assert notes_of(byte_level_keys("my\npre"), tmp_path) == (
        "the file's pre-tokenizer my\\npre is not known: the default rule splits text",
    )
    assert notes_of(without(byte_level_keys("gpt-2"), "tokenizer.ggml.pre"), tmp_path) == (
        "the file does not name its pre-tokenizer (tokenizer.ggml.pre): the default rule splits text",
    )


def test_an_unknown_pre_tokenizer_is_the_default() -> None:
    default = opened(byte_level_keys("default"))
    for keys in (byte_level_keys("word2vec"), without(byte_level_keys("gpt-2"), "tokenizer.ggml.pre")):
        alike(opened(keys), default)
    assert "word2vec" not in SPLITS
