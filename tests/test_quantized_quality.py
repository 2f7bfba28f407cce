"""What quantising costs, on models that were trained: GPTQ is nearer to the model than round-to-nearest."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.calibrate import Sequences, calibration_sequences
from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.formats import open_checkpoint
from llamagpu.llm import DEMO, LLM, find_tokenizer, model_path
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.quantize import Recipe, quantised

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from demo_stories import write_story

CALIBRATION_TOKENS = 4096


def plain(tensor: Tensor) -> NDArray[np.float32]:
    """What a weight means, in float32: texts are read a good deal faster so."""
    made = tensor.materialize() if isinstance(tensor, Deferred) else tensor
    if not isinstance(made, AffineQuant):
        return np.asarray(made, np.float32)
    return made.dequantize()[:, np.argsort(made.perm) if made.perm is not None else slice(None)]


class Judge:
    """A model, texts to learn from, others to be judged on."""

    def __init__(self, source: Checkpoint, tokenizer: Path | None, text: str, others: list[str]) -> None:
        opened = find_tokenizer(source, tokenizer)[1]
        self.source = source
        self.sequences: Sequences = calibration_sequences(text, opened, source.config, CALIBRATION_TOKENS)
        self.texts = [opened.encode(other)[: source.config.max_seq_len] for other in others]
        self.expected = self.log_probabilities(source)

    def log_probabilities(self, checkpoint: Checkpoint) -> list[NDArray[np.float64]]:
        llm = LLM(replace(checkpoint, tensors={name: plain(t) for name, t in checkpoint.tensors.items()}), "cpu")
        all_logits = [llm.logits(ids).astype(np.float64) for ids in self.texts]
        shifted = [logits - logits.max(axis=1, keepdims=True) for logits in all_logits]
        return [logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) for logits in shifted]

    def kl(self, recipe: Recipe) -> NDArray[np.float64]:
        """KL(model || quantised) in nats at every position, smallest first."""
        found = self.log_probabilities(quantised(self.source, recipe))
        parts = [(np.exp(p) * (p - q)).sum(axis=1) for p, q in zip(self.expected, found, strict=True)]
        return np.sort(np.concatenate(parts))

    def perplexity(self, log_probabilities: list[NDArray[np.float64]]) -> float:
        parts = [p[np.arange(len(ids) - 1), ids[1:]] for p, ids in zip(log_probabilities, self.texts, strict=True)]
        return float(np.exp(-np.concatenate(parts).mean()))


@pytest.fixture(scope="module")
def stories260k(data: Path) -> Judge:
    text = (data / "text" / "tinystories-sample.txt").read_text()
    half = len(text) // 2
    others = [text[half + 1500 * i : half + 1500 * (i + 1)] for i in range(6)]
    folder = data / "llama2c"
    return Judge(open_checkpoint(folder / "stories260K.bin"), folder / "tok512.bin", text[:half], others)


@pytest.fixture(scope="module")
def demo() -> Judge:
    def stories(seed: int, n: int) -> list[str]:
        rng = random.Random(seed)
        return [write_story(rng).text for _ in range(n)]

    return Judge(open_checkpoint(model_path(DEMO)), None, "\n".join(stories(1, 30)), stories(2, 16))


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gptq_beats_round_to_nearest(group_size: int, stories260k: Judge) -> None:
    nearest = stories260k.kl(Recipe(4, group_size, 8)).mean()
    assert stories260k.kl(Recipe(4, group_size, 8, stories260k.sequences)).mean() < nearest
    if group_size == 64:
        assert stories260k.kl(Recipe(4, group_size, 8, stories260k.sequences, act_order=True)).mean() < nearest


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gptq_beats_round_to_nearest_on_the_built_in_model(group_size: int, demo: Judge) -> None:
    """That model is sure of nearly every token of its stories: of 11,000 positions, ten hold up to three quarters of
    the sum of all KL, and which ten is chance. So the largest hundredth is left out, of both."""
    gptq, nearest = (demo.kl(Recipe(4, group_size, 8, sequences)) for sequences in (demo.sequences, None))
    usual = len(gptq) * 99 // 100
    assert gptq[:usual].mean() < nearest[:usual].mean()


@pytest.mark.parametrize("model", ["stories260k", "demo"])
def test_8_bits_cost_less_than_a_thousandth_in_perplexity(model: str, request: pytest.FixtureRequest) -> None:
    judge: Judge = request.getfixturevalue(model)
    found = judge.log_probabilities(quantised(judge.source, Recipe(8, 128, 8)))
    assert judge.perplexity(found) < 1.001 * judge.perplexity(judge.expected)
