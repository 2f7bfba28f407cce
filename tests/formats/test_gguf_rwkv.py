"""RWKV-6 and 7 in GGUF, against a forward pass that shares nothing with ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.quantization import Deferred
from tests.formats.gguf_files import File, Tensor
from tests.formats.gguf_rwkv_files import rwkv_gguf
from tests.references.rwkv_reference import Reference, random_weights

IDS = [5, 0, 69, 3, 3, 41, 17, 8, 60, 22, 5, 33, 2, 50]
VERSIONS = (6, 7)
WIDE = {"dim": 256, "head_dim": 64, "hidden": 512, "rank": 32, "n_layers": 2}


def opened(file: File, tmp_path: Path) -> LLM:
    path = tmp_path / "model.gguf"
    path.write_bytes(file.to_bytes())
    return LLM(open_checkpoint(path), "cpu")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [{}, {"head_dim": 32, "n_layers": 1}, {"dim": 24, "head_dim": 3, "rank": 2}], ids=str)
def test_equals_an_independent_forward_pass(version: int, shape: dict[str, int], tmp_path: Path) -> None:
    weights = random_weights(version, **shape)
    llm = opened(rwkv_gguf(weights)[0], tmp_path)
    assert (llm.config.architecture, llm.config.max_seq_len) == (f"rwkv{version}", 1048576)
    np.testing.assert_allclose(llm.logits(IDS), Reference(weights, version).logits(IDS), atol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_types(version: int, kind: str, tmp_path: Path) -> None:
    weights = random_weights(version, **WIDE)
    file, rounded = rwkv_gguf(weights, kind)
    llm = opened(file, tmp_path)
    expected = Reference(rounded, version).logits(IDS)
    np.testing.assert_allclose(llm.logits(IDS), expected, atol=2e-4)
    blocks = [name for name, tensor in llm.checkpoint.tensors.items() if isinstance(tensor, Deferred)]
    assert (len(blocks) > 8) == kind.startswith("Q")


@pytest.mark.parametrize("version", VERSIONS)
def test_thin_matrices_of_blocks_become_floats(version: int, tmp_path: Path) -> None:
    """llama.cpp leaves them in floats; should a file have them so, nothing is lost."""
    file, rounded = rwkv_gguf(random_weights(version, **WIDE), "Q8_0", "Q8_0")
    np.testing.assert_allclose(opened(file, tmp_path).logits(IDS), Reference(rounded, version).logits(IDS), atol=2e-4)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_what_was_halved_is_doubled(kind: str, tmp_path: Path) -> None:
    weights = random_weights(6, **{**WIDE, "n_layers": 5})
    file, rounded = rwkv_gguf(weights, kind, every=2, fused=False)
    llm = opened(file, tmp_path)
    np.testing.assert_allclose(llm.logits(IDS), Reference(rounded, 6).logits(IDS), atol=3e-4)


def changed(file: File, key: str, value: Any) -> File:
    file.keys[key] = value
    return file


@pytest.mark.parametrize(
    ("version", "key", "value", "problem"),
    [
        (7, "rwkv7.wkv.head_size", ("u32", 0), "must divide"),
        (7, "rwkv7.wkv.head_size", ("u32", 5), "must divide"),
        (6, "rwkv6.wkv.head_size", ("u32", 4), "the tensors say 8"),
        (7, "rwkv7.embedding_length", ("u32", 64), "not 8 heads of 8"),
        (6, "rwkv6.block_count", ("u32", 2), "the tensors say 3"),
        (7, "rwkv7.feed_forward_length", ("u32", 50), "the tensors say 48"),
        (7, "rwkv7.token_shift_count", ("u32", 1), "token_shift_count"),
        (7, "rwkv7.expert_count", ("u32", 4), "a mixture of experts"),
        (7, "rwkv7.attention.scale", ("f32", 4.0), "may change the output"),
        (6, "rwkv6.rescale_every_n_layers", ("u32", 1 << 31), ""),
        (7, "general.architecture", ("str", "arwkv7"), "'arwkv7'"),
        (7, "general.architecture", ("str", "rwkv6"), "is a key|embedding_length|is missing"),
    ],
)
def test_keys_that_do_not_fit(version: int, key: str, value: Any, problem: str, tmp_path: Path) -> None:
    file, _ = rwkv_gguf(random_weights(version))
    if not problem:
        assert opened(changed(file, key, value), tmp_path).config.n_layers == 3
        return
    with pytest.raises(ModelFormatError, match=problem) as error:
        opened(changed(file, key, value), tmp_path)
    assert "\n" not in str(error.value)


def test_halved_more_often_than_any_model_is(tmp_path: Path) -> None:
    file, _ = rwkv_gguf(random_weights(6, n_layers=18, dim=8, hidden=8))
    with pytest.raises(ModelFormatError, match="would be halved 17 times"):
        opened(changed(file, "rwkv6.rescale_every_n_layers", ("u32", 1)), tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("change", ["missing", "flat", "twice", "unknown"])
def test_tensors_that_do_not_fit(version: int, change: str, tmp_path: Path) -> None:
    file, _ = rwkv_gguf(random_weights(version), every=1 if version == 6 else 0)
    name = "blk.1.time_mix_output.weight"
    if change == "missing":
        del file.tensors[name]
        problem = "is missing"
    elif change == "flat":
        file.tensors[name] = Tensor((32,), "F32", bytes(128))
        problem = f"{name}.*not of 2 axes"
    elif change == "twice":
        other = "blocks.1.att.output.weight"
        file.tensors[other] = Tensor((32, 32), "F32", bytes(4096))
        problem = "under two names"
    else:
        file.tensors["blk.1.time_mix_e1.weight"] = Tensor((32,), "F32", bytes(128))
        problem = "blk.1.time_mix_e1.weight: is a tensor that no RWKV has"
    with pytest.raises(ModelFormatError, match=problem):
        opened(file, tmp_path)


def test_stop_tokens_template_and_note(tmp_path: Path) -> None:
    file, _ = rwkv_gguf(random_weights(7))
    bare = opened(file, tmp_path).checkpoint
    assert (bare.stop_tokens, bare.chat_template, bare.notes) == ((0,), None, ())
    file.keys |= {
        "tokenizer.ggml.eos_token_id": ("u32", 0), "tokenizer.ggml.eot_token_id": ("u32", 61),
        "tokenizer.chat_template": ("str", "rwkv-world"),
    }  # fmt: skip
    named = opened(file, tmp_path).checkpoint
    assert (named.stop_tokens, named.chat_template) == ((0, 61), None)
    assert "token 61" in named.notes[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_names_are_those_of_the_gguf_package(version: int) -> None:
    arch = gguf.MODEL_ARCH[f"RWKV{version}"]
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    file, _ = rwkv_gguf(random_weights(version))
    used = {re.sub(r"^blk\.\d+\.", "blk.{bid}.", name).rpartition(".")[0] for name in file.tensors}
    assert used <= known
    unused = {name.removeprefix("blk.{bid}.") for name in known - used}
    assert unused == ({f"time_mix_lerp_{x}" for x in "wkvrg"} if version == 6 else set())
