"""GPTQ and AWQ in a Hugging Face model: the quantization_config, and the tensors of one quantised matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamagpu.errors import ModelFormatError
from llamagpu.formats.json_file import read_json_object
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.quantization.affine import kernel_group_size
from llamagpu.quantization.awq import awq_numbers
from llamagpu.quantization.gptq import gptq_numbers

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")  # of one quantised matrix
GPTQ_VERSIONS: dict[str, Literal[1, 2]] = {"gptq": 1, "gptq_v2": 2}
REMEDY = "give the model in float16, bfloat16, GPTQ or AWQ"
DAMAGED = "the file does not fit its own config: convert or download it again"
LARGEST_GROUP = 1 << 24


@dataclass(frozen=True)
class Scheme:
    """How the quantised matrices of a model are stored. method: gptq or awq. group_size: -1 for the whole row.
    version: of GPTQ: 1 stores zeros less one."""

    method: str
    bits: int
    group_size: int
    version: Literal[1, 2] = 1


def read_scheme(folder: Path, config: dict[str, Any]) -> Scheme | None:
    """From config.json, or the file that earlier exporters wrote beside it. Raises ModelFormatError."""
    path, values = folder / "config.json", config.get("quantization_config")
    method = None
    if values is None:
        for name, its_method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
            if (folder / name).exists():
                path, method = folder / name, its_method
                values = read_json_object(path)
                break
        else:
            return None
    if not isinstance(values, dict):
        raise ModelFormatError(path, "quantization_config", "is no object of names and values", DAMAGED)

    def refuse(name: str, problem: str) -> ModelFormatError:
        return ModelFormatError(path, name, problem, REMEDY)

    method = values.get("quant_method", method)
    if method not in ("gptq", "awq"):
        raise refuse("quant_method", f"is {str(method)[:40]!r}; this version reads gptq and awq")
    bits = values.get("bits", values.get("w_bit"))
    allowed = (4, 8) if method == "gptq" else (4,)
    if type(bits) is not int or bits not in allowed:
        raise refuse("bits", f"is {str(bits)[:40]}; this version reads {method} of {' and '.join(map(str, allowed))}")
    group_size = values.get("group_size", values.get("q_group_size"))
    if type(group_size) is not int or not (group_size == -1 or 1 <= group_size <= LARGEST_GROUP):
        raise refuse("group_size", f"is {str(group_size)[:40]}, must be -1 or a whole number from 1")
    if method == "awq":
        version = values.get("version") or values.get("format") or values.get("checkpoint_format") or "gemm"
        if str(version).lower() != "gemm" or values.get("backend") == "llm-awq":
            raise refuse("version", f"is {str(version)[:40]!r}; this version reads gemm")
        if values.get("zero_point", True) is not True:
            raise refuse("zero_point", "is not true; this version reads AWQ with zero points")
        return Scheme(method, bits, group_size)

    stored_as = values.get("checkpoint_format") or "gptq"
    if values.get("is_marlin_format"):
        stored_as = "marlin"
    if not isinstance(stored_as, str) or stored_as not in GPTQ_VERSIONS:
        raise refuse("checkpoint_format", f"is {str(stored_as)[:40]!r}; this version reads gptq and gptq_v2")
    if values.get("pack_dtype", "int32") not in ("int32", None):
        raise refuse("pack_dtype", f"is {str(values['pack_dtype'])[:40]!r}; this version reads int32")
    rules = values.get("dynamic") or {}
    if not isinstance(rules, dict) or not all(rule.startswith("-:") for rule in rules):
        raise refuse("dynamic", "gives some matrices sizes of their own, which this version does not read")
    return Scheme(method, bits, group_size, GPTQ_VERSIONS[stored_as])


def quantized_matrix(
    path: Path, module: str, shape: tuple[int, int], scheme: Scheme, parts: dict[str, NDArray[Any]]
) -> Deferred:
    """``parts``: qweight, qzeros, scales and perhaps g_idx of the matrix ``module``, [out_features, in_features].

    Their shapes and types are checked now, their contents when the matrix is made. Raises ModelFormatError.
    """
    out_features, in_features = shape
    group_size = in_features if scheme.group_size == -1 else min(scheme.group_size, in_features)
    n_groups, per_word = -(-in_features // group_size), 32 // scheme.bits
    # Words hold neighbours of one axis; what does not fill them cannot be stored (-1 is no shape).
    words = out_features // per_word if out_features % per_word == 0 else -1
    expected: dict[str, tuple[int, ...]]
    if scheme.method == "awq":
        expected = {"qweight": (in_features, words)}
    else:
        expected = {"qweight": (in_features // per_word if in_features % per_word == 0 else -1, out_features)}
    expected |= {"qzeros": (n_groups, words), "scales": (n_groups, out_features)}
    if scheme.method == "gptq" and "g_idx" in parts:
        expected["g_idx"] = (in_features,)
    for name, its_shape in expected.items():
        field = f"{module}.{name}"
        if name not in parts:
            raise ModelFormatError(path, field, "is missing", DAMAGED)
        if parts[name].shape != its_shape:
            problem = f"has shape {list(parts[name].shape)}, not {list(its_shape)} as {scheme.bits} bits in groups of"
            raise ModelFormatError(path, field, f"{problem} {group_size} of {list(shape)} have", DAMAGED)
        is_float = parts[name].dtype.kind not in "iu"
        if is_float != (name == "scales") or not (is_float or parts[name].dtype == np.int32):
            raise ModelFormatError(path, field, f"has type {parts[name].dtype}", DAMAGED)
    for name in parts:
        if name not in expected:
            raise ModelFormatError(path, f"{module}.{name}", f"is no tensor of {scheme.method}", DAMAGED)

    def make() -> AffineQuant | NDArray[Any]:
        qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
        try:
            if scheme.method == "awq":
                numbers = awq_numbers(qweight, qzeros, scales, group_size)
            else:
                g_idx = parts.get("g_idx")
                numbers = gptq_numbers(qweight, qzeros, scales, group_size, g_idx, scheme.bits, scheme.version)
            return numbers.pack_or_widen()
        except ValueError as error:
            raise ModelFormatError(path, module, str(error), DAMAGED) from None

    kind = f"{scheme.method.upper()} {scheme.bits}-bit (group {group_size if n_groups > 1 else 'row'})"
    return Deferred(shape, sum(part.nbytes for part in parts.values()), kind, make)


def is_widened(matrix: Deferred, scheme: Scheme) -> bool:
    """Whether its groups are too small for the kernels, so that it becomes float32."""
    return scheme.group_size != -1 and not kernel_group_size(scheme.group_size, matrix.shape[1])
