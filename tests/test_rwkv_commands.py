"""RWKVs as a user has them: converted, quantised, described, judged, remembered; and what does not go with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import native, open_checkpoint
from llamagpu.generation import Answer
from llamagpu.llm import LLM
from llamagpu.memory import Memory
from llamagpu.model_info import rows_of
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.quantize import Recipe, quantised
from llamagpu.rwkv_shapes import THIN
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.references.rwkv_reference import VERSIONS, random_weights
from tests.rwkv_files import ggmf_bytes, pth_bytes
from tests.test_cli import fails
from tests.test_cli import llamagpu as command

GREEDY, WARM = SamplingParams(temperature=0), SamplingParams(temperature=1.5, seed=4)
IDS = [5, 0, 69, 3, 3, 41, 17, 8, 60, 22]
TEXT = "so the state goes on and on, " * 8
CPU = ("--device", "cpu")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def model(version: int, tmp_path: Path) -> Path:
    """A model of bytes, its tokenizer inside."""
    path = tmp_path / f"rwkv{version}.bin"
    path.write_bytes(ggmf_bytes(random_weights(version, dim=64, hidden=128, head_dim=16, rank=8, vocab=256)))
    return path


@pytest.fixture
def llm(model: Path) -> LLM:
    return LLM(open_checkpoint(model), "cpu")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_convert_keeps_every_bit(version: int, dtype: Any, tmp_path: Path) -> None:
    source, out = tmp_path / "source.pth", tmp_path / "model.bin"
    source.write_bytes(pth_bytes(random_weights(version), dtype))
    native.write(out, open_checkpoint(source))
    first, second = LLM(open_checkpoint(source), "cpu"), LLM(open_checkpoint(out), "cpu")
    assert second.config == first.config
    assert (second.checkpoint.stop_tokens, second.checkpoint.format) == ((0,), "llamagpu model.bin")
    np.testing.assert_array_equal(second.logits(IDS), first.logits(IDS))


def test_quantised_models_are_near_the_floats(version: int, model: Path, tmp_path: Path) -> None:
    """64 normal numbers span 5 deviations: a step of 8 bits is 5/255 of one, at most half of which is rounded off. Each
    matrix in a row is off by no more than that, and all of them by no more than the sum."""
    whole = open_checkpoint(model)
    expected = LLM(whole, "cpu").logits(IDS)
    for bits, group_size in ((8, 64), (4, 16)):
        path = tmp_path / f"q{bits}.bin"
        native.write(path, quantised(whole, Recipe(8 if bits == 8 else 4, group_size, 8)))
        small = open_checkpoint(path)
        for name, tensor in small.tensors.items():
            if isinstance(tensor, np.ndarray):
                assert len(tensor.shape) == 1 or THIN.fullmatch(name), name
                assert tensor.dtype == (np.float32 if len(tensor.shape) == 1 else np.float16), name
            else:
                assert isinstance(tensor, AffineQuant), name
                assert tensor.bits == (8 if "embeddings" in name or name == "output.weight" else bits)
        logits = LLM(small, "cpu").logits(IDS)
        error = np.sqrt(((logits - expected) ** 2).mean() / (expected**2).mean())
        in_a_row = 2 + 4 * whole.config.n_layers  # embedding and head; key, output, key, value
        assert np.isfinite(logits).all()
        assert bits == 4 or error < in_a_row * 5 / 255 / 2


@pytest.mark.parametrize("version", [5], indirect=True)
def test_convert_with_flags(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "q4.bin"
    result = command("convert", model, out, "--quantize", "q4", "--group_size", "32", "--head_bits", "16")
    assert result.returncode == 0, result.stderr
    small = open_checkpoint(out)
    head = small.tensors["output.weight"]
    assert isinstance(head, np.ndarray)
    assert head.dtype == np.float16
    assert small.tokenizer is not None
    assert small.tokenizer.kind == "bytes"
    assert command("run", out, "so", *CPU, "--max_tokens", "4").returncode == 0
    assert "already quantised" in fails("convert", out, tmp_path / "again.bin", "--quantize", "q8")


@pytest.mark.parametrize("version", [4, 7], indirect=True)
def test_what_does_not_go_with_an_rwkv_is_said(model: Path, version: int, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT)
    gptq = fails("convert", model, tmp_path / "o.bin", "--quantize", "gptq", "--calibration", text)
    assert f"this is an rwkv{version}: q4 and q8 need no text" in gptq
    assert f"no rwkv{version} is written as a Hugging Face folder" in fails(
        "convert", model, tmp_path / "o", "--format", "huggingface"
    )
    for flags, problem in (
        (("--context", "64"), "leave out --context"),
        (("--window", "64"), f"rwkv{version} has a memory of its own"),
        (("--kv_bits", "8"), "keeps no keys and values: leave out --kv_bits"),
        (("--memory_update", "token"), "memory_update must be chunk"),
        (("--session", str(tmp_path / "m"), "--session_format", "llama2rnn"), "leave out --session_format"),
    ):
        assert problem in fails("run", model, "so", *CPU, *flags)
    assert "leave out --context" in fails("info", model, "--context", "64")


def test_info(version: int, model: Path) -> None:
    config = open_checkpoint(model).config
    rows = dict(rows_of(open_checkpoint(model), "bytes", config.max_seq_len))
    state = {4: 3 * (2 + 3) * 64, 5: 3 * (2 * 64 + 4 * 16 * 16)}
    assert rows["architecture"] == f"rwkv{version}"
    assert rows["positions"] == "any number: texts have no end"
    assert rows["state"].startswith(f"{4 * state[min(version, 5)] / 1024:.1f} KiB of a text of any length")
    assert rows.get("heads") == (None if version == 4 else "4 of 16")
    assert rows.get("ranks") == {6: "mixes 8, decay 10", 7: "decay 8, a 9, v 10, gate 13"}.get(version)
    assert rows["a token reads"].endswith("of weights, and the state, which it writes anew")
    assert not rows.keys() & {"KV cache", "RoPE", "memory rows", "experts"}
    assert not config.to_dict().keys() & {"n_experts", "linear_bias"}


def test_bytes_and_bits_of_a_16_bit_file(version: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    weights = random_weights(version)
    path.write_bytes(pth_bytes(weights, np.float16))
    checkpoint = open_checkpoint(path)
    unused = {f"blocks.0.att.v{i}" for i in range(3)}
    used = {name: tensor for name, tensor in weights.items() if name not in unused}
    of_heads = ("time_decay", "time_faaaa", "r_k")
    vectors = sum(t.size for name, t in used.items() if t.squeeze().ndim == 1 or name.endswith(of_heads))
    assert checkpoint.n_parameters == sum(tensor.size for tensor in used.values())
    n_bytes = 2 * (checkpoint.n_parameters - vectors) + 4 * vectors
    assert checkpoint.nbytes == n_bytes
    rows = dict(rows_of(checkpoint, "none", 1))
    assert rows["bits"].startswith(f"{8 * n_bytes / checkpoint.n_parameters:.2f} per parameter")


@pytest.mark.parametrize("version", [6], indirect=True)
def test_perplexity_and_compare(model: Path, tmp_path: Path) -> None:
    text, report, out = tmp_path / "text", tmp_path / "report.json", tmp_path / "q8.bin"
    text.write_text(TEXT)
    judged = command("perplexity", model, text, *CPU, "--context", "32", "--json", report)
    assert judged.returncode == 0, judged.stderr
    assert 1 < json.loads(report.read_text())["perplexity"] < 1e6
    assert command("convert", model, out, "--quantize", "q8", "--group_size", "64").returncode == 0
    compared = command("compare", model, out, text, *CPU, "--context", "32", "--json", report)
    assert compared.returncode == 0, compared.stderr
    assert 0 <= json.loads(report.read_text())["kl"] < 0.1


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_resumed_as_if_nothing_had_happened(params: SamplingParams, model: Path, llm: LLM, tmp_path: Path) -> None:
    def begin() -> Session:
        session = Session(llm)
        session.add(llm.tokenizer.encode("so the state"))
        return session

    whole = begin()
    "".join(Answer(whole, 40, params))
    memory = Memory(str(tmp_path / "a"))
    memory.save(begin())
    for n in (1, 30, 9):
        session, chat = memory.load(LLM(open_checkpoint(model), "cpu"))
        "".join(Answer(session, n, params))
        memory.save(session, chat)
    again, _ = memory.load(llm)
    assert (again.tokens, again.n_drawn) == (whole.tokens, 40)
    for name, array in llm.model.save_state(again.state).items():
        np.testing.assert_array_equal(array, llm.model.save_state(whole.state)[name])


@pytest.mark.parametrize("version", [7], indirect=True)
def test_memory_of_run_and_of_chat(model: Path, tmp_path: Path) -> None:
    path, chat = tmp_path / "text.memory", tmp_path / "chat.memory"
    warm = (*CPU, "--temperature", "1.5", "--seed", "9")
    whole = command("run", model, "so the", *warm, "--max_tokens", "20").stdout
    first = command("run", model, "so the", *warm, "--max_tokens", "8", "--session", path)
    second = command("run", model, *CPU, "--temperature", "1.5", "--max_tokens", "12", "--session", path)
    assert b"went on from" in second.stderr
    if b"\xef\xbf\xbd" not in whole:  # bytes that are no text are shown otherwise where an answer ends within them
        assert first.stdout + second.stdout == whole
    for _ in range(2):
        talked = command(
            "chat", model, *CPU, "--template", "plain", "--max_tokens", "6", "--session", chat, stdin=b"a\n"
        )
        assert talked.returncode == 0, talked.stderr


def test_memory_of_another_model_is_refused(version: int, llm: LLM, tmp_path: Path) -> None:
    memory, other = Memory(str(tmp_path / "a")), tmp_path / "other.bin"
    session = Session(llm)
    session.add(IDS)
    session.read(512)
    memory.save(session)
    other.write_bytes(ggmf_bytes(random_weights(version, dim=64, hidden=128, head_dim=16, rank=8, vocab=256, seed=1)))
    with pytest.raises(ModelFormatError):
        Memory(str(tmp_path / "a")).load(LLM(open_checkpoint(other), "cpu"))


def test_a_stop_string_stays_in_the_state(llm: LLM) -> None:
    """It is noticed once it is whole, when all but its last token have gone through the state, which cannot go back."""
    session = Session(llm)
    session.add(IDS)
    made: list[int] = []
    answer = Answer(session, 30, WARM)
    text = "".join(answer)
    stop = text[8:11]
    session = Session(llm)
    session.add(IDS)
    stopped = Answer(session, 30, WARM, [stop])
    assert "".join(stopped) == text[: text.index(stop)]
    assert stopped.stop_reason == "stop"
    made = session.tokens
    assert made == IDS + stopped.tokens
    assert not session.state.rewindable
    assert session.n_run == len(made) - 1
    fresh = Session(llm)
    fresh.add(made)
    expected = llm.backend.to_host(fresh.logits(512, lambda n: None, 1), 256)[-1]
    found = llm.backend.to_host(session.logits(512, lambda n: None, 1), 256)[-1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_after_the_end_of_a_text_something_must_be_said(llm: LLM) -> None:
    session = Session(llm)
    session.add(IDS)
    answer = Answer(session, 30, WARM, end_ids=range(100, 256))
    "".join(answer)
    assert (answer.stop_reason, session.pending) == ("eos", [])
    with pytest.raises(UsageError, match="say something for it to go on from"):
        "".join(Answer(session, 3, WARM))
    session.add([7])
    "".join(Answer(session, 3, WARM))
    assert session.length == len(IDS) + len(answer.tokens) + 4


def test_a_text_longer_than_what_it_was_trained_with(llm: LLM) -> None:
    """There is no end: only the sizes of chunks are bounded."""
    few = replace(llm.checkpoint, config=replace(llm.config, max_seq_len=8))
    short = LLM(few, "cpu")
    assert isinstance(few.tensors["output.weight"], np.ndarray | Deferred)
    np.testing.assert_array_equal(short.logits(IDS * 60), llm.logits(IDS * 60))
    assert len("".join(short.generate("so", max_tokens=30, temperature=0)).encode()) >= 30
