"""Mistral's tekken.json: ids after the control tokens, against the tokenizers library."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

import llamagpu
from llamagpu.errors import ModelFormatError
from llamagpu.tokenizers import find_beside, open_spec, read_spec
from tests.small_files import Shape, random_weights, v0_bytes
from tests.tokenizers.test_tiktoken import TOKENS, with_the_tokenizers_library
from tests.tokenizers.test_tokenizers import random_texts

# As published in the files.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
N_SPECIAL, N_UNUSED = 40, 30


def content(n_special: int = N_SPECIAL) -> dict[str, Any]:
    """The last ranks of a file are not used."""
    unused = [b"unused%d" % i for i in range(N_UNUSED)]
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
             for rank, token in enumerate(TOKENS + unused)]  # fmt: skip
    size = len(TOKENS) + n_special
    config = {"pattern": PATTERN, "num_vocab_tokens": len(vocab), "default_vocab_size": size,
              "default_num_special_tokens": n_special, "version": "v3"}  # fmt: skip
    return {"config": config, "vocab": vocab, "image": {"image_patch_size": 16}}


def listed() -> dict[str, Any]:
    """As newer files have it."""
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[THINK]"]
    special = [{"rank": i, "token_str": name, "is_control": name != "[THINK]"} for i, name in enumerate(names)]
    return {**content(), "special_tokens": special}


def opened(values: Any, folder: Path) -> Any:
    path = folder / "tekken.json"
    path.write_text(json.dumps(values, indent=4))
    spec = read_spec(path)
    assert spec.kind == "tekken"
    return open_spec(spec, path)


def test_ids_are_those_of_the_tokenizers_library(tmp_path: Path) -> None:
    tokenizer, library = opened(content(), tmp_path), with_the_tokenizers_library(TOKENS, PATTERN)
    assert tokenizer.vocab_size == len(TOKENS) + N_SPECIAL
    for text in ["HelloWorld camelCase I'LL 12345 the  the\r\n\r\n x/\n.!?\n", *random_texts(300)]:
        ids = tokenizer.encode(text)
        assert ids == [1, *(N_SPECIAL + token for token in library.encode(text).ids)], repr(text)
        assert tokenizer.decode(ids) == text


def test_control_tokens_come_first(tmp_path: Path) -> None:
    tokenizer = opened(content(), tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert (tokenizer.controls["[INST]"], tokenizer.controls["[TOOL_CONTENT]"]) == (3, 19)
    assert tokenizer.token_bytes(3) == tokenizer.token_bytes(N_SPECIAL - 1) == b""
    assert min(tokenizer.encode("[INST]", add_bos=False)) >= N_SPECIAL, "a text is text"
    rendered = tokenizer.encode_rendered("<s>[INST]a[/INST]", "\ue000", at_start=True)
    assert rendered == [1, 3, *tokenizer.encode("a", add_bos=False), 4]
    named = opened(listed(), tmp_path)
    assert sorted(named.controls) == ["</s>", "<pad>", "<s>", "<unk>", "[/INST]", "[INST]", "[THINK]"]
    assert named.token_bytes(6) == b"[THINK]"
    assert named.token_bytes(5) == b""


def test_a_model_beside_it(tmp_path: Path) -> None:
    tokenizer = opened(content(), tmp_path)
    shape = Shape(vocab_size=tokenizer.vocab_size)
    (tmp_path / "model.bin").write_bytes(v0_bytes(shape, random_weights(shape)))
    found = find_beside(tmp_path / "model.bin", tokenizer.vocab_size)
    assert found is not None
    assert found[2].name == "tekken.json"
    generation = llamagpu.load(tmp_path / "model.bin", "cpu").generate("the", max_tokens=3, temperature=0)
    "".join(generation)
    assert generation.prompt_tokens == tokenizer.encode("the")


def changed(path: str, value: Any) -> dict[str, Any]:
    values = listed()
    *places, last = path.split("/")
    inner: Any = values
    for place in places:
        inner = inner[int(place) if place.isdigit() else place]
    inner[int(last) if last.isdigit() else last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("config", None, "config: is missing or no dict"),
        ("config/pattern", 7, "pattern: is missing or no str"),
        ("config/pattern", "(", "pattern: is no regular expression"),
        ("config/default_vocab_size", 10**12, "default_vocab_size: is 1000000000000, must be"),
        ("config/default_vocab_size", 5000, "vocab: has 786 tokens, and the config asks for 4960"),
        ("config/default_num_special_tokens", True, "default_num_special_tokens: is True"),
        ("vocab/5/rank", 4, "vocab 5: is of 1 bytes, or has the rank 4 of another"),
        ("vocab/5/rank", -1, "rank: is -1"),
        ("vocab/5/token_bytes", "!", "vocab 5: is no base64"),
        ("vocab/5/token_bytes", "", "vocab 5: is of 0 bytes"),
        ("vocab/300/token_bytes", "QQ==", "has a token twice"),
        ("special_tokens/1/rank", 40, "rank: is 40, must be 0 to 39"),
        ("special_tokens/1/rank", 0, "has the id 0 of another"),
        ("special_tokens/1/token_str", "</s>", "hold the same text twice"),
        ("special_tokens/1", [], "special_tokens 1: is missing or no dict"),
    ],
)
def test_files_that_make_no_sense(path: str, value: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=problem) as caught:
        opened(changed(path, value), tmp_path)
    assert str(caught.value).isprintable()


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(content())[:-100])
    with pytest.raises(ModelFormatError, match="no valid JSON"):
        open_spec(read_spec(path), path)
