"""A call that is broken off in the middle (Ctrl-C) leaves the state that it began with: it can be made again."""

from __future__ import annotations

import numpy as np
import pytest

from llamagpu.backends.cuda.device import Device
from llamagpu.checkpoint import Checkpoint
from llamagpu.llm import LLM
from tests.models.test_rwkv_on_cuda import TEXT, on_device
from tests.rwkv_models import RANKS, random_rwkv


def check(llm: LLM, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a chunk of n tokens, broken off in its second layer, then again; the state is that of an undisturbed run."""
    state, plain = (llm.model.new_state(llm.state_options(1)) for _ in range(2))
    for one in (state, plain):
        llm.model.forward(TEXT[:5], one, 0)
    add_product, calls = llm.backend.add_product, []

    def broken_off(*args: object) -> object:
        calls.append(1)
        if len(calls) == 3:  # two a layer
            raise KeyboardInterrupt
        return add_product(*args)

    with monkeypatch.context() as patch:
        patch.setattr(llm.backend, "add_product", broken_off)
        with pytest.raises(KeyboardInterrupt):
            llm.model.forward(TEXT[5 : 5 + n], state, 0)
    assert state.length == 5
    for one in (state, plain):
        llm.model.forward(TEXT[5 : 5 + n], one, 0)
    saved, expected = llm.model.save_state(state), llm.model.save_state(plain)
    for name, array in expected.items():
        np.testing.assert_array_equal(saved[name], array)


@pytest.mark.parametrize("version", RANKS)
@pytest.mark.parametrize("n", [1, 8, 16])
def test_on_the_cpu(version: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(LLM(random_rwkv(version), "cpu"), n, monkeypatch)


@pytest.mark.parametrize("version", ["rwkv4", "rwkv7"])
@pytest.mark.parametrize("n", [1, 8, 16])
def test_on_the_cuda_backend(version: str, n: int, monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    check(on_device(random_rwkv(version), device), n, monkeypatch)


@pytest.mark.parametrize("kind", ["8 bits", "4 bits"])
def test_chunks_without_logits(kind: str, device: Device) -> None:
    """All chunks of a prompt but the last: also where the head is quantised."""
    checkpoint: Checkpoint = random_rwkv("rwkv7", kind)
    for llm in (LLM(checkpoint, "cpu"), on_device(checkpoint, device)):
        state = llm.model.new_state(llm.state_options(1))
        llm.model.forward(TEXT[:20], state, 0)
        logits = llm.backend.to_host(llm.model.forward(TEXT[20:24], state, 1), 256)
        np.testing.assert_allclose(logits[0], llm.logits(TEXT[:24])[-1], rtol=1e-3, atol=1e-3)
