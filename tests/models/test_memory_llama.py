"""The memory-attention model against its recurrence in float64, on the CPU and through the CUDA backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.backends.cuda.device import Device
from llamagpu.config import ModelConfig
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import native, open_checkpoint
from llamagpu.llm import LLM, load
from llamagpu.models import StateOptions
from llamagpu.models.memory_llama import MemoryLlama, MemoryState
from llamagpu.sampling import SamplingParams
from tests.emulated_device import EmulatedDevice
from tests.kernels.harness import needs_emulator
from tests.memory_model_files import MemoryShape, Recurrence, memory_model_bytes, memory_weights, rounded
from tests.models.reference_rounded import RoundedMatrix
from tests.models.test_llama_on_cuda import on_device
from tests.small_files import Floats, tokenizer_bin
from tests.test_faithful import rounded_v2

# Group 8 gives float32 on a GPU, group 16 kernels of 8 bits; chunks of up to 8 the fused kernels, longer ones the
# others. Last the seed of a model.
SHAPES = {
    "as many key heads": (MemoryShape(n_kv_heads=4), 8, 0),
    "grouped, untied": (MemoryShape(mem_len=7, tied=False), 8, 0),
    "a long chunk": (MemoryShape(mem_len=11), 8, 0),
    "one row": (MemoryShape(mem_len=1, n_layers=1), 8, 0),
    "8 bits": (MemoryShape(dim=32, hidden_dim=48, mem_len=6, tied=False), 16, 0),
    "8 bits, a long chunk": (MemoryShape(dim=32, hidden_dim=48, n_kv_heads=4, mem_len=11), 16, 2),
}
MODES = ["chunk", "token"]


class Model:
    """A file of a model and what it must say."""

    def __init__(self, folder: Path, shape: MemoryShape, group_size: int, seed: int = 0) -> None:
        weights = memory_weights(shape, seed)
        self.shape, self.weights = shape, rounded(weights, group_size)
        self.is_float32 = group_size < 16  # in the kernels
        self.path = folder / "memory.bin"
        self.path.write_bytes(memory_model_bytes(shape, weights, group_size))
        (folder / "tokenizer.bin").write_bytes(tokenizer_bin())
        self.ids = np.random.default_rng(3).integers(0, 300, 5 * shape.mem_len + 2).tolist()

    def expected(self, mode: str, n: int | None = None) -> tuple[Recurrence, Floats]:
        """The recurrence after n tokens, and the logits after each."""
        recurrence = Recurrence(self.shape, self.weights, mode == "token")
        return recurrence, np.array([recurrence.step(token) for token in self.ids[:n]], np.float32)

    def on(self, device: str | Device, mode: str) -> LLM:
        llm = load(self.path, "cpu") if isinstance(device, str) else on_device(self.path, device)
        if not isinstance(device, str):
            llm.model = MemoryLlama(llm.checkpoint, llm.backend)
        llm.memory_update = mode
        return llm


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return Model(tmp_path, *SHAPES[request.param])


def new(llm: LLM, kv_bits: int = 16) -> MemoryState:
    state = llm.model.new_state(StateOptions(0, kv_bits, memory_update=llm.memory_update))
    assert isinstance(state, MemoryState)
    return state


def read(llm: LLM, state: MemoryState, ids: list[int], n_logits: int = 1) -> Floats:
    return llm.backend.to_host(llm.model.forward(ids, state, n_logits), llm.config.vocab_size).copy()


def check(got: Any, expected: Any, model: Model, llm: LLM) -> None:
    """To 1e-4. Kernels of 8-bit weights take activations of 16 bits: there to 1e-4 of the largest number."""
    rounds = llm.backend.name == "cuda" and not model.is_float32
    largest = max(1.0, float(np.abs(expected).max(initial=0))) if rounds else 1.0
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * largest)


def check_state(llm: LLM, state: MemoryState, recurrence: Recurrence, model: Model) -> None:
    """Everything that the recurrence has at this place."""
    saved, m = llm.model.save_state(state), recurrence.shape.mem_len
    done = recurrence.pos or m  # rows of the memory that are of this chunk, or all of the one before
    filled = m + recurrence.pos
    check(saved["memory"][:, :done], recurrence.mem[:, :done], model, llm)
    check(saved["keys"], recurrence.by_head(recurrence.keys[:, :filled]), model, llm)
    check(saved["values"], recurrence.by_head(recurrence.values[:, :filled]), model, llm)


@pytest.mark.parametrize("mode", MODES)
def test_states_and_logits_over_five_chunks(model: Model, mode: str, device: Device) -> None:
    for where in ("cpu", device):
        llm = model.on(where, mode)
        state, recurrence = new(llm), Recurrence(model.shape, model.weights, mode == "token")
        check_state(llm, state, recurrence, model)
        for n, token in enumerate(model.ids, start=1):
            expected = recurrence.step(token)
            check(read(llm, state, [token])[0], expected, model, llm)
            if n % model.shape.mem_len in (0, 1, model.shape.mem_len - 1):
                check_state(llm, state, recurrence, model)
        assert (state.length, state.room) == (len(model.ids), None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 6, 13, 1000])
def test_a_prompt_of_any_cut(model: Model, mode: str, cut: int, device: Device) -> None:
    _, expected = model.expected(mode)
    for where in ("cpu", device):
        llm = model.on(where, mode)
        state, rows = new(llm), []
        for at in range(0, len(model.ids), cut):
            part = model.ids[at : at + cut]
            wanted = min(len(part), (at // cut) % 4 + 1)  # logits of all of a part, of some, of the last
            got = read(llm, state, part, wanted)
            assert got.shape == (wanted, 300)
            rows.append((at + len(part) - wanted, got))
        for first, got in rows:
            check(got, expected[first : first + len(got)], model, llm)
        check_state(llm, state, model.expected(mode)[0], model)


def test_all_logits_at_once(model: Model, device: Device) -> None:
    _, expected = model.expected("chunk")
    for where in ("cpu", device):
        llm = model.on(where, "chunk")
        check(llm.logits(model.ids), expected, model, llm)
        state = new(llm)
        assert llm.model.forward(model.ids, state, n_logits=0) is None
        check_state(llm, state, model.expected("chunk")[0], model)


def greedy(llm: LLM, state: MemoryState, prompt: list[int], n_tokens: int, take: int | None = None) -> list[int]:
    """n_tokens asked for, of which the first ``take`` are taken."""
    logits = llm.model.forward(prompt, state)
    sampler = llm.backend.sampler(SamplingParams(temperature=0, seed=0), llm.config.vocab_size)
    tokens = llm.model.decode(state, sampler, logits, n_tokens)
    return [next(tokens) for _ in range(n_tokens if take is None else take)]


def reference_greedy(model: Model, mode: str, prompt: list[int], n_tokens: int) -> list[int]:
    recurrence, said = Recurrence(model.shape, model.weights, mode == "token"), list[int]()
    for token in prompt:
        logits = recurrence.step(token)
    for _ in range(n_tokens):
        best = np.sort(logits)
        assert best[-1] - best[-2] > 2e-3, "no clear choice: another seed"
        said.append(int(logits.argmax()))
        logits = recurrence.step(said[-1])
    return said


# of models whose choices over three chunks are clear
SEEDS = {("a long chunk", "chunk"): 6, ("8 bits", "token"): 1}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SHAPES)
def test_greedy_text_over_more_than_three_chunks(name: str, mode: str, tmp_path: Path, device: Device) -> None:
    """Through captured graphs on the device: of tokens, and of tokens that end a chunk."""
    model = Model(tmp_path, *SHAPES[name][:2], seed=SEEDS.get((name, mode), 0))
    n_tokens, prompt = 3 * model.shape.mem_len + 5, [5, 17, 3]
    expected = reference_greedy(model, mode, prompt, n_tokens)
    assert len(set(expected)) > 5, "a model that says one thing shows nothing"
    for where in ("cpu", device):
        llm = model.on(where, mode)
        assert greedy(llm, new(llm), prompt, n_tokens) == expected


@pytest.mark.parametrize("mode", MODES)
def test_what_was_run_ahead_is_as_if_it_had_not_been(mode: str, tmp_path: Path, device: Device) -> None:
    """Tokens that are left at any place of a chunk, its end too, leave the state of the tokens before them."""
    model = Model(tmp_path, MemoryShape(mem_len=6), 8)
    for take in range(1, 15):
        llm = model.on(device, mode)
        state, recurrence = new(llm), Recurrence(model.shape, model.weights, mode == "token")
        said = greedy(llm, state, [5, 17, 3], 40, take)
        assert state.length == 3 + take - 1, "the last token is given, not run"
        for token in [5, 17, 3, *said[:-1]]:
            recurrence.step(token)
        other = model.ids[:7]
        expected = [recurrence.step(token) for token in other]
        check(read(llm, state, other, len(other)), expected, model, llm)
        check_state(llm, state, recurrence, model)


@needs_emulator
def test_two_graphs_and_steps_ahead_within_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tmp_path, MemoryShape(mem_len=8), 8)
    device = EmulatedDevice()
    llm = model.on(device, "chunk")
    calls: list[int] = []
    forward = llm.model.forward

    def counted(*args: Any, **rest: Any) -> Any:
        calls.append(1)
        return forward(*args, **rest)

    state = new(llm)
    monkeypatch.setattr(llm.model, "forward", counted)
    per_step, per_renewal = 1 + 6 * 2 + 1 + 2, 2 * 4
    before = device.n_launches
    assert len(greedy(llm, state, [5, 17, 3], 40)) == 40
    assert len(calls) == 1 + 2 + 2, "the prompt; each kind of step as it is, and captured"
    assert device.n_launches - before == per_step * 40 + per_renewal * (42 // 8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kv_bits", [16, 8])
def test_saved_and_loaded_at_any_place(kv_bits: int, mode: str, tmp_path: Path, device: Device) -> None:
    model = Model(tmp_path, MemoryShape(mem_len=4), 8)
    for where in ("cpu", device):
        llm = model.on(where, mode)
        for n in range(10):
            state = new(llm, kv_bits)
            for token in model.ids[:n]:
                llm.model.forward([token], state)
            arrays = {name: array.copy() for name, array in llm.model.save_state(state).items()}
            again = new(llm, kv_bits)
            read(llm, again, [7, 8, 9])  # a state that was used for something else
            llm.model.load_state(again, arrays, n)
            assert again.length == n
            for token in model.ids[n : n + 9]:
                np.testing.assert_array_equal(read(llm, again, [token]), read(llm, state, [token]))
            ends = [llm.model.save_state(s) for s in (state, again)]
            for name in ends[0]:
                np.testing.assert_array_equal(ends[0][name], ends[1][name], err_msg=name)


def test_a_state_goes_from_one_device_to_the_other(tmp_path: Path, device: Device) -> None:
    model = Model(tmp_path, MemoryShape(mem_len=4), 8)
    cpu, cuda = model.on("cpu", "chunk"), model.on(device, "chunk")
    state, other = new(cpu), new(cuda)
    read(cpu, state, model.ids[:10])
    cuda.model.load_state(other, cpu.model.save_state(state), 10)
    expected = read(cpu, state, model.ids[10:])
    check(read(cuda, other, model.ids[10:]), expected, model, cuda)


def test_a_memory_alone_begins_a_chunk(tmp_path: Path, device: Device) -> None:
    model = Model(tmp_path, MemoryShape(mem_len=4), 8)
    for where in ("cpu", device):
        llm = model.on(where, "chunk")
        state, again = new(llm), new(llm)
        read(llm, state, model.ids[:8])
        memory = {"memory": llm.model.save_state(state)["memory"]}
        llm.model.load_state(again, memory, 8)
        expected = read(llm, state, model.ids[8:])
        np.testing.assert_allclose(read(llm, again, model.ids[8:]), expected, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="holds arrays"):
            llm.model.load_state(again, memory, 9)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    llm = Model(tmp_path, MemoryShape(mem_len=4), 8).on("cpu", "chunk")
    state = new(llm)
    read(llm, state, [1, 2, 3, 4, 5])
    arrays = llm.model.save_state(state)
    for damaged, length in (({}, 5), ({**arrays, "memory": arrays["memory"][:1]}, 5), (arrays, 4), (arrays, 6)):
        with pytest.raises(ValueError, match="holds arrays"):
            llm.model.load_state(new(llm), damaged, length)
    llm.model.load_state(new(llm), arrays, 4 * 10**12 + 1)  # there is no end
    with pytest.raises(UsageError, match="chunk or token"):
        llm.model.new_state(StateOptions(0, 16, memory_update="sometimes"))


def test_text_past_all_positions(tmp_path: Path, device: Device) -> None:
    """The file says 8 positions, fewer than 2M: prompts and answers may be of any length."""
    model = Model(tmp_path, MemoryShape(mem_len=5), 8)
    texts = []
    for where in ("cpu", device):
        llm = model.on(where, "chunk")
        generation = llm.generate("the other one then " * 3, max_tokens=60, temperature=0.8, seed=11)
        texts.append("".join(generation))
        assert generation.stop_reason in ("max_tokens", "eos")
    assert texts[0] == texts[1]
    assert texts[0]


def test_rows_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """Memories and chunks longer than what goes through the layers at once."""
    monkeypatch.setattr("llamagpu.models.memory_llama.MOST_ROWS", 3)
    model = Model(tmp_path, MemoryShape(mem_len=7), 8)
    _, expected = model.expected("chunk")
    for where in ("cpu", device):
        llm = model.on(where, "chunk")
        check(read(llm, new(llm), model.ids, len(model.ids)), expected, model, llm)


def test_a_native_file_keeps_the_model(tmp_path: Path) -> None:
    model = Model(tmp_path, MemoryShape(mem_len=4), 8)
    opened = open_checkpoint(model.path)
    native.write(tmp_path / "native.bin", opened)
    again = open_checkpoint(tmp_path / "native.bin")
    assert again.config == opened.config
    assert set(again.tensors) == set(opened.tensors)
    llms = [LLM(checkpoint, "cpu") for checkpoint in (opened, again)]
    np.testing.assert_array_equal(llms[0].logits(model.ids), llms[1].logits(model.ids))


@pytest.mark.parametrize("mode", MODES)
def test_faithful_rounds_what_the_original_rounds(mode: str, tmp_path: Path) -> None:
    """Sums of whole numbers, in the renewal of the memory too; none was so near to a half that chance decides."""
    shape, seed = MemoryShape(n_layers=1, mem_len=4), 1
    model, weights = Model(tmp_path, shape, 8, seed), memory_weights(shape, seed)
    RoundedMatrix.closest = 0.5
    recurrence = Recurrence(shape, rounded_v2(weights, 8) | {"origin_mem": weights["origin_mem"]}, mode == "token")
    expected = np.array([recurrence.step(token) for token in model.ids[:10]])
    assert RoundedMatrix.closest > 5e-5
    faithful = load(model.path, "cpu", faithful=True, memory_update=mode)
    assert faithful.quirks.system == "llama2Rnn.c's runqm"
    np.testing.assert_allclose(faithful.logits(model.ids[:10]), expected, rtol=0, atol=1e-5)
    assert np.abs(load(model.path, "cpu", memory_update=mode).logits(model.ids[:10]) - expected).max() > 1e-2


def test_the_memory_is_used(tmp_path: Path) -> None:
    """Other tokens in the first chunk change what is said chunks later, though no key of theirs is left."""
    model = Model(tmp_path, MemoryShape(mem_len=4), 8)
    llm = model.on("cpu", "chunk")
    first, second = model.ids[:16], [*(token + 1 for token in model.ids[:4]), *model.ids[4:16]]
    difference = np.abs(llm.logits(first)[12:] - llm.logits(second)[12:]).max()
    assert difference > 1e-3


def test_settings_that_a_model_has_not(tmp_path: Path, small_model: Path) -> None:
    with pytest.raises(UsageError, match="memory_update must be chunk for this model"):
        load(small_model, "cpu", memory_update="token")
    model = Model(tmp_path, MemoryShape(mem_len=4), 8)
    with pytest.raises(UsageError, match="chunk or token"):
        load(model.path, "cpu", memory_update="never")
    assert load(model.path, "cpu", memory_update="token").memory_update == "token"
    with pytest.raises(UsageError, match="no end"):
        load(model.path, "cpu", context=5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mem_len": 0}, "mem_len"), ({"mem_len": 1 << 17}, "mem_len"), ({"mem_len": "4"}, "mem_len"),
        ({"architecture": "llama"}, "mem_len"), ({"head_dim": 8}, "head_dim"), ({"sliding_window": 4}, "head_dim"),
    ],
)  # fmt: skip
def test_configs_that_no_memory_model_has(change: dict[str, Any], field: str) -> None:
    good = ModelConfig("memory_llama", 16, 24, 2, 4, 2, 4, 300, 32, mem_len=4)
    assert ModelConfig.checked("x", good.to_dict()) == good
    with pytest.raises(ModelFormatError) as caught:
        ModelConfig.checked("x", {**good.to_dict(), **change})
    assert caught.value.field == field
    assert not replace(good, mem_len=0).endless
