from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamagpu.formats import open_checkpoint
from llamagpu.quantization import Int8Matrix
from tests.small_files import Floats, Shape, q8_values, random_weights, v0_bytes, v1_bytes, v2_bytes

SHAPES = {
    "tied, grouped": Shape(),
    "untied, grouped": Shape(tied=False),
    "untied, one key head": Shape(tied=False, n_kv_heads=1),
    "as many key heads as heads": Shape(n_kv_heads=4, n_layers=1),
    "odd sizes": Shape(dim=20, hidden_dim=7, n_heads=2, n_kv_heads=1, vocab_size=11, n_layers=3),
}
NAMES = {
    "att_norm": "attention_norm", "ffn_norm": "ffn_norm", "wq": "attention.wq", "wk": "attention.wk",
    "wv": "attention.wv", "wo": "attention.wo", "w1": "feed_forward.w1", "w2": "feed_forward.w2",
    "w3": "feed_forward.w3",
}  # fmt: skip


def named(weights: dict[str, Floats]) -> dict[str, Floats]:
    """llama2.c's blocks as one array per layer, under our names."""
    out = {"tok_embeddings.weight": weights["tok_emb"], "norm.weight": weights["final_norm"]}
    if "wcls" in weights:
        out["output.weight"] = weights["wcls"]
    for block, name in NAMES.items():
        out.update({f"layers.{i}.{name}.weight": layer for i, layer in enumerate(weights[block])})
    return out


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("write", [v0_bytes, v1_bytes], ids=["v0", "v1"])
def test_float32_versions_hold_the_written_weights(write, shape: Shape, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    weights = random_weights(shape)
    path = tmp_path / "model.bin"
    path.write_bytes(write(shape, weights))
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert (config.dim, config.hidden_dim, config.n_layers) == (shape.dim, shape.hidden_dim, shape.n_layers)
    assert (config.n_heads, config.n_kv_heads, config.vocab_size) == (shape.n_heads, shape.n_kv_heads, shape.vocab_size)
    assert (config.max_seq_len, config.tied_head, config.rope_layout) == (shape.max_seq_len, shape.tied, "interleaved")
    expected = named(weights)
    assert set(checkpoint.tensors) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(checkpoint.tensors[name]), array, err_msg=name)


@pytest.mark.parametrize("group_size", [1, 4, 8, 16])
@pytest.mark.parametrize(
    "shape", [Shape(), Shape(tied=False), Shape(hidden_dim=20), Shape(hidden_dim=12, dim=24, n_heads=2)], ids=str
)
def test_q8_groups_run_over_the_flat_tensor(group_size: int, shape: Shape, tmp_path: Path) -> None:
    """hidden_dim 20 and 12 are no multiples of 8 and 16: groups of w2 then cross its rows."""
    weights = random_weights(shape)
    path = tmp_path / "model.bin"
    path.write_bytes(v2_bytes(shape, weights, group_size))
    checkpoint = open_checkpoint(path)
    for name, array in named({k: q8_values(v, group_size) if v.ndim > 1 and "norm" not in k else v
                              for k, v in weights.items()}).items():  # fmt: skip
        tensor = checkpoint.tensors[name]
        if isinstance(tensor, Int8Matrix):
            np.testing.assert_array_equal(tensor.dequantize(), array, err_msg=name)
            for start, stop in [(0, 1), (1, 3), (2, array.shape[0]), (array.shape[0] - 1, array.shape[0])]:
                np.testing.assert_array_equal(tensor.dequantize(start, stop), array[start:stop], err_msg=name)
        else:
            np.testing.assert_array_equal(tensor, array, err_msg=name)


def test_weights_are_views_of_the_file(small_model: Path) -> None:
    checkpoint = open_checkpoint(small_model)
    pages = set()
    for tensor in checkpoint.tensors.values():
        assert isinstance(tensor, np.ndarray)
        assert not tensor.flags.owndata
        assert not tensor.flags.writeable
        base = tensor
        while isinstance(base.base, np.ndarray):
            base = base.base
        pages.add(id(base.base))
    assert len(pages) == 1  # all in the one map


def test_stories260k_q80_is_close_to_its_float32_model(data: Path) -> None:
    exact = open_checkpoint(data / "llama2c" / "stories260K.bin")
    quantized = open_checkpoint(data / "llama2c" / "stories260K_q80.bin")
    assert (exact.config.hidden_dim, exact.config.max_seq_len) == (172, 512)
    for name, tensor in quantized.tensors.items():
        values = tensor.dequantize() if isinstance(tensor, Int8Matrix) else tensor
        assert np.abs(values - np.asarray(exact.tensors[name])).max() <= 0.0071, name
