"""MicroRWKV's checkpoints: every tensor where it belongs, everything else refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.checkpoint import tensor_shapes
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import native, open_checkpoint
from llamagpu.formats.micro_rwkv import read_config
from llamagpu.llm import LLM, model_path
from tests.micro_rwkv_files import MicroShape, micro_bytes, micro_checkpoint, micro_state
from tests.torch_files import BFLOAT16, Saved, View, entries_of, torch_bytes, zip_bytes

SHAPE = MicroShape()
ACTIVE_ONLY = MicroShape(idle_experts=False)


def write(folder: Path, saved: Any, name: str = "ckpt.pt") -> Path:
    path = folder / name
    path.write_bytes(torch_bytes(saved))
    return path


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_config_and_tensors(prefix: str, bias: bool, tmp_path: Path) -> None:
    shape = MicroShape(bias=bias)
    path = tmp_path / "model.pth"  # MicroRWKV's README calls it so, its script .pt
    path.write_bytes(micro_bytes(shape, prefix=prefix))
    checkpoint = open_checkpoint(path)
    config, state = checkpoint.config, micro_state(shape)
    assert checkpoint.format == "MicroRWKV checkpoint"
    assert (config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.head_dim) == (16, 48, 2, 2, 8)
    assert (config.max_seq_len, config.vocab_size, config.tied_head, config.endless) == (32, 300, True, True)
    assert (config.n_experts, config.n_active_experts, config.expert_hidden_dim) == (3, 2, 10)
    assert config.linear_bias == bias
    assert checkpoint.sampling == {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
    tensors = {name: np.asarray(tensor) for name, tensor in checkpoint.tensors.items()}
    assert list(tensors) == list(tensor_shapes(config))
    assert len(tensors) == len(state) - 1
    for ours, original in {
        "tok_embeddings.weight": "transformer.wte.weight",
        "position_embeddings.weight": "transformer.wpe.weight",
        "layers.1.time_mix.mix_g": "transformer.h.1.tmix.time_maa_g",
        "layers.1.time_mix.decay": "transformer.h.1.tmix.time_decay",
        "layers.0.time_mix.bonus": "transformer.h.0.tmix.time_faaaa",
        "layers.0.time_mix.output.weight": "transformer.h.0.tmix.output.weight",
        "layers.0.time_mix.norm.bias": "transformer.h.0.tmix.ln_x.bias",
        "layers.1.channel_mix.mix_r": "transformer.h.1.cmix.time_maa_r",
        "layers.1.channel_mix.value.weight": "transformer.h.1.cmix.value.weight",
        "layers.1.sliding_attention.output.weight": "transformer.h.1.sliding_attn.proj.weight",
        "layers.1.grouped_attention.qkvw.weight": "transformer.h.1.grouped_attn.qkvw.weight",
        "layers.1.grouped_attention.output.weight": "transformer.h.1.grouped_attn.out.weight",
        "layers.0.moe.experts.2.bias": "transformer.h.0.moe.experts.2.bias",
        "layers.0.moe.output.weight": "transformer.h.0.moe.fc.weight",
        "norm.weight": "transformer.ln_f.weight",
    }.items():
        np.testing.assert_array_equal(tensors[ours].reshape(-1), state[original].reshape(-1), err_msg=ours)
        assert not tensors[ours].flags.owndata, "a view of the file"


def test_the_default_model_has_as_many_parameters_as_published() -> None:
    shape = MicroShape(768, 8, 8, 1024, 50304, 4, 4, 512)
    shapes = tensor_shapes(read_config(Path("ckpt.pt"), shape.model_args()))
    n_left_out = (50304 - 50257) * 768
    assert sum(int(np.prod(size)) for size in shapes.values()) == 157_472_864 - n_left_out
    assert len(shapes) == 276 - 1  # without the second name of the embedding


def test_rows_past_the_vocabulary_of_gpt2_are_left_out(tmp_path: Path) -> None:
    shape = MicroShape(8, 1, 2, 4, 50304, 1, 1, 2)
    checkpoint = open_checkpoint(write(tmp_path, micro_checkpoint(shape)))
    assert checkpoint.config.vocab_size == 50257
    assert checkpoint.tensors["tok_embeddings.weight"].shape == (50257, 8)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_16_bits(dtype: Any, tmp_path: Path) -> None:
    saved = micro_checkpoint(SHAPE)
    saved["model"] = {name: values.astype(dtype) for name, values in saved["model"].items()}
    assert np.asarray(open_checkpoint(write(tmp_path, saved)).tensors["norm.weight"]).dtype == dtype


def test_a_head_of_equal_values_is_tied_and_another_is_refused(tmp_path: Path) -> None:
    saved = micro_checkpoint(SHAPE)
    saved["model"]["lm_head.weight"] = saved["model"]["lm_head.weight"].copy()
    assert open_checkpoint(write(tmp_path, saved)).config.tied_head
    saved["model"]["lm_head.weight"][3, 4] += 1
    with pytest.raises(ModelFormatError, match=r"lm_head.weight: is not transformer.wte.weight"):
        open_checkpoint(write(tmp_path, saved))


def test_experts_that_are_not_run_need_not_be_there(tmp_path: Path) -> None:
    """MicroRWKV builds the active ones alone, and a gate for all."""
    both = write(tmp_path, micro_checkpoint(SHAPE), "both.pt"), write(tmp_path, micro_checkpoint(ACTIVE_ONLY))
    full, active = (open_checkpoint(path) for path in both)
    assert active.config == full.config
    absent = {f"layers.{i}.moe.experts.2.{part}" for i in (0, 1) for part in ("weight", "bias")}
    assert full.tensors.keys() - active.tensors.keys() == absent
    assert np.asarray(active.tensors["layers.0.moe.gate.weight"]).shape == (3, 16)
    for of_layers in ({0}, {1}):  # some and not all of what is not run: the file is damaged
        saved = micro_checkpoint(SHAPE)
        for i in of_layers:
            del saved["model"][f"transformer.h.{i}.moe.experts.2.weight"]
        with pytest.raises(ModelFormatError, match=r"moe\.experts\.2\.weight: is missing"):
            open_checkpoint(write(tmp_path, saved))


def test_experts_that_are_not_run_change_nothing(tmp_path: Path) -> None:
    state = micro_checkpoint(SHAPE)["model"]
    saved = micro_checkpoint(ACTIVE_ONLY)
    saved["model"] = {name: state[name] for name in saved["model"]}  # of one seed, others are drawn after fewer
    both = write(tmp_path, micro_checkpoint(SHAPE), "both.pt"), write(tmp_path, saved)
    full, active = (LLM(open_checkpoint(path), "cpu").logits([5, 9, 7]) for path in both)
    np.testing.assert_array_equal(full, active)


@pytest.mark.parametrize("shape", [MicroShape(bias=True), ACTIVE_ONLY])
def test_native_file_round_trip(shape: MicroShape, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, micro_checkpoint(shape)))
    native.write(tmp_path / "model.bin", checkpoint)
    again = open_checkpoint(tmp_path / "model.bin")
    assert (again.config, again.sampling) == (checkpoint.config, checkpoint.sampling)
    assert again.tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in again.tensors.items():
        np.testing.assert_array_equal(np.asarray(tensor), np.asarray(checkpoint.tensors[name]))


def nested(depth: int) -> list[Any]:
    """Two of a list of two, and so on."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


