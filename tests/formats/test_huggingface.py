"""Hugging Face folders: logits against transformers', and what the files beside the weights say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import llamagpu
from tests.references.make_huggingface import CASES, KEPT, TOKENS, build, expected


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    logits = llamagpu.load(build(name, tmp_path), device="cpu").logits(TOKENS)[KEPT]
    assert np.abs(logits - expected(name)).max() < 1e-4
    assert np.abs(expected(name)).max() > 1
