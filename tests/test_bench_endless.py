"""bench --endless: what it counts and writes, that it keeps nothing. Never how long anything took."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import llamagpu
from llamagpu import bench_endless
from llamagpu.backends.cuda import CUDABackend
from llamagpu.backends.cuda.device import Device
from llamagpu.bench_endless import Sample, measure_endless, plot_endless, report_endless, text_endless
from llamagpu.errors import LlamaGPUError
from llamagpu.llm import LLM
from llamagpu.models.llama import Llama
from tests.test_cli import fails

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def llm(small_model: Path) -> LLM:
    return llamagpu.load(small_model, "cpu", window=12)


def test_each_mark_is_measured_once_and_all_tokens_run(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_endless, "MARKS", (20, 60, 195, 1000))
    states: list[Any] = []
    done: list[int] = []
    forward = Llama.forward

    def watched(self: Llama, tokens: Any, state: Any, n_logits: int = 1) -> Any:
        states[:] = [state]
        return forward(self, tokens, state, n_logits)

    monkeypatch.setattr(Llama, "forward", watched)
    samples = measure_endless(llm, 200, done.append)
    assert [sample.tokens for sample in samples] == [20, 60, 200], "a mark too near the end is left out"
    assert sum(done) == 200 + bench_endless.SHORTEST_SPAN + 1
    assert states[0].length == sum(done), "the start token, and all but the last, which is made but not run"
    for sample in samples:
        assert 0 < sample.p10_us <= sample.p50_us
        assert sample.cpu_us > 0
        assert sample.device_bytes is None


def test_on_the_cuda_backend(llm: LLM, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_endless, "MARKS", (20,))
    llm.backend = CUDABackend(device)
    llm.model = Llama(llm.checkpoint, llm.backend)
    first, last = measure_endless(llm, 60)
    assert first.device_bytes == last.device_bytes == device.memory_in_use()


def test_what_ends_is_refused(small_model: Path) -> None:
    with pytest.raises(LlamaGPUError, match="context ends: give it a --window"):
        measure_endless(llamagpu.load(small_model, "cpu"), 100)


def samples(*figures: tuple[float, int | None]) -> list[Sample]:
    return [
        Sample(tokens, us, us / 2, us * 2, n_bytes, None)
        for tokens, (us, n_bytes) in zip(itertools.accumulate([1000] * 9), figures, strict=False)
    ]


def test_the_verdict(llm: LLM) -> None:
    for found, times, memory in (
        (samples((100, 10**8), (300, 10**9), (104, 10**8 + 999_999)), True, True),
        (samples((100, 10**8), (106, 10**8 + 1_000_000)), False, False),
        (samples((100, None), (90, None)), True, None),
    ):
        report = report_endless("small", llm, found)
        assert set(report["flat"].values()) == {times}
        assert report["flat_memory"] is memory
        assert report["slower"]["p50_us"] == pytest.approx(found[-1].p50_us / 100 - 1)
        assert (report["window"], report["sinks"]) == (12, 4)
        text = text_endless(report)
        assert ("not flat" in text) == (not times)
        assert ("memory not known" in text) == (memory is None)
        pictures = ElementTree.fromstring(plot_endless(report)).findall(f"{SVG}svg")
        assert len(pictures) == (1 if memory is None else 2)


def test_command(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fire", reason="fire is not installed")
    from llamagpu.cli import run_command

    out, picture = tmp_path / "endless.json", tmp_path / "endless.svg"
    arguments = ["--endless", "--tokens", "100", "--window", "9", "--sinks", "2", "--device", "cpu"]
    assert run_command(["bench", str(small_model), *arguments, "--json", str(out), "--plot", str(picture)]) == 0
    report = json.loads(out.read_text())
    assert (report["window"], report["sinks"], report["samples"][0]["tokens"]) == (9, 2, 100)
    assert "after tokens" in capsys.readouterr().out
    assert ElementTree.fromstring(picture.read_text()).findall(f"{SVG}svg")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["bench", "--window", "5"], "--window and --sinks are for --endless"),
        (["bench", "--endless", "--shape", "tiny"], "--shape does not go with --endless"),
        (["bench", "--endless", "--window", "0"], "window must be a whole number from 1, not 0"),
        (["bench", "--endless", "--window", "510"], "the model was trained for 512: give a smaller --window"),
        (["run", "demo", "a", "--window", "0"], "window must be a whole number from 1, not 0"),
        (["run", "demo", "a", "--window", "-3"], "window must be a whole number from 1, not -3"),
        (["run", "demo", "a", "--window", "5", "--sinks", "-1"], "sinks must be a whole number from 0, not -1"),
        (["run", "demo", "a", "--sinks", "4"], "--sinks is for --window"),
        (["run", "demo", "a", "--window", "510"], "510 and 4 sinks are 514 positions"),
        (["run", "demo", "a", "--window", "50", "--kv_bits", "8"], "--kv_bits 8 does not go with --window"),
        (["run", "demo", "a", "--window", "50", "--context", "80"], "--context does not go with --window"),
        (["perplexity", "demo", "TEXT", "--tokens", "5"], "--tokens is for --window"),
        (["perplexity", "demo", "TEXT", "--window", "5", "--stride", "5"], "--stride does not go with --window"),
        (["perplexity", "demo", "TEXT", "--window", "5", "--documents"], "--documents does not go with --window"),
        (["perplexity", "demo", "TEXT", "--window", "5", "--tokens", "0"], "tokens must be a whole number from 1"),
    ],
    ids=str,
)
def test_wrong_flags_are_one_line(arguments: list[str], problem: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a dog")
    assert problem in fails(*(str(text) if word == "TEXT" else word for word in arguments), status=2)