def args(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["model_args"].update({name: value})


def tensor(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["model"].update({name: value})


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no model_args": (lambda saved: saved.pop("model_args"), "model_args is missing"),
    "model_args of text": (lambda saved: saved.update(model_args="n_layer=2"), "model_args is missing"),
    "no n_head": (lambda saved: saved["model_args"].pop("n_head"), "n_head is missing"),
    "an unknown argument": (args("rope", True), "rope is an argument that no MicroRWKV has"),
    "no heads": (args("n_head", 0), "n_head is 0"),
    "a billion layers": (args("n_layer", 10**9), "n_layer is 1000000000"),
    "layers that are a text": (args("n_layer", "2"), "n_layer is 2"),
    "true layers": (args("n_layer", True), "n_layer is True"),
    "layers that would take forever to print": (args("n_layer", nested(8)), "n_layer is list, must be"),
    "layers that are nan": (args("n_layer", float("nan")), "n_layer is nan"),
    "more layers than there are": (args("n_layer", 3), r"h\.2\.tmix\.time_maa_k is missing"),
    "fewer layers": (args("n_layer", 1), r"transformer\.h\.1\.\S+ is a tensor that no MicroRWKV has"),
    "another width": (args("n_embd", 24), "dim is 16"),
    "a width that is not the tensors'": (lambda saved: saved["model_args"].update(n_embd=24, dim=24), "has shape"),
    "heads that do not divide": (args("n_head", 3), "4 . n_head must divide"),
    "other heads": (args("n_head", 4), r"time_decay has shape \[2, 1\], where model_args say \[4, 1\]"),
    "more active experts than experts": (args("num_active_experts", 4), "n_active_experts is 4, of 3 experts"),
    "no active expert": (args("num_active_experts", 0), "num_active_experts is 0"),
    "4,000,000 experts": (args("num_experts", 4_000_000), "n_experts is 4000000"),
    "an expert more": (args("num_experts", 4), "moe.gate.weight has shape"),
    "wider experts": (args("expert_dim", 20), "moe.experts.0.weight has shape"),
    "bias that is a number": (args("bias", 1), "bias must be true or false"),
    "biases that are not there": (args("bias", True), r"receptance\.bias is missing"),
    "dropout of a list": (args("dropout", [0.1]), "dropout must be a number"),
    "another block_size": (args("block_size", 33), r"wpe.weight has shape \[32, 16\]"),
    "another vocabulary": (args("vocab_size", 299), r"wte.weight has shape \[300, 16\]"),
    "no head": (lambda saved: saved["model"].pop("lm_head.weight"), "lm_head.weight is missing"),
    "no embedding": (lambda saved: saved["model"].pop("transformer.wte.weight"), "wte.weight is missing"),
    "a tensor more": (tensor("transformer.h.0.ln_1.weight", np.ones(16, np.float32)), "ln_1.weight is a tensor that"),
    "a tensor of whole numbers": (tensor("transformer.ln_f.weight", np.ones(16, np.int64)), "ln_f.weight is of int64"),
    "a tensor of float64": (tensor("transformer.ln_f.weight", np.ones(16)), "ln_f.weight is of float64"),
    "a tensor that is a number": (tensor("transformer.ln_f.weight", 7), "ln_f.weight is no tensor"),
    "a tensor without elements": (tensor("transformer.ln_f.weight", np.ones(0, np.float32)), "has no elements"),
    "a vector that is a matrix": (tensor("transformer.ln_f.weight", np.ones((4, 4), np.float32)), "has shape"),
    "the same tensor twice": (tensor("_orig_mod.transformer.ln_f.weight", np.ones(16, np.float32)), "there twice"),
    "a transposed matrix": (
        tensor("transformer.wpe.weight", View(np.zeros((16, 32), np.float32), 0, (32, 16), (1, 32))), "strides",
    ),
    "a tensor beyond its storage": (
        tensor("transformer.wpe.weight", View(np.zeros(9, np.float32), 0, (32, 16), (16, 1))), "needs elements",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused(damage: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    saved = micro_checkpoint(SHAPE)
    damage(saved)
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(write(tmp_path, saved))
    assert re.search(message, f"{caught.value.field} {caught.value.problem}")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_bare_state_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="model_args: is missing"):
        open_checkpoint(write(tmp_path, micro_state(SHAPE)))


def test_files_cut_short_or_with_flipped_bytes_open_or_are_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "ckpt.pt", micro_bytes(SHAPE)
    rng = np.random.default_rng(0)
    for n in rng.integers(0, len(data), 20).tolist():
        path.write_bytes(data[:n])
        with pytest.raises(ModelFormatError):
            open_checkpoint(path)
    pickled = len(zip_bytes(entries_of(Saved(micro_checkpoint(SHAPE)))[:1]))
    for n in rng.integers(0, pickled, 60).tolist():  # where names and numbers are
        path.write_bytes(data[:n] + bytes([data[n] ^ 1 << int(rng.integers(8))]) + data[n + 1 :])
        with suppress(ModelFormatError):
            open_checkpoint(path)


def test_a_missing_checkpoint_and_a_pointer_to_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file or folder"):
        model_path(tmp_path / "ckpt-500.pt")
    path = tmp_path / "ckpt-500.pt"
    path.write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 1889966858\n")
    with pytest.raises(ModelFormatError, match=r"a pointer of Git LFS.*git lfs pull"):
        open_checkpoint(path)
