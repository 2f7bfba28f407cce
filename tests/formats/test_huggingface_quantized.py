"""GPTQ and AWQ in Hugging Face folders: exactly the weights that the layout means, or a refusal by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.quantization import AffineQuant, Deferred
from tests.formats.quantized_folders import CONFIG, PROJECTIONS, Quantized, build_pair, tensors_of
from tests.references.make_huggingface import QWEN2, TOKENS, Arrays, write_folder

QWEN2_CONFIG = QWEN2 | {"hidden_size": 128, "intermediate_size": 192}
CASES = {
    "GPTQ 4 bits": Quantized(group_size=128),
    "GPTQ 4 bits, version 2": Quantized(version=2),
    "GPTQ 8 bits, whole rows": Quantized(bits=8, group_size=-1),
    "GPTQ 8 bits, version 2, groups of 48": Quantized(bits=8, group_size=48, version=2),
    "GPTQ without g_idx": Quantized(g_idx="none"),
    "GPTQ act-order": Quantized(g_idx="act order"),
    "GPTQ act-order, a group that is not full": Quantized(g_idx="act order", group_size=48),
    "GPTQ act-order, 8 bits": Quantized(g_idx="act order", bits=8, group_size=64),
    "GPTQ groups of 8": Quantized(group_size=8),
    "GPTQ act-order, groups of 8": Quantized(group_size=8, g_idx="act order"),
    "GPTQ with the head": Quantized(modules=(*PROJECTIONS, "lm_head")),
    "GPTQ of some matrices": Quantized(modules=("q_proj", "up_proj", "down_proj")),
    "GPTQ with biases": Quantized(config=QWEN2_CONFIG),
    "AWQ": Quantized("awq", group_size=128),
    "AWQ groups of 32": Quantized("awq"),
    "AWQ groups of 48": Quantized("awq", group_size=48),
    "AWQ whole rows": Quantized("awq", group_size=-1),
    "AWQ with biases, of some matrices": Quantized("awq", config=QWEN2_CONFIG, modules=PROJECTIONS[:5]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_equal_those_of_the_weights_that_are_meant(case: Quantized, tmp_path: Path) -> None:
    quantized, plain = build_pair(case, tmp_path)
    expected = llamagpu.load(plain, device="cpu").logits(TOKENS)
    logits = llamagpu.load(quantized, device="cpu").logits(TOKENS)
    assert np.abs(logits - expected).max() < 1e-4
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_weights_are_exact(case: Quantized, tmp_path: Path) -> None:
    quantized, plain = (open_checkpoint(folder) for folder in build_pair(case, tmp_path))
    n_quantized = 0
    for name, expected in plain.tensors.items():
        tensor = quantized.tensors[name]
        assert tensor.shape == expected.shape
        if isinstance(tensor, Deferred):
            n_quantized += 1
            made = tensor.materialize()
            assert isinstance(made, AffineQuant) == (case.group_size != 8)
            tensor = in_order_of_inputs(made) if isinstance(made, AffineQuant) else made
        np.testing.assert_array_equal(tensor, expected)
    assert n_quantized == sum(name.endswith("qweight") for name in tensors_of(case)[0])
    assert n_quantized > 0
    assert any("widened to float32" in note for note in quantized.notes) == (case.group_size == 8)


def in_order_of_inputs(matrix: AffineQuant) -> Any:
    values = matrix.dequantize()
    if matrix.perm is not None:
        values[:, matrix.perm] = values.copy()
    return values


@pytest.mark.parametrize(("file", "method"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_settings_in_a_file_of_their_own(file: str, method: str, tmp_path: Path) -> None:
    case = Quantized(method)
    folder, plain = build_pair(case, tmp_path)
    (folder / "config.json").write_text(json.dumps(case.config))
    settings = case.settings()
    for name in ("quant_method", "checkpoint_format"):  # which early exporters did not write
        settings.pop(name, None)
    if method == "awq":
        settings = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (folder / file).write_text(json.dumps(settings))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-32g.safetensors")
    difference = llamagpu.load(folder, device="cpu").logits(TOKENS) - llamagpu.load(plain, device="cpu").logits(TOKENS)
    assert np.abs(difference).max() < 1e-4


def test_biases_of_zeros_change_nothing(tmp_path: Path) -> None:
    """Early exporters gave every matrix a bias."""
    case = Quantized()
    tensors, _ = tensors_of(case)
    config = case.config | {"quantization_config": case.settings()}
    name = "model.layers.1.mlp.down_proj.bias"
    tensors[name] = np.zeros(CONFIG["hidden_size"], np.float16)
    assert "layers.1.feed_forward.w2.bias" not in open_checkpoint(write_folder(tmp_path, config, tensors)).tensors
    tensors[name][3] = 1
    refuse(write_folder(tmp_path, config, tensors), name)


def refuse(folder: Path, field: str, use: Callable[[Path], object] = open_checkpoint) -> None:
    """It fails, in one line that names the field."""
    with pytest.raises(ModelFormatError) as caught:
        use(folder)
    assert field in caught.value.field
    assert "\n" not in str(caught.value)


AWQ = {"quant_method": "awq", "checkpoint_format": None}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "another method": ("quant_method", {"quant_method": "bitsandbytes"}),
    "compressed-tensors": ("quant_method", {"quant_method": "compressed-tensors"}),
    "fp8": ("quant_method", {"quant_method": "fp8"}),
    "no method": ("quant_method", {"quant_method": None}),
    "a method that is a list": ("quant_method", {"quant_method": ["gptq"]}),
    "3 bits": ("bits", {"bits": 3}),
    "2 bits": ("bits", {"bits": 2}),
    "8 bits that are 4": ("qweight", {"bits": 8}),
    "no bits": ("bits", {"bits": None}),
    "bits of text": ("bits", {"bits": "4"}),
    "groups of 0": ("group_size", {"group_size": 0}),
    "groups of -2": ("group_size", {"group_size": -2}),
    "groups of text": ("group_size", {"group_size": "128"}),
    "vast groups": ("group_size", {"group_size": 10**40}),
    "other groups": ("qzeros", {"group_size": 64}),
    "marlin": ("checkpoint_format", {"checkpoint_format": "marlin"}),
    "marlin by a flag": ("checkpoint_format", {"is_marlin_format": True}),
    "a format that is a list": ("checkpoint_format", {"checkpoint_format": [1]}),
    "words of 64 bits": ("pack_dtype", {"pack_dtype": "int64"}),
    "sizes of their own": ("dynamic", {"dynamic": {".*down.*": {"bits": 8}}}),
    "AWQ for gemv": ("version", AWQ | {"version": "gemv"}),
    "AWQ of 8 bits": ("bits", AWQ | {"bits": 8}),
    "AWQ without zeros": ("zero_point", AWQ | {"zero_point": False}),
    "AWQ of llm-awq": ("version", AWQ | {"backend": "llm-awq"}),
    "AWQ that is GPTQ": ("qweight", AWQ),
}  # fmt: skip


@pytest.mark.parametrize(("field", "changes"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_are_refused_by_name(field: str, changes: dict[str, Any], tmp_path: Path) -> None:
    case = Quantized()
    folder, _ = build_pair(case, tmp_path)
    config = case.config | {"quantization_config": case.settings() | changes}
    (folder / "config.json").write_text(json.dumps(config))
    refuse(folder, field)


def test_rules_that_only_leave_matrices_out_are_read(tmp_path: Path) -> None:
    case = Quantized(modules=PROJECTIONS[:4])
    folder, _ = build_pair(case, tmp_path)
    settings = case.settings() | {"dynamic": {"-:.*mlp.*": {}}}
    (folder / "config.json").write_text(json.dumps(case.config | {"quantization_config": settings}))
    assert isinstance(open_checkpoint(folder).tensors["layers.0.attention.wq.weight"], Deferred)


MODULE = "model.layers.1.mlp.up_proj"
EMBEDDING, PARTS = "model.embed_tokens", ("scales", "qweight", "g_idx", "qzeros")
DAMAGE: dict[str, tuple[str, Callable[[Arrays], object]]] = {
    "no zeros": ("qzeros", lambda t: t.pop(f"{MODULE}.qzeros")),
    "no scales": ("scales", lambda t: t.pop(f"{MODULE}.scales")),
    "no weight": ("up_proj.weight", lambda t: [t.pop(f"{MODULE}.{kind}") for kind in PARTS]),
    "only scales": ("up_proj", lambda t: [t.pop(f"{MODULE}.{kind}") for kind in PARTS[1:]]),
    "a weight twice": ("up_proj.weight", lambda t: t.update({f"{MODULE}.weight": np.zeros((192, 128), np.float32)})),
    "fewer rows": ("qweight", lambda t: cut(t, f"{MODULE}.qweight")),
    "fewer groups": ("scales", lambda t: cut(t, f"{MODULE}.scales")),
    "fewer zeros": ("qzeros", lambda t: cut(t, f"{MODULE}.qzeros")),
    "a short g_idx": ("g_idx", lambda t: cut(t, f"{MODULE}.g_idx")),
    "g_idx of floats": ("g_idx", lambda t: to_type(t, f"{MODULE}.g_idx", np.float32)),
    "scales of whole numbers": ("scales", lambda t: to_type(t, f"{MODULE}.scales", np.int32)),
    "a quantised embedding": ("embed_tokens", lambda t: t.update({f"{EMBEDDING}.qweight": t[f"{MODULE}.qweight"]})),
    "a quantised norm": ("norm", lambda t: t.update({"model.norm.qweight": t[f"{MODULE}.qweight"]})),
}  # fmt: skip


def to_type(tensors: Arrays, name: str, dtype: type) -> None:
    tensors[name] = tensors[name].astype(dtype)


def cut(tensors: Arrays, name: str) -> None:
    tensors[name] = tensors[name][:-1]


@pytest.mark.parametrize(("field", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_tensors_that_do_not_fit(field: str, damage: Callable[[Arrays], object], tmp_path: Path) -> None:
    case = Quantized()
    tensors, _ = tensors_of(case)
    damage(tensors)
    refuse(write_folder(tmp_path, case.config | {"quantization_config": case.settings()}, tensors), field)


def test_quantised_tensors_without_settings(tmp_path: Path) -> None:
    refuse(write_folder(tmp_path, CONFIG, tensors_of(Quantized())[0]), "qweight")


@pytest.mark.parametrize("wrong", [-1, 4, 10**9, 0])
def test_groups_that_make_no_sense_are_refused_when_the_matrix_is_made(wrong: int, tmp_path: Path) -> None:
    case = Quantized()
    tensors, _ = tensors_of(case)
    tensors[f"{MODULE}.g_idx"][40] = wrong
    folder = write_folder(tmp_path, case.config | {"quantization_config": case.settings()}, tensors)
    checkpoint = open_checkpoint(folder)
    matrix = checkpoint.tensors["layers.1.feed_forward.w3.weight"]
    assert isinstance(matrix, Deferred)
    refuse(folder, MODULE, use=lambda _: matrix.materialize())
