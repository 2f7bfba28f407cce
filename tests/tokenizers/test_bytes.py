"""The tokenizer of bytes, which has no file; a model.bin keeps its kind alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamagpu.checkpoint import Checkpoint, TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats import native, open_checkpoint
from llamagpu.llm import LLM
from llamagpu.tokenizers import StreamDecoder, open_spec
from tests.small_files import Shape, random_weights, v0_bytes
from tests.tokenizers.test_tokenizers import random_texts

SPEC = TokenizerSpec("bytes", b"")


def test_ids_are_bytes() -> None:
    tokenizer = open_spec(SPEC, Path("model.bin"))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (256, None, None, ())
    assert tokenizer.encode("in") == [105, 110]
    assert tokenizer.encode("") == []
    for text in random_texts(300):
        ids = tokenizer.encode(text)
        assert bytes(ids).decode() == text
        decoder = StreamDecoder(tokenizer)
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == tokenizer.decode(ids) == text
    data = np.random.default_rng(0).integers(0, 256, 3000).tolist()
    assert tokenizer.decode(data) == bytes(data).decode("utf-8", "replace")
    assert tokenizer.decode([256, 99999]) == ""


def test_data_are_refused() -> None:
    with pytest.raises(ModelFormatError, match="a tokenizer of bytes needs none"):
        open_spec(TokenizerSpec("bytes", b"x"), Path("model.bin"))


def test_a_model_of_bytes_is_converted_and_speaks(tmp_path: Path) -> None:
    shape = Shape(vocab_size=256)
    (tmp_path / "source.bin").write_bytes(v0_bytes(shape, random_weights(shape)))
    source = open_checkpoint(tmp_path / "source.bin")
    out = tmp_path / "model.bin"
    native.write(out, Checkpoint(source.path, "", source.config, source.tensors, SPEC))
    checkpoint = open_checkpoint(out)
    assert checkpoint.tokenizer == SPEC
    generation = LLM(checkpoint, "cpu").generate("in", max_tokens=9, temperature=0)
    text = "".join(generation)
    assert generation.prompt_tokens == [105, 110]
    assert text == bytes(generation.tokens).decode("utf-8", "replace")
    assert len(generation.tokens) == 9


def test_a_kind_without_its_data_is_refused(tmp_path: Path) -> None:
    shape = Shape()
    (tmp_path / "source.bin").write_bytes(v0_bytes(shape, random_weights(shape)))
    source = open_checkpoint(tmp_path / "source.bin")
    spec = TokenizerSpec("rwkv_world", b"")
    native.write(tmp_path / "model.bin", Checkpoint(source.path, "", source.config, source.tensors, spec))
    with pytest.raises(ModelFormatError, match="must be both named in the metadata and held as bytes"):
        open_checkpoint(tmp_path / "model.bin")
