"""MicroRWKV through the commands: what a user sees and is told."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from llamagpu.commands import run
from llamagpu.convert_command import convert
from llamagpu.errors import UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.inspect_commands import info
from llamagpu.llm import load
from llamagpu.models import micro_rwkv, micro_rwkv_recurrent
from llamagpu.quality_commands import compare, perplexity
from tests.micro_rwkv_files import MicroShape, micro_bytes
from tests.small_files import tokenizer_bin

SHAPE = MicroShape()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ckpt-500.pt"
    path.write_bytes(micro_bytes(SHAPE))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    return path


def test_a_plain_run_draws_as_its_script(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(path), "on the", device="cpu", max_tokens=12, seed=3)
    shown = capsys.readouterr()
    llm = load(path, "cpu")
    as_script: dict[str, Any] = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
    assert shown.out == "".join(llm.generate("on the", 12, seed=3, **as_script))
    assert shown.out == "".join(llm.generate("on the", 12, seed=3))
    others: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    assert shown.out != "".join(llm.generate("on the", 12, seed=3, **others))
    assert micro_rwkv.NOTE in shown.err
    run(str(path), "on the", device="cpu", max_tokens=12, seed=3, **others)
    assert capsys.readouterr().out == "".join(llm.generate("on the", 12, seed=3, **others))


def test_what_is_recurrent_says_that_it_is_not_the_model(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(path), "on the", device="cpu", max_tokens=12, seed=3, recurrent=True)
    shown = capsys.readouterr()
    assert shown.out == "".join(load(path, "cpu", recurrent=True).generate("on the", 12, seed=3))
    assert micro_rwkv_recurrent.NOTE in shown.err
    assert "approximation that is not the model" in shown.err
    assert micro_rwkv.NOTE not in shown.err
    with pytest.raises(UsageError, match="this is a llama"):
        run("demo", "on the", device="cpu", recurrent=True)


def test_info(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info(str(path))
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["architecture"] == "micro_rwkv"
    assert rows["experts"] == "3, of which the first 2 are run"
    assert rows["suggested"] == "--temperature 1, --top_k 0, --top_p 1, --min_p 0"
    assert "RoPE" not in rows
    assert "KV" not in rows
    assert rows["note"] == micro_rwkv.NOTE
    assert rows["a"].endswith("the last 32 tokens anew")


def test_convert(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.bin"
    convert(str(path), str(out))
    assert open_checkpoint(out).sampling == open_checkpoint(path).sampling
    for recurrent in (False, True):
        texts = ["".join(load(file, "cpu", recurrent=recurrent).generate("on", 8, seed=1)) for file in (path, out)]
        assert texts[0] == texts[1]
    with pytest.raises(UsageError, match="a micro_rwkv is not quantised"):
        convert(str(path), str(tmp_path / "q8.bin"), quantize="q8")
    with pytest.raises(UsageError, match="no micro_rwkv is written as a Hugging Face folder"):
        convert(str(path), str(tmp_path / "folder"), format="huggingface")


def test_perplexity_and_what_the_approximation_costs(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("on the other hand, then, " * 2)
    perplexity(str(path), str(text), device="cpu")
    shown = capsys.readouterr()
    assert "perplexity" in shown.out
    assert micro_rwkv.NOTE in shown.err
    compare(str(path), str(path), str(text), device="cpu")
    assert "KL divergence   0.00000" in capsys.readouterr().out
    compare(str(path), str(path), str(text), device="cpu", recurrent=True)
    shown = capsys.readouterr()
    assert "KL divergence   0.00000" not in shown.out
    assert micro_rwkv_recurrent.NOTE in shown.err


def test_gpt2s_tokenizer_beside_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many tokens as GPT-2 has, and 47 rows more, which are never drawn."""
    path = tmp_path / "ckpt-500.pt"
    path.write_bytes(micro_bytes(MicroShape(8, 1, 2, 4, 50304, 1, 1, 2)))
    tokens = [bytes([byte]) for byte in range(256)] + [b"%05d" % n for n in range(50000)]
    ranks = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    (tmp_path / "gpt2.tiktoken").write_bytes(b"".join(ranks))
    llm = load(path, "cpu")
    assert llm.tokenizer.vocab_size == llm.config.vocab_size == 50257
    generation = llm.generate("Once", 20, seed=1)
    "".join(generation)
    assert (generation.stop_reason, len(generation.tokens)) == ("max_tokens", 20)
    assert generation.prompt_tokens == llm.tokenizer.encode("Once")
    with pytest.raises(UsageError, match="the prompt is empty and this model has no start token"):
        run(str(path), "", device="cpu")
