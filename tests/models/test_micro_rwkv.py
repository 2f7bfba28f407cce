"""MicroRWKV against PyTorch, by logits that tests/references/make_micro_rwkv.py stored, and as a text goes on."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.backends.cpu import CPUSampler
from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import LlamaGPUError, ModelFormatError, UsageError
from llamagpu.formats import native, open_checkpoint
from llamagpu.llm import LLM, load
from llamagpu.memory import Memory
from llamagpu.models import StateOptions
from llamagpu.models.micro_rwkv import MicroRWKV
from llamagpu.models.micro_rwkv_recurrent import RecurrentMicroRWKV
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.micro_rwkv_files import Floats, MicroShape, micro_bytes, micro_checkpoint
from tests.references.make_micro_rwkv import LENGTHS, REFERENCE, SHAPES, Reference, ids_of
from tests.torch_files import torch_bytes

TOLERANCE = 1e-4
SMALL = MicroShape(vocab_size=256, bias=True)
OPTIONS = StateOptions(1)


@pytest.fixture(scope="module")
def stored() -> Any:
    return np.load(REFERENCE)


def model_of(folder: Path, shape: MicroShape, recurrent: bool = False, seed: int = 0) -> LLM:
    """On the CPU, with a tokenizer whose ids are bytes."""
    path, new = folder / "ckpt.pt", folder / "new.pt"
    new.write_bytes(micro_bytes(shape, seed))
    new.replace(path)  # the file of a model that is in use stays as it is
    return llm_of(path, recurrent)


def llm_of(path: Path, recurrent: bool = False) -> LLM:
    return LLM(replace(open_checkpoint(path), tokenizer=TokenizerSpec("bytes", b"")), "cpu", recurrent=recurrent)


def logits_after(llm: LLM, ids: list[int], n_logits: int = 1) -> Floats:
    """After the last tokens of a text that begins."""
    logits = llm.model.forward(ids, llm.model.new_state(OPTIONS), n_logits)
    return llm.backend.to_host(logits, llm.config.vocab_size).copy()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_pytorch(name: str, stored: Any, tmp_path: Path) -> None:
    llm = model_of(tmp_path, SHAPES[name])
    for n in LENGTHS:
        expected = stored[f"{name} {n}"]
        assert np.abs(expected).max() > 1, "a model that says nothing shows nothing"
        got = logits_after(llm, ids_of(SHAPES[name], n))[0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE, err_msg=f"{n} tokens")


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed; tests/references holds its logits")
def test_the_stored_logits_are_those_of_pytorch_here(stored: Any, tmp_path: Path) -> None:
    llm = model_of(tmp_path, SMALL, seed=5)
    ids = ids_of(SMALL, 40)
    for n in (1, 7, 33, 40):
        expected = Reference(SMALL, seed=5).logits(ids[:n])
        np.testing.assert_allclose(logits_after(llm, ids[:n])[0], expected, rtol=0, atol=TOLERANCE)
    for name in ("small", "cropped"):
        found = Reference(SHAPES[name]).logits(ids_of(SHAPES[name], 256))
        np.testing.assert_allclose(found, stored[f"{name} 256"], rtol=1e-9)


def test_logits_after_each_token_are_those_of_the_text_up_to_it(tmp_path: Path) -> None:
    """What comes later would change them: the model is not causal. The text is longer than block_size."""
    llm, ids = model_of(tmp_path, SMALL), ids_of(SMALL, 40)
    each = llm.logits(ids)
    assert each.shape == (40, 256)
    for n in range(1, 41):
        np.testing.assert_array_equal(each[n - 1], logits_after(llm, ids[:n])[0])
    np.testing.assert_array_equal(logits_after(llm, ids, 3), each[-3:])
    np.testing.assert_array_equal(each[39], logits_after(llm, ids[8:])[0], "only the last block_size are seen")


def test_a_prompt_of_any_cut_and_a_state_that_goes_back(tmp_path: Path) -> None:
    llm, ids = model_of(tmp_path, SMALL), ids_of(SMALL, 20)
    state = llm.model.new_state(OPTIONS)
    for at in (0, 3, 4, 11):
        assert len(llm.model.forward(ids[at : {0: 3, 3: 4, 4: 11, 11: 15}[at]], state, 0)) == 0
    expected = logits_after(llm, ids[:16])
    np.testing.assert_array_equal(llm.model.forward(ids[15:16], state), expected)
    llm.model.forward(ids[16:], state)
    state.length = 15
    np.testing.assert_array_equal(llm.model.forward(ids[15:16], state), expected)
    assert (state.length, state.room, state.rewindable) == (16, None, True)


def test_generation_is_sampling_and_a_forward_pass_for_each_token(tmp_path: Path) -> None:
    llm = model_of(tmp_path, SMALL)
    generation = llm.generate("Once", 45, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=7)
    "".join(generation)
    assert generation.stop_reason == "max_tokens"
    sampler = CPUSampler(SamplingParams(1.0, 0, 1.0, 0.0, 1.0, 7), 256)
    text = list(b"Once")
    sampler.see(text)
    for token in generation.tokens:
        assert token == sampler.sample(logits_after(llm, text)[0])
        text.append(token)
    assert len(text) == 49, "past block_size"


def test_an_empty_prompt_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        model_of(tmp_path, SMALL).generate("")


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_session_is_saved_and_goes_on(recurrent: bool, tmp_path: Path) -> None:
    llm = model_of(tmp_path, SMALL, recurrent)
    for before in (b"once", b"upon", b" a time that was long before all of this"):
        whole, session = Session(llm), Session(llm)
        whole.add(before + b" more")
        session.add(before)
        session.read(3, leave=1)
        memory = Memory(str(tmp_path / f"memory {len(before)}"))
        memory.save(session)
        again, _ = memory.load(llm)
        assert again.tokens == list(before)
        again.add(b" more")
        expected = whole.logits(512, lambda n: None, 1)
        np.testing.assert_allclose(again.logits(512, lambda n: None, 1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_state_that_does_not_fit_is_refused(recurrent: bool, tmp_path: Path) -> None:
    llm = model_of(tmp_path, SMALL, recurrent)
    state = llm.model.new_state(OPTIONS)
    llm.model.forward([1, 2, 3], state)
    saved = llm.model.save_state(state)
    name = next(iter(saved))
    wrong: list[dict[str, Any]] = [{}, {**saved, "x": saved[name]}, {name: saved[name][:-1]}]
    wrong += [{**saved, name: saved[name].astype(np.float64)}]
    wrong += [] if recurrent else [{"text": np.array([1, 2, 256], np.int32)}, {"text": np.array([1, 2, -1], np.int32)}]
    for arrays in wrong:
        with pytest.raises(ValueError, match="holds"):
            llm.model.load_state(llm.model.new_state(OPTIONS), arrays, 3)


def test_a_memory_of_the_whole_model_is_none_of_its_recurrent_part(tmp_path: Path) -> None:
    llm = model_of(tmp_path, SMALL)
    session = Session(llm)
    session.add(b"once upon")
    session.read(512)
    memory = Memory(str(tmp_path / "memory"))
    memory.save(session)
    with pytest.raises(ModelFormatError, match="holds arrays of"):
        memory.load(llm_of(tmp_path / "ckpt.pt", recurrent=True))


def test_the_recurrent_part_is_the_model_whose_attention_gives_nothing(tmp_path: Path) -> None:
    saved = micro_checkpoint(MicroShape(16, 3, 2, 640, 256, bias=True))
    for name, values in saved["model"].items():
        if name.endswith((".sliding_attn.proj.weight", ".grouped_attn.out.weight")):
            values[:] = 0
    path = tmp_path / "ckpt.pt"
    path.write_bytes(torch_bytes(saved))
    whole, part = llm_of(path), llm_of(path, recurrent=True)
    assert isinstance(whole.model, MicroRWKV)
    assert isinstance(part.model, RecurrentMicroRWKV)
    ids = ids_of(MicroShape(vocab_size=256), 600)
    each = part.logits(ids)
    for n in (1, 2, 3, 20, 511, 512, 513, 600):
        np.testing.assert_allclose(each[n - 1], logits_after(whole, ids[:n])[0], rtol=0, atol=TOLERANCE)
    state = part.model.new_state(OPTIONS)
    for n, token in enumerate(ids[:20]):
        np.testing.assert_allclose(part.model.forward([token], state)[0], each[n], rtol=0, atol=1e-5)
    assert (state.length, state.room, state.rewindable) == (20, None, False)


def test_the_recurrent_part_has_no_end(tmp_path: Path) -> None:
    """Past block_size each token has the last position."""
    llm, ids = model_of(tmp_path, SMALL, recurrent=True), ids_of(SMALL, 100)
    each = llm.logits(ids)
    assert np.isfinite(each).all()
    np.testing.assert_allclose(logits_after(llm, ids, 30), each[-30:], rtol=0, atol=1e-5)
    assert np.abs(each - model_of(tmp_path, SMALL).logits(ids)).max() > 0.1, "it is not the model"


def test_what_does_not_go_with_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    path.write_bytes(micro_bytes(SMALL))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"context": 16}, "no end"), ({"window": 8}, "reads its text anew"), ({"kv_bits": 8}, "no keys and values"),
        ({"memory_update": "token"}, "memory_update must be chunk"),
    ]  # fmt: skip
    for options, message in refused:
        with pytest.raises(UsageError, match=message):
            load(path, "cpu", **options)
    with pytest.raises(UsageError, match=r"recurrent runs the recurrent part of a micro_rwkv, and this is a llama"):
        load("demo", "cpu", recurrent=True)


def test_damaged_weights_are_told_in_one_line(tmp_path: Path) -> None:
    saved = micro_checkpoint(SMALL)
    saved["model"]["transformer.h.1.moe.fc.weight"][0, 0] = np.nan
    path = tmp_path / "ckpt.pt"
    path.write_bytes(torch_bytes(saved))
    with pytest.raises(LlamaGPUError, match="not numbers"):
        "".join(llm_of(path).generate("Once", 3))


def test_a_native_file_gives_the_very_logits(tmp_path: Path) -> None:
    llm, ids = model_of(tmp_path, SMALL), ids_of(SMALL, 20)
    native.write(tmp_path / "model.bin", llm.checkpoint)
    again = LLM(open_checkpoint(tmp_path / "model.bin"), "cpu")
    np.testing.assert_array_equal(logits_after(again, ids), logits_after(llm, ids))
