"""MicroRWKV through the CUDA backend: the same launches on the emulator and, with `-m gpu`, on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.backends.cuda import CUDABackend
from llamagpu.backends.cuda.device import Device
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.llm import LLM
from llamagpu.models import load_model
from llamagpu.sampling import SamplingParams
from tests.emulated_device import EmulatedDevice
from tests.kernels.harness import needs_emulator
from tests.micro_rwkv_files import MicroShape, micro_checkpoint
from tests.models.test_micro_rwkv import OPTIONS, SMALL, TOLERANCE, llm_of, logits_after, model_of
from tests.references.make_micro_rwkv import LENGTHS, REFERENCE, SHAPES, ids_of
from tests.torch_files import torch_bytes


def on_device(folder: Path, shape: MicroShape, device: Device, recurrent: bool = False, seed: int = 0) -> LLM:
    """The LLM that `load` gives on a GPU, on any device."""
    llm = model_of(folder, shape, recurrent, seed)
    llm.backend = CUDABackend(device)
    llm.model = load_model(llm.checkpoint, llm.backend, recurrent=recurrent)
    return llm


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_pytorch(name: str, tmp_path: Path, device: Device) -> None:
    stored: Any = np.load(REFERENCE)
    llm = on_device(tmp_path, SHAPES[name], device)
    # the emulator takes its time over wide models: those do the lengths around 256 on the CPU
    for n in LENGTHS if name == "small" else (1, 20, 257):
        got = logits_after(llm, ids_of(SHAPES[name], n))[0]
        np.testing.assert_allclose(got, stored[f"{name} {n}"], rtol=0, atol=TOLERANCE, err_msg=f"{n} tokens")


def test_two_passes_give_equal_bits_and_scratch_of_longer_texts_does_no_harm(tmp_path: Path, device: Device) -> None:
    llm, ids = on_device(tmp_path, SMALL, device), ids_of(SMALL, 40)
    each = llm.logits(ids)
    backwards = [logits_after(llm, ids[:n])[0] for n in range(40, 0, -1)]
    np.testing.assert_array_equal(each, backwards[::-1])
    np.testing.assert_allclose(each, model_of(tmp_path, SMALL).logits(ids), rtol=0, atol=TOLERANCE)


def test_16_bits(tmp_path: Path, device: Device) -> None:
    saved = micro_checkpoint(SMALL)
    saved["model"] = {name: values.astype(np.float16) for name, values in saved["model"].items()}
    llm, ids = on_device(tmp_path, SMALL, device), ids_of(SMALL, 20)
    path = tmp_path / "ckpt.pt"
    path.write_bytes(torch_bytes(saved))
    cpu = llm_of(path)
    llm.model = load_model(cpu.checkpoint, llm.backend)
    np.testing.assert_allclose(logits_after(llm, ids), logits_after(cpu, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("recurrent", [False, True])
def test_text_is_that_of_the_cpu(recurrent: bool, tmp_path: Path, device: Device) -> None:
    """Token by token, past block_size, and as the sampler draws them."""
    expected = model_of(tmp_path, SMALL, recurrent).generate("Once", 40, seed=7)
    generation = on_device(tmp_path, SMALL, device, recurrent).generate("Once", 40, seed=7)
    assert "".join(generation) == "".join(expected)
    assert generation.tokens == expected.tokens
    assert len(set(generation.tokens)) > 10


def test_what_is_left_early_was_not_run(tmp_path: Path, device: Device) -> None:
    llm = on_device(tmp_path, SMALL, device)
    state = llm.model.new_state(OPTIONS)
    logits = llm.model.forward([5, 17, 3], state)
    sampler = llm.backend.sampler(SamplingParams(temperature=0, seed=0), 256)
    tokens = llm.model.decode(state, sampler, logits, 10)
    said = [next(tokens) for _ in range(4)]
    assert state.length == 3 + 3, "the last token is given, not run"
    tokens.close()  # type: ignore[attr-defined]
    more = llm.model.forward([9], state)
    expected = logits_after(llm, [5, 17, 3, *said[:3], 9])
    np.testing.assert_array_equal(llm.backend.to_host(more, 256), expected)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_recurrent_part_in_any_cut(n_layers: int, tmp_path: Path, device: Device) -> None:
    shape = MicroShape(48, n_layers, 3, 640, 256, bias=True)
    ids = ids_of(shape, 530)
    expected = model_of(tmp_path, shape, recurrent=True).logits(ids)
    llm = on_device(tmp_path, shape, device, recurrent=True)
    state, at = llm.model.new_state(OPTIONS), 0
    for n in (1, 1, 7, 8, 1, 16, 3):
        got = llm.backend.to_host(llm.model.forward(ids[at : at + n], state, n), 256)
        np.testing.assert_allclose(got, expected[at : at + n], rtol=0, atol=TOLERANCE)
        at += n
    saved = llm.model.save_state(state)
    again = llm.model.new_state(OPTIONS)
    llm.model.load_state(again, saved, at)
    for name, array in llm.model.save_state(again).items():
        np.testing.assert_array_equal(array, saved[name])
    for one in (state, again):
        got = llm.backend.to_host(llm.model.forward(ids[at : at + 2], one, 1), 256)
        np.testing.assert_allclose(got, expected[at + 1 : at + 2], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits_after(llm, ids, 20), expected[-20:], rtol=0, atol=TOLERANCE)


def test_damaged_weights_are_told_in_one_line(tmp_path: Path, device: Device) -> None:
    saved = micro_checkpoint(SMALL)
    saved["model"]["transformer.h.1.moe.fc.weight"][0, 0] = np.nan
    llm = on_device(tmp_path, SMALL, device)
    path = tmp_path / "damaged.pt"
    path.write_bytes(torch_bytes(saved))
    llm.model = load_model(llm_of(path).checkpoint, llm.backend)
    with pytest.raises(LlamaGPUError, match="not numbers"):
        "".join(llm.generate("Once", 3))


@needs_emulator
def test_heads_too_wide_for_the_kernels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 heads of 132 elements .* device='cpu'"):
        on_device(tmp_path, MicroShape(264, 1, 2, 4, 256, 1, 1, 2), EmulatedDevice())
