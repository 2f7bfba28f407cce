"""Perplexity and comparison: windows, numbers against plain definitions, the known figure of stories260K."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llamagpu
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.llm import LLM
from llamagpu.perplexity import Window, compare, score, stream, windows
from tests.small_files import Shape, random_weights, v0_bytes
from tests.test_cli import fails
from tests.test_cli import llamagpu as command

TEXT = "the on ab the e a\nn o the" * 6


@pytest.fixture
def llm(small_model: Path) -> LLM:
    return llamagpu.load(small_model, device="cpu")


@pytest.mark.parametrize(("context", "stride"), [(32, 16), (8, 1), (8, 7), (5, 3), (2, 1), (32, 31)])
def test_every_token_is_scored_once_with_what_is_before_it(context: int, stride: int, llm: LLM) -> None:
    ids = llm.tokenizer.encode(TEXT, add_bos=False)
    scored: list[int] = []
    for window in windows(llm.tokenizer, TEXT, context, stride):
        assert len(window.ids) <= context
        assert window.ids[0] == llm.tokenizer.bos_id
        at = len(scored) - (window.first - 1)
        assert window.ids[1:] == ids[at : at + len(window.ids) - 1], "a window is the start token and a piece of text"
        assert at == 0 or window.first - 1 >= context - 1 - stride, "little before the first that is scored"
        scored += window.ids[window.first :]
    assert scored == ids


def test_documents_and_limits(llm: LLM) -> None:
    text = "the a\n\non\nthe\n\n\nab\n"
    found = windows(llm.tokenizer, text, 32, 16, documents=True)
    parts = ["the a\n\non", "the\n\n\nab"]
    assert [window.ids for window in found] == [llm.tokenizer.encode(part) for part in parts]
    assert [window.first for window in found] == [1, 1]
    assert len(windows(llm.tokenizer, text, 3, 1, documents=True, limit=1)[0].ids) == 3
    assert len(windows(llm.tokenizer, TEXT, 8, 4, limit=3)) == 3


def test_what_cannot_be_cut_is_refused(llm: LLM) -> None:
    for context, stride in ((1, 1), (8, 8), (8, 0)):
        with pytest.raises(UsageError, match="must be"):
            windows(llm.tokenizer, TEXT, context, stride)
    with pytest.raises(UsageError, match="too short"):
        windows(llm.tokenizer, "\n", 8, 4, documents=True)


def plain_log_probabilities(llm: LLM, ids: list[int]) -> list[list[float]]:
    """After each token, by the definition."""
    rows = []
    for row in llm.logits(ids).astype(np.float64):
        total = math.fsum(math.exp(x) for x in row)
        rows.append([float(x) - math.log(total) for x in row])
    return rows


def test_score_is_the_mean_of_minus_log_probability(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamagpu.llm.LOGITS_AT_ONCE", 300 * 3)  # three rows at a time
    parts = windows(llm.tokenizer, TEXT, 16, 5)
    values = []
    for window in parts:
        rows = plain_log_probabilities(llm, window.ids)
        values += [-rows[i - 1][window.ids[i]] for i in range(window.first, len(window.ids))]
    told: list[int] = []
    found = score(llm, parts, told.append)
    assert found.n_scored == len(values) == len(llm.tokenizer.encode(TEXT, add_bos=False))
    assert sum(told) == found.n_read == sum(len(window.ids) for window in parts)
    assert found.nll == pytest.approx(math.fsum(values) / len(values), abs=1e-6)
    assert found.nll_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.nll))


def test_compare_is_by_the_definition(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(v0_bytes(Shape(), random_weights(Shape(), seed=5)))
    other = llamagpu.load(path, device="cpu", tokenizer=tmp_path / "tokenizer.bin")
    parts = windows(llm.tokenizer, TEXT, 16, 8)
    kl, same = [], []
    for window in parts:
        rows_a, rows_b = (plain_log_probabilities(model, window.ids) for model in (llm, other))
        for i in range(window.first - 1, len(window.ids) - 1):
            kl.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(rows_a[i], rows_b[i], strict=True)))
            same.append(np.argmax(rows_a[i]) == np.argmax(rows_b[i]))
    found = compare(llm, other, parts)
    assert found.kl == pytest.approx(np.mean(kl), abs=1e-6)
    assert found.kl_99 == pytest.approx(np.quantile(kl, 0.99), abs=1e-6)
    assert found.same_top == np.mean(same)
    assert (found.a.nll, found.b.nll) == pytest.approx((score(llm, parts).nll, score(other, parts).nll))
    itself = compare(llm, llm, parts)
    assert (itself.kl, itself.same_top) == (0, 1)


def test_models_of_different_vocabularies_and_damaged_ones(llm: LLM, tmp_path: Path) -> None:
    shape = Shape(vocab_size=310)
    (tmp_path / "other.bin").write_bytes(v0_bytes(shape, random_weights(shape)))
    with pytest.raises(UsageError, match="300 and 310 tokens"):
        compare(llm, llamagpu.load(tmp_path / "other.bin", device="cpu"), [Window([1, 2], 1)])
    norm = np.full(16, np.nan, np.float32)
    damaged = replace(llm.checkpoint, tensors={**llm.checkpoint.tensors, "norm.weight": norm})
    with pytest.raises(LlamaGPUError, match="not numbers"):
        score(LLM(damaged, "cpu"), [Window([1, 2], 1)])


def test_stories260k(data: Path) -> None:
    """The figure that an independent program found: 20 stories of 6449 tokens."""
    llm = llamagpu.load(data / "llama2c" / "stories260K.bin", device="cpu", tokenizer=data / "llama2c" / "tok512.bin")
    text = (data / "text" / "tinystories-sample.txt").read_text()
    found = score(llm, windows(llm.tokenizer, text, 512, 256, documents=True, limit=20))
    assert found.n_scored == 6449
    assert found.nll == pytest.approx(1.33483, abs=1e-4)


def test_the_commands(small_model: Path, tmp_path: Path) -> None:
    text, report = tmp_path / "text.txt", tmp_path / "report.json"
    text.write_text(TEXT)
    result = command("perplexity", small_model, text, "--context", "16", "--json", report)
    rows = [line.split(maxsplit=1)[0] for line in result.stdout.decode().splitlines()]
    assert rows == ["nats", "perplexity", "tokens"]
    assert b"tok/s" in result.stderr
    assert json.loads(report.read_text())["n_scored"] == len(llamagpu.load(small_model).tokenizer.encode(TEXT)) - 1
    out = command("compare", small_model, small_model, text, "--json", report).stdout.decode()
    assert "same top token  100.00%" in out
    assert json.loads(report.read_text())["kl"] == 0


def test_wrong_input_is_one_line(small_model: Path, tmp_path: Path) -> None:
    text, latin = tmp_path / "text.txt", tmp_path / "latin.txt"
    text.write_text(TEXT)
    latin.write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    assert "No such file" in fails("perplexity", small_model, tmp_path / "none.txt")
    assert "is no UTF-8 text (byte 3)" in fails("perplexity", small_model, latin)
    assert "is empty" in fails("compare", small_model, small_model, tmp_path / "empty.txt")
    assert "context must be" in fails("perplexity", small_model, text, "--context", "33")
    assert "stride must be" in fails("perplexity", small_model, text, "--stride", "32")
    assert "--stride is for windows" in fails("perplexity", small_model, text, "--stride", "3", "--documents")
    assert "kv_bits must be 8 or 16" in fails("perplexity", small_model, text, "--kv_bits", "4")
    assert "is a folder" in fails("perplexity", small_model, text, "--json", tmp_path)


def test_a_text_without_end_is_one_stream(small_model: Path, tmp_path: Path) -> None:
    """Every token once, behind the start token; the command says the same as the definition."""
    llm = llamagpu.load(small_model, device="cpu", window=9, sinks=2)
    text = TEXT * 2
    ids = llm.tokenizer.encode(text, add_bos=True)
    assert len(ids) > 64, "longer than the context of 32"
    assert stream(llm.tokenizer, text) == Window(ids, 1)
    assert stream(llm.tokenizer, text, 40) == Window(ids[:41], 1)
    rows = plain_log_probabilities(llm, ids)
    expected = -np.mean([row[token] for row, token in zip(rows, ids[1:], strict=False)])
    read: list[int] = []
    scored = score(llm, [stream(llm.tokenizer, text)], read.append)
    assert scored.nll == pytest.approx(expected, abs=1e-6)
    assert (scored.n_scored, scored.n_read, sum(read)) == (len(ids) - 1, len(ids), len(ids))
    (tmp_path / "text.txt").write_text(text)
    arguments = ("--window", "9", "--sinks", "2", "--device", "cpu", "--json", tmp_path / "out.json")
    result = command("perplexity", small_model, tmp_path / "text.txt", *arguments)
    assert "scored in one stream" in result.stdout.decode()
    assert json.loads((tmp_path / "out.json").read_text())["nll"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UsageError, match="too short"):
        stream(llm.tokenizer, "")
