"""Measure the memory that `llamagpu convert` takes for a large random model.

    python scripts/measure_convert_memory.py --gib 1 --dtype float32 --quantize q4

Writes the model into a temporary folder (a few seconds, and its size on disk), converts it in a process of its own
and prints the largest resident size of that process. Exit status 1 where it is not below ``limit``
times the model's size.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from llamagpu.checkpoint import Checkpoint, Tensor, llama_shapes
from llamagpu.config import ModelConfig
from llamagpu.formats import native
from llamagpu.quantization import Deferred

CHILD = """
import sys
from llamagpu.cli import run_command
from llamagpu.devices import peak_memory_bytes
status = run_command(sys.argv[1:])
print(peak_memory_bytes())
sys.exit(status)
"""


def write_random(path: Path, n_bytes: int, dtype: np.dtype[np.generic]) -> None:
    """A model of about ``n_bytes`` with 16 layers and 1/16 of its weights in embedding and head, tokenizer left out."""
    dim = 64
    while n_weights(shape_of(dim + 64)) * dtype.itemsize <= n_bytes:
        dim += 64
    config = shape_of(dim)
    rng = np.random.default_rng(0)
    block = (rng.standard_normal(1 << 20, np.float32) / np.float32(dim**0.5)).astype(dtype)

    def deferred(shape: tuple[int, int]) -> Deferred:
        size = shape[0] * shape[1] * dtype.itemsize
        return Deferred(shape, size, dtype.name, lambda: np.resize(block, shape))

    tensors: dict[str, Tensor] = {
        name: deferred((shape[0], shape[1])) if len(shape) == 2 else np.ones(shape, np.float32)
        for name, shape in llama_shapes(config).items()
    }
    native.write(path, Checkpoint(path, "random", config, tensors))


def shape_of(dim: int) -> ModelConfig:
    return ModelConfig(
        architecture="llama", dim=dim, hidden_dim=dim * 3, n_layers=16, n_heads=dim // 64, n_kv_heads=dim // 64,
        head_dim=64, vocab_size=dim * 7, max_seq_len=2048,
    )  # fmt: skip


def n_weights(config: ModelConfig) -> int:
    return sum(int(np.prod(shape)) for shape in llama_shapes(config).values())


def peak_of_convert(source: Path, out: Path, *flags: str) -> int:
    """Largest resident size of ``llamagpu convert``, in bytes."""
    command = [sys.executable, "-c", CHILD, "convert", str(source), str(out), "--tokenizer", "none", *flags]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(
    gib: float = 1.0, dtype: str = "float32", quantize: str = "q4", format: str = "llamagpu", limit: float = 1.0
) -> None:
    kind = np.dtype({"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype])
    with tempfile.TemporaryDirectory(dir=".") as folder:
        source = Path(folder) / "random.bin"
        write_random(source, int(gib * 2**30), kind)
        flags = ["--quantize", quantize, "--format", format]
        peak = peak_of_convert(source, Path(folder) / "out", *flags)
        size = source.stat().st_size
    print(f"{size / 2**20:.0f} MiB of {dtype}, {' '.join(flags)}: peak {peak / 2**20:.0f} MiB")
    sys.exit(0 if peak < limit * size else 1)


if __name__ == "__main__":
    import fire  # not above: the tests use what is here, also where it is not installed

    fire.Fire(main)
