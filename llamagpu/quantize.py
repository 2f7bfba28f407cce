"""A checkpoint whose matrices are quantised when they are written: one at a time, in the order of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from llamagpu.calibrate import CalibratedLayers, Sequences
from llamagpu.checkpoint import Checkpoint, Tensor, tensor_shapes
from llamagpu.config import MICRO_RWKV
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.model_info import type_name
from llamagpu.quantization import AffineQuant, Deferred, RandomMatrix, round_to_nearest
from llamagpu.quantization.gptq_solver import gptq
from llamagpu.rwkv_shapes import is_thin

FLOAT_TYPES = ("float32", "float16", "bfloat16")
Made = TypeVar("Made")
EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"


@dataclass(frozen=True)
class Recipe:
    """How a model is quantised.

    bits: of the layers' matrices, but for an RWKV's thin ones, which become float16 (bfloat16 stays): they are small,
    and an error in a decay or a mix stays in the state. group_size: a power of two, or 0 for the whole row. head_bits:
    of embedding and head; 16 is float16 (bfloat16 stays). sequences: of token ids, for GPTQ; None rounds to nearest.
    act_order: of GPTQ. smallest_zero: 1 for files that cannot say 0.
    """

    bits: Literal[4, 8]
    group_size: int
    head_bits: Literal[4, 8, 16]
    sequences: Sequences | None = None
    act_order: bool = False
    smallest_zero: int = 0


def check_floats(checkpoint: Checkpoint) -> None:
    """Raises UsageError for a model of which any weight is quantised already, or that is run in floats alone."""
    if checkpoint.config.architecture == MICRO_RWKV:
        raise UsageError(f"a {MICRO_RWKV} is not quantised: --quantize none keeps its weights as they are")
    for name, tensor in checkpoint.tensors.items():
        kind = type_name(tensor)
        if kind not in FLOAT_TYPES or isinstance(tensor, RandomMatrix):
            raise UsageError(
                f"{checkpoint.path} is already quantised ({name}: {kind}), and twice costs quality twice:"
                " give the model in floats (--quantize none keeps this one as it is)"
            )


def quantised(
    checkpoint: Checkpoint, recipe: Recipe, on_solved: Callable[[int], None] = lambda n: None, xp: ModuleType = np
) -> Checkpoint:
    """The model with Deferred matrices, to be made once each, in the order of ``tensors``.

    Their nbytes are those of what they become, so ``nbytes`` of the result is the size of its weights. Making one
    raises ModelFormatError for weights that are no numbers. on_solved: called with nbytes of each matrix once GPTQ is
    done with it; all of a layer are worked out when the first is made. xp: numpy, or cupy for GPTQ.
    """
    check_floats(checkpoint)
    tensors = {name: checkpoint.tensors[name] for name in tensor_shapes(checkpoint.config)}

    def solve(name: str, weights: NDArray[Any], hessian: Any) -> AffineQuant:
        size = recipe.group_size or weights.shape[1]
        work = partial(gptq, weights, hessian, recipe.bits, size, recipe.act_order, recipe.smallest_zero, xp)
        made = telling(checkpoint, name, work)
        on_solved(planned[name].nbytes)
        return made

    layers = None
    if recipe.sequences is not None:
        layers = CalibratedLayers(checkpoint.config, tensors, recipe.sequences, solve, xp)
    planned = {name: plan(checkpoint, name, tensor, recipe, layers) for name, tensor in tensors.items()}
    return replace(checkpoint, tensors=planned)


def plan(checkpoint: Checkpoint, name: str, tensor: Tensor, recipe: Recipe, layers: CalibratedLayers | None) -> Tensor:
    """One tensor: as it is, or Deferred."""
    if len(tensor.shape) < 2:
        return tensor
    shape = (tensor.shape[0], tensor.shape[1])
    in_layer = name not in (EMBEDDING, HEAD)
    bits = 16 if is_thin(name) else recipe.bits if in_layer else recipe.head_bits
    make: Callable[[], AffineQuant | NDArray[Any]]
    if in_layer and layers is not None:
        make = partial(layers.take, name)
    elif bits == 16:
        make = partial(telling, checkpoint, name, lambda: as_16_bit(floats(tensor)))
    else:
        size = recipe.group_size or shape[1]
        make = partial(
            telling, checkpoint, name, lambda: round_to_nearest(floats(tensor), bits, size, recipe.smallest_zero)
        )
    if name == EMBEDDING and layers is not None:
        make = partial(begin, layers, make)
    if bits == 16:
        kind = "bfloat16" if type_name(tensor) == "bfloat16" else "float16"
        return Deferred(shape, 2 * shape[0] * shape[1], kind, make)
    group_size = min(recipe.group_size or shape[1], shape[1])
    n_bytes = AffineQuant.bytes_of(shape, bits, group_size) + 4 * shape[1] * (in_layer and recipe.act_order)
    return Deferred(shape, n_bytes, f"{bits}-bit (group {group_size})", make)


def begin(layers: CalibratedLayers, make: Callable[[], AffineQuant | NDArray[Any]]) -> AffineQuant | NDArray[Any]:
    """The embedding, with which calibration begins."""
    table = make()
    layers.embed(table)
    return table


def floats(tensor: Tensor) -> NDArray[Any]:
    values = tensor.materialize() if isinstance(tensor, Deferred) else tensor
    assert isinstance(values, np.ndarray)
    return values


def as_16_bit(values: NDArray[Any]) -> NDArray[Any]:
    """float16; bfloat16 stays. Raises ValueError for what float16 cannot hold."""
    if values.dtype != np.float32:
        return values
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError("weights that are no numbers, or too large for float16")
    return halves


def telling(checkpoint: Checkpoint, name: str, make: Callable[[], Made]) -> Made:
    """What ``make`` gives; its ValueError as a ModelFormatError that names the tensor."""
    try:
        return make()
    except ValueError as error:
        raise ModelFormatError(checkpoint.path, name, f"has {error}", "download or export the model again") from None


def output_bytes(tensors: Mapping[str, Tensor]) -> int:
    """About as many bytes as these tensors take in a file. What a Deferred one becomes may have more scales than it."""
    return sum(
        tensor.nbytes * 3 // 2 if isinstance(tensor, Deferred) and tensor.kind not in FLOAT_TYPES else tensor.nbytes
        for tensor in tensors.values()
    )
