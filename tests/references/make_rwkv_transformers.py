"""Logits that transformers computes for small RWKV-4s, for tests/formats/test_huggingface_rwkv.py to compare with.

    PYTHONPATH=. python tests/references/make_rwkv_transformers.py      # where torch and transformers are installed

``build`` makes the folder of a case from its seed, anywhere; ``computed`` asks transformers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references.rwkv_reference import Weights, random_weights
from tests.rwkv_files import huggingface_arrays, huggingface_config, write_folder

STORED = Path(__file__).with_name("rwkv_transformers.npz")
TOKENS = [5, 0, 69, 3, 3, 3, 41, 17, 8, 60, 22, 5, 5, 1, 33, 2, 50, 68, 12, 7]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rescaled": {"rescale_every": 1},
    "tied": {"tie_word_embeddings": True},
    "tied, but the head is there": {"tie_word_embeddings": True},
}


def build(case: str, folder: Path) -> Path:
    weights = weights_of(case)
    arrays = huggingface_arrays(weights)
    if case == "tied":
        del arrays["head.weight"]
    return write_folder(folder, arrays, huggingface_config(weights) | {"rescale_every": 0} | CASES[case])


def weights_of(case: str) -> Weights:
    return random_weights(4, seed=list(CASES).index(case))


def computed(folder: Path) -> NDArray[np.float32]:
    """[tokens, vocab_size], from transformers."""
    import torch
    from transformers import RwkvForCausalLM

    model = RwkvForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([TOKENS])).logits[0].numpy())


def main() -> None:
    logits = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            logits[case] = computed(build(case, Path(folder)))
    np.savez_compressed(STORED, **logits)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
