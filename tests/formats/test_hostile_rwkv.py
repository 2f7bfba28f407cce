"""Damaged and hostile files of RWKVs: one line that names the tensor, quickly, in little memory."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint, rwkv_ggmf
from tests.formats.test_hostile_meta import refuse
from tests.references.rwkv_reference import VERSIONS, Weights, random_weights
from tests.rwkv_files import GGMF, ggmf_bytes, ggmf_tensor, pth_bytes
from tests.torch_files import View, torch_bytes

SMALL: dict[str, int] = {"dim": 8, "n_layers": 2, "head_dim": 4, "hidden": 8, "vocab": 9, "rank": 2}
HEADER = struct.pack("<6I", GGMF, 101, 9, 8, 2, 0)


@pytest.fixture
def weights() -> Weights:
    return random_weights(7, **SMALL)


def written(data: bytes, tmp_path: Path, name: str = "model.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("header", "field"),
    [
        (HEADER[:20], "length"),
        (struct.pack("<6I", GGMF, 99, 9, 8, 2, 0), "version"),
        (struct.pack("<6I", GGMF, 102, 9, 8, 2, 0), "version"),
        (struct.pack("<6I", GGMF, 101, 10, 8, 2, 0), "n_vocab"),
        (struct.pack("<6I", GGMF, 101, 9, 9, 2, 0), "n_embed"),
        (struct.pack("<6I", GGMF, 101, 9, 8, 10**9, 0), "n_layer"),
    ],
)
def test_header_of_a_ggmf_file(header: bytes, field: str, weights: Weights, tmp_path: Path) -> None:
    data = header + ggmf_bytes(weights)[24:] if len(header) == 24 else header
    refuse(written(data, tmp_path), field)


def raw(n_axes: int, name_length: int, kind: int, rest: bytes = b"") -> bytes:
    return struct.pack("<3I", n_axes, name_length, kind) + rest


NAME = "blocks.0.att.x_r"
LARGEST = 2**32 - 1


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (raw(0, 5, 0), "0 axes"),
        (raw(4, 5, 0), "4 axes"),
        (raw(LARGEST, 5, 0), "axes"),
        (raw(1, 0, 0), "a name of 0 bytes"),
        (raw(1, 129, 0), "a name of 129 bytes"),
        (raw(1, LARGEST, 0), "axes and a name"),
        (raw(1, 5, 0)[:8], "needs bytes"),
        (raw(3, 5, 0, struct.pack("<2I", 1, 1)), "needs bytes"),
        (raw(1, 50, 0, struct.pack("<I", 1) + b"short"), "needs bytes"),
        (ggmf_tensor(NAME, (8,), 0, bytes(31)), "needs bytes"),
        (ggmf_tensor(NAME, (0,), 0, b""), "or empty"),
        (ggmf_tensor(NAME, (LARGEST, LARGEST, LARGEST), 0, bytes(32)), "needs bytes"),
        (ggmf_tensor(NAME, (2**31, 2**31, 4), 1, bytes(32)), "needs bytes"),
        (ggmf_tensor(NAME, (2**16, 2**16), 2, bytes(32)), "needs bytes"),
        (ggmf_tensor(NAME, (8,), 4, bytes(32)), "of type Q4_1_O"),
        (ggmf_tensor(NAME, (8,), 10, bytes(32)), "of type Q8_1"),
        (ggmf_tensor(NAME, (8,), 17, bytes(32)), "of type number 17"),
        (ggmf_tensor(NAME, (8,), LARGEST, bytes(32)), "of type number 4294967295"),
        (ggmf_tensor(NAME, (32,), 2, bytes(18)), "rows of whole blocks"),
        (ggmf_tensor(NAME, (4, 8), 2, bytes(18)), "rows of whole blocks"),
        (ggmf_tensor("blocks.0.ln1.weight", (8,), 0, bytes(32)), "is there twice"),
        (ggmf_tensor(b"\xff\xfe\n\x1b[2J", (8,), 0, bytes(32)), "is a tensor that no RWKV has"),
        (ggmf_tensor("blocks.\u0661.att.w0", (8,), 0, bytes(32)), "is a tensor that no RWKV has"),
        (ggmf_tensor("blocks.01.att.w0", (8,), 0, bytes(32)), "is a tensor that no RWKV has"),
        (ggmf_tensor("blocks.7.att.w0", (8,), 0, bytes(32)), "no rwkv7 of 2 layers has"),
        (ggmf_tensor("blocks.1.ln0.weight", (8,), 0, bytes(32)), "is a tensor that no RWKV has"),
        (ggmf_tensor("blocks.0.ffn.s_emb.weight", (9, 8), 0, bytes(288)), "is a tensor that no RWKV has"),
        (ggmf_tensor("blocks.0.att.time_decay", (8,), 0, bytes(32)), "no rwkv7 of 2 layers has"),
        (ggmf_tensor(NAME, (8,), 0, bytes(32)), "blocks.0.att.x_rwkvag under another name"),
        (ggmf_tensor("blocks.0.ffn.time_maa_k", (8,), 0, bytes(32)), "blocks.0.ffn.x_k under another name"),
        (ggmf_tensor("blocks.0.att.q1", (64, 8), 0, bytes(2048)), "is a tensor that no RWKV has"),
        (ggmf_tensor("pos_emb_x", (1, 8), 0, bytes(32)), "is a tensor that no RWKV has"),
        (ggmf_tensor("blocks.0.att.ln_x.odd", (8,), 0, bytes(32)), "is a tensor that no RWKV has"),
    ],
)
def test_one_more_tensor_in_a_ggmf_file(tensor: bytes, problem: str, weights: Weights, tmp_path: Path) -> None:
    refuse(written(ggmf_bytes(weights) + tensor, tmp_path), problem=problem)


def test_blocks_of_the_first_version_were_others(weights: Weights, tmp_path: Path) -> None:
    data = HEADER[:4] + struct.pack("<I", 100) + ggmf_bytes(weights)[8:]
    assert open_checkpoint(written(data, tmp_path)).config.architecture == "rwkv7"
    blocks = ggmf_tensor("blocks.0.att.q", (1, 32), 2, bytes(18))
    refuse(written(data + blocks, tmp_path), "blocks.0.att.q", "in a file of version 100")


def test_more_tensors_than_any_model(tmp_path: Path) -> None:
    tensor = b"".join(ggmf_tensor(f"{i:06}", (1,), 0, bytes(4)) for i in range(rwkv_ggmf.MOST_TENSORS + 1))
    refuse(written(HEADER + tensor, tmp_path), f"tensor {rwkv_ggmf.MOST_TENSORS}", "more than any model")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ggmf_file_cut_anywhere(version: int, tmp_path: Path) -> None:
    data = ggmf_bytes(random_weights(version, **SMALL))
    rng = random.Random(version)
    for end in [4, 23, 24, 30, len(data) - 1, *(rng.randrange(24, len(data)) for _ in range(40))]:
        with pytest.raises(ModelFormatError):
            open_checkpoint(written(data[:end], tmp_path))


def changed(weights: Weights, name: str, value: Any) -> dict[str, Any]:
    out: dict[str, Any] = {**weights, name: value}
    if value is None:
        del out[name]
    return out


@pytest.mark.parametrize("version", VERSIONS)
def test_every_tensor_is_needed_in_its_shape(version: int, tmp_path: Path) -> None:
    """But for the values that the first layer of an RWKV-7 never mixes with."""
    weights = random_weights(version, **SMALL)
    for name, value in weights.items():
        unused = version == 7 and name in ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
        for other in (None, np.concatenate([value, value]), np.repeat(value, 3, axis=-1), value.reshape(-1)[:1]):
            path = written(torch_bytes(changed(weights, name, other)), tmp_path, "model.pth")
            if unused:
                open_checkpoint(path)
                continue
            with pytest.raises(ModelFormatError) as caught:
                open_checkpoint(path)
            assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("blocks.0.att.w0", 5, "is no tensor"),
        ("_strategy", "cuda fp16", "is no tensor"),
        ("_version", 0.7, "is no tensor"),
        ("blocks.0.att.w0", np.zeros((1, 1, 8), np.int64), "is of int64"),
        ("blocks.0.att.w0", np.zeros((1, 1, 8), np.float64), "is of float64"),
        ("blocks.0.att.w0", np.zeros((0, 8), np.float32), "shape [0, 8]"),
        ("blocks.0.att.w0", np.zeros((100, 8), np.float32), "too large for a vector"),
        ("blocks.0.att.w1", np.zeros((2, 2, 2), np.float32), "not of 2 axes"),
        ("emb.weight", np.zeros(8, np.float32), "not of 2 axes"),
        ("blocks.0.att.r_k", np.zeros((3, 3), np.float32), "must be dim = 8"),
        ("blocks.0.ffn.s_emb.weight", np.zeros((9, 8), np.float32), "is a tensor that no RWKV has"),
        ("blocks.0.qkv.qq.weight", np.zeros((9, 8), np.float32), "is a tensor that no RWKV has"),
    ],
)
def test_a_tensor_of_a_checkpoint(name: str, value: Any, problem: str, weights: Weights, tmp_path: Path) -> None:
    refuse(written(torch_bytes(changed(weights, name, value)), tmp_path, "model.pth"), problem=problem)


def test_rwkv_5_as_it_was_first(tmp_path: Path) -> None:
    """5.0 and 5.1 have one decay and one time_first for each head; what is of another shape is refused."""
    weights = random_weights(5, **SMALL)
    old = {name.replace("time_faaaa", "time_first"): value for name, value in weights.items()}
    without = {name: value for name, value in old.items() if "gate" not in name and "mix_g" not in name}
    for tensors in (old, without):
        refuse(written(torch_bytes(tensors), tmp_path, "model.pth"), "time_decay", "one number for each head")
    neither = {name: value for name, value in without.items() if "time_first" not in name}
    refuse(written(torch_bytes(neither), tmp_path, "model.pth"), "time_faaaa", "is missing")


def test_tensors_that_share_their_numbers(weights: Weights, tmp_path: Path) -> None:
    """Copies are made of vectors: a small file should not fill the memory with them."""
    base = np.zeros(8, np.float32)
    shared = {name: View(base, 0, (8,), (1,)) if value.shape == (8,) else value for name, value in weights.items()}
    assert open_checkpoint(written(torch_bytes(shared), tmp_path, "model.pth")).config.n_layers == 2
    many = {f"blocks.{i}.ln1.weight": View(base, 0, (8,), (1,)) for i in range(5000)}
    refuse(written(torch_bytes({**weights, **many}), tmp_path, "model.pth"))
    large: NDArray[np.float32] = np.zeros(1 << 17, np.float32)
    heavy = {f"blocks.{i}.ln1.weight": View(large, 0, (1 << 17,), (1,)) for i in range(9)}
    path = written(torch_bytes({**weights, **heavy}), tmp_path, "model.pth")
    refuse(path, problem="shares its numbers with another tensor")


def test_no_rwkv_and_no_llama(weights: Weights, tmp_path: Path) -> None:
    without = {name: value for name, value in weights.items() if name != "emb.weight"}
    refuse(written(torch_bytes(without), tmp_path, "model.pth"), problem="no Llama of Meta's")
    neither = {name: value for name, value in weights.items() if ".att." not in name}
    refuse(written(torch_bytes(neither), tmp_path, "model.pth"), problem="no RWKV that is known")
    assert open_checkpoint(written(pth_bytes(weights), tmp_path, "any name")).config.architecture == "rwkv7"
