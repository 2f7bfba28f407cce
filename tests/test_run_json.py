"""run --json: one object on stdout, however the text ends."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu.logprobs import Candidate
from llamagpu.run_json import finite
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes
from tests.test_cli import COMMAND, fails
from tests.test_cli import llamagpu as command

KEYS = ["text", "tokens", "stop_reason", "logprobs", "timings", "model", "device", "seed"]
GREEDY = ("--temperature", "0", "--device", "cpu", "--json")


def run(*arguments: str | Path) -> dict[str, Any]:
    result = command("run", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(b"\n") == 1
    found: dict[str, Any] = json.loads(result.stdout)
    assert list(found) == KEYS
    return found


def test_one_object_with_all_that_is_known(small_model: Path) -> None:
    expected = llamagpu.load(small_model, "cpu").generate("on the", 12, temperature=0, logprobs=2)
    found = run(small_model, "on the", *GREEDY, "--max_tokens", "12", "--logprobs", "2", "--seed", "7")
    assert found["text"] == expected.text
    assert found["tokens"] == expected.tokens
    assert found["stop_reason"] == "max_tokens"
    assert found["logprobs"] == expected.logprobs
    assert (found["model"], found["device"], found["seed"]) == (str(small_model), "cpu", 7)
    timings = found["timings"]
    assert (timings["prompt_tokens"], timings["decode_tokens"]) == (3, 11)
    assert 0 < timings["prompt_seconds"] < timings["first_token_seconds"]
    assert timings["decode_tokens_per_second"] == pytest.approx(11 / timings["decode_seconds"])


def test_the_seed_gives_the_same_tokens_again(small_model: Path) -> None:
    first = run(small_model, "a", "--device", "cpu", "--json", "--max_tokens", "9")
    again = run(small_model, "a", "--device", "cpu", "--json", "--max_tokens", "9", "--seed", str(first["seed"]))
    assert again["tokens"] == first["tokens"]
    assert first["logprobs"] is None


def test_the_context_a_stop_text_and_the_models_end(small_model: Path, tmp_path: Path) -> None:
    found = run(small_model, "a", *GREEDY, "--max_tokens", "1000")
    assert found["stop_reason"] == "context"
    stop = found["text"][4:7]
    stopped = run(small_model, "a", *GREEDY, "--stop", stop)
    assert stopped["stop_reason"] == "stop"
    assert stopped["text"] == found["text"][: found["text"].index(stop)]
    shape = Shape(tied=False)
    weights = random_weights(shape)
    weights["wo"][:] = weights["w2"][:] = weights["wcls"][:] = 0
    weights["wcls"][270] = 10 * weights["tok_emb"][1]  # after BOS comes " the", and then the end
    weights["wcls"][2] = 10 * weights["tok_emb"][270]
    (tmp_path / "ends.bin").write_bytes(v0_bytes(shape, weights))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    ended = run(tmp_path / "ends.bin", "", *GREEDY, "--logprobs", "0")
    assert (ended["text"], ended["tokens"], ended["stop_reason"]) == ("the", [270], "eos")
    assert [row["id"] for row in ended["logprobs"]] == [270]


def test_interrupted_it_is_unfinished() -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "demo", "--json", "--device", "cpu", "--max_tokens", "1000000000", "--ignore_eos",
         "--window", "64", "--temperature", "0", "--logprobs", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    while "running on" not in process.stderr.readline():
        pass
    try:
        process.communicate(timeout=2)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    found = json.loads(out)
    assert found["stop_reason"] == "unfinished"
    assert len(found["tokens"]) == len(found["logprobs"])
    llm = llamagpu.load("demo", "cpu")
    ids = llm.encode_prompt("Once upon a time") + found["tokens"]
    assert llm.tokenizer.decode(ids) == "Once upon a time" + found["text"]


def test_a_text_that_goes_on_has_them_too(small_model: Path, tmp_path: Path) -> None:
    whole = run(small_model, "on the", *GREEDY, "--max_tokens", "12", "--logprobs", "1")
    kept = tmp_path / "kept"
    first = run(small_model, "on the", *GREEDY, "--max_tokens", "5", "--logprobs", "1", "--memory", kept)
    then = run(small_model, *GREEDY, "--max_tokens", "7", "--logprobs", "1", "--memory", kept)
    assert first["tokens"] + then["tokens"] == whole["tokens"]
    for half, rows in ((first, whole["logprobs"][:5]), (then, whole["logprobs"][5:])):
        np.testing.assert_allclose([row["logprob"] for row in half["logprobs"]], [row["logprob"] for row in rows])


def test_a_token_that_cannot_come_is_null() -> None:
    other: Candidate = {"id": 2, "token": "b", "logprob": -math.inf}
    assert finite([{"id": 1, "token": "a", "logprob": 0.0, "top": [other]}]) == [
        {"id": 1, "token": "a", "logprob": 0.0, "top": [{"id": 2, "token": "b", "logprob": None}]}
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--logprobs", "2"], "--logprobs is shown with --json: give both"),
        (["--json", "--echo"], "--echo does not go with --json"),
        (["--json", "--logprobs", "301"], "logprobs must be a whole number from 0 to 300, not 301"),
        (["--json", "--logprobs", "many"], "--logprobs must be a whole number, not 'many'"),
    ],
)
def test_wrong_flags_are_one_line(arguments: list[str], words: str, small_model: Path) -> None:
    assert words in fails("run", small_model, "a", *arguments, status=2)
