"""The grammar behind the built-in model, and the model's place beside its entropy."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

import llamagpu

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
from demo_stories import (
    ANIMALS,
    BOYS,
    GIRLS,
    MORALS,
    OPENINGS,
    PET_NAMES,
    PLOTS,
    SIMPLE,
    Walk,
    split_options,
    write_story,
)


def test_a_walk_counts_its_choices() -> None:
    walk = Walk(random.Random(0))
    assert walk.expand("one [two|three [x|y|z]|four] five") in {
        "one two five", "one three x five", "one three y five", "one three z five", "one four five",
    }  # fmt: skip
    assert walk.nats in (pytest.approx(math.log(3)), pytest.approx(math.log(9)))
    assert split_options("[a|[b|c]|]", 0) == (["a", "[b|c]", ""], 10)


def test_stories_are_the_same_for_a_seed_and_different_otherwise() -> None:
    first = [write_story(random.Random(5)) for _ in range(2)]
    assert first[0] == first[1]
    rng = random.Random(0)
    stories = [write_story(rng) for _ in range(3000)]
    assert len({story.text for story in stories}) == 3000
    for story in stories:
        assert not set("[]{}|") & set(story.text)


def test_no_two_walks_write_the_same_story() -> None:
    """Alternatives of one choice differ, and so do the lists that names are drawn from: a text tells its walk."""
    for template in [*OPENINGS, *MORALS, *(part for plot in PLOTS for part in plot)]:
        for at in (i for i, char in enumerate(template) if char == "["):
            options, _ = split_options(template, at)
            assert len(set(options)) == len(options) > 1
    for names in [*SIMPLE.values(), ANIMALS, PET_NAMES, GIRLS + BOYS]:
        assert len(set(names)) == len(names)
    assert not set(PET_NAMES) & set(GIRLS + BOYS)
    assert len({plot[0] for plot in PLOTS}) == len(PLOTS)


def test_the_built_in_model_is_near_the_entropy_of_its_stories() -> None:
    """On 20 stories it never saw; docs/demo_model.md has the figures of 1000."""
    llm = llamagpu.load("demo", device="cpu")
    rng = random.Random(2_000_000_000)
    loss = entropy = 0.0
    n_tokens = 0
    for _ in range(20):
        story = write_story(rng)
        ids = [*llm.tokenizer.encode(story.text), 2]
        logits = llm.logits(ids[:-1]).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(ids) - 1), ids[1:]]
        loss += float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())
        entropy += story.nats
        n_tokens += len(ids) - 1
    assert entropy / n_tokens * 0.95 < loss / n_tokens < entropy / n_tokens + 0.05
