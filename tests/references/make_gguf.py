"""Logits of small random GGUF files as transformers gives them: it reads GGUF with code of its own.

    python -m tests.references.make_gguf      # from the repository's root; needs torch, transformers and gguf

The files are made from a seed; only the logits are kept, in gguf.npz beside this file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.formats.gguf_files import Shape, small_model, small_vocabulary

ARCHITECTURES = ("llama", "qwen2", "qwen3")
IDS = [1, 7, 30, 7, 2, 0, 29, 11, 11, 5, 1, 3]
STORED = Path(__file__).with_name("gguf.npz")


def model_bytes(arch: str) -> bytes:
    """Matrices of four types, a vocabulary inside. Of a GGUF file transformers does not take head_dim: it is
    dim / n_heads, or 128 for Qwen3."""
    file, _ = small_model(arch, ["Q4_K", "Q6_K", "Q8_0", "F16"], Shape(head_dim=128 if arch == "qwen3" else 64))
    file.keys |= small_vocabulary()
    return file.to_bytes()


def reference_logits() -> dict[str, NDArray[np.float32]]:
    """By architecture: float32 [12, 300]."""
    import torch
    from transformers import AutoModelForCausalLM

    logits: dict[str, NDArray[np.float32]] = {}
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "small.gguf").write_bytes(model_bytes(arch))
            model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file="small.gguf", dtype=torch.float32)
            with torch.no_grad():
                logits[arch] = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    return logits


def main() -> None:
    import torch
    import transformers

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    np.savez_compressed(STORED, versions=versions, **reference_logits())  # type: ignore[arg-type]
    print(f"wrote {STORED} with {versions}")


if __name__ == "__main__":
    main()
