"""What `info` says of a model's bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamagpu.formats import open_checkpoint
from llamagpu.llm import load
from llamagpu.model_info import bytes_per_token, held_bytes, rows_of
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.quantization.affine import affine_nbytes
from tests.small_files import Shape, random_weights, v0_bytes


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [16, 48, 128, 1000])
def test_the_size_of_a_quantised_matrix(bits: int, group_size: int) -> None:
    for shape in ((1, 1), (33, 130), (64, 512)):
        groups = -(-shape[1] // group_size)
        q, halves = np.zeros(shape, np.uint8), np.ones((shape[0], groups), np.float16)
        matrix = AffineQuant.pack(q, halves, halves, bits, group_size)
        assert affine_nbytes(shape, bits, group_size, 2) == matrix.nbytes
        wide = AffineQuant.pack(q, halves, halves, bits, group_size, has_offsets=True)
        assert affine_nbytes(shape, bits, group_size, 4) == wide.nbytes


def test_a_token_reads_one_row_of_a_separate_embedding(tmp_path: Path) -> None:
    for tied in (False, True):
        shape = Shape(tied=tied)
        (tmp_path / "model.bin").write_bytes(v0_bytes(shape, random_weights(shape)))
        checkpoint = open_checkpoint(tmp_path / "model.bin")
        unread = 0 if tied else 4 * (shape.vocab_size - 1) * shape.dim
        assert bytes_per_token(checkpoint) == checkpoint.nbytes - unread


def test_deferred_matrices_count_as_what_they_become(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.formats.gguf_files import small_model

    file, _ = small_model("llama", ["Q4_0", "Q4_1", "Q5_0", "Q6_K", "Q3_K", "Q2_K", "Q4_K"])
    (tmp_path / "model.gguf").write_bytes(file.to_bytes())
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    deferred = [tensor for tensor in checkpoint.tensors.values() if isinstance(tensor, Deferred)]
    assert len(deferred) > 7
    for tensor in deferred:
        assert held_bytes(tensor) == tensor.materialize().nbytes, tensor.kind
    rows = dict(rows_of(checkpoint, "", 16))
    assert "Q4_K x" in rows["weights"]
    assert rows["bits"].split()[0] == f"{8 * checkpoint.nbytes / checkpoint.n_parameters:.2f}"


def test_the_demo() -> None:
    rows = dict(rows_of(load("demo", device="cpu").checkpoint, "none", 512))
    assert rows["bits"] == "16.02 per parameter, as stored"
    assert rows["a token reads"].startswith("2.1 MiB of weights")
