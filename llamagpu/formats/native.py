"""model.bin, our own file: safetensors with the config and the tokenizer inside. Layout: docs/formats.md."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec, check_tensors
from llamagpu.config import ModelConfig
from llamagpu.errors import ModelFormatError
from llamagpu.formats import huggingface
from llamagpu.formats.atomic import atomic_write
from llamagpu.formats.safetensors_file import DTYPES, SafetensorsFile
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix

FORMAT_VERSION = "1"
ALIGNMENT = 256
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
TOKENIZER = "tokenizer"
AFFINE = "affine"  # of the metadata: bits, group size and shape of each quantised matrix
CONVERT_AGAIN = "make the file again with: llamagpu convert SRC OUT"


def sniff(head: bytes, size: int) -> bool:
    """Whether the first bytes are those of a safetensors file: the header's length, then its opening brace."""
    return len(head) >= 10 and struct.unpack_from("<Q", head)[0] <= 100_000_000 and head[8:9] == b"{"


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a native model.bin. Raises ModelFormatError."""
    file = SafetensorsFile(path, CONVERT_AGAIN)
    metadata = file.metadata
    if "llamagpu.format_version" not in metadata:
        if (path.parent / huggingface.CONFIG).is_file():
            return huggingface.open_checkpoint(path)
        raise ModelFormatError(
            path,
            "__metadata__",
            "is a safetensors file, but none that llamagpu wrote",
            "give a model.bin made by convert, or the folder that holds the file with its config.json",
        )
    if metadata["llamagpu.format_version"] != FORMAT_VERSION:
        found = metadata["llamagpu.format_version"][:20]
        raise ModelFormatError(path, "llamagpu.format_version", f"is {found!r}, not {FORMAT_VERSION!r}", CONVERT_AGAIN)
    config = ModelConfig.checked(path, read_json_object(path, metadata, "config"))
    arrays = {name: file.array(name) for name in file.entries}
    tokenizer = read_tokenizer(path, metadata, arrays)
    tensors = join_quantized(path, arrays, metadata)
    check_tensors(path, config, tensors)
    return Checkpoint(path, "llamagpu model.bin", config, tensors, tokenizer)


def read_json_object(path: Path, metadata: dict[str, str], field: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(field, ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelFormatError(path, field, "is missing or no JSON object", CONVERT_AGAIN)
    return value


def read_tokenizer(path: Path, metadata: dict[str, str], arrays: dict[str, NDArray[Any]]) -> TokenizerSpec | None:
    data = arrays.pop(TOKENIZER, None)
    kind = metadata.get(TOKENIZER)
    if data is None and kind is None:
        return None
    if data is None or kind is None or data.dtype != np.uint8 or data.ndim != 1:
        raise ModelFormatError(path, TOKENIZER, "must be both named in the metadata and held as bytes", CONVERT_AGAIN)
    return TokenizerSpec(kind, data.tobytes())


def join_quantized(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> dict[str, Tensor]:
    """Pairs ``X.q`` (int8) and ``X.scales`` (float32, flat) become the Int8Matrix ``X``; ``X.tiles``, ``X.params`` and
    perhaps ``X.perm`` the AffineQuant ``X``; the rest must be floats, of one or two axes."""
    tensors: dict[str, Tensor] = {}
    affine = read_json_object(path, metadata, AFFINE) if AFFINE in metadata else {}
    for base, fields in affine.items():
        tensors[base] = join_affine(path, base, fields, arrays)
    for name, array in arrays.items():
        if name.endswith(".q"):
            base = name.removesuffix(".q")
            scales = arrays.get(f"{base}.scales")
            group_size = metadata.get("group_size", "")
            ok = scales is not None and scales.dtype == np.float32 and scales.ndim == 1
            ok = ok and array.dtype == np.int8 and array.ndim == 2
            ok = ok and group_size.isascii() and group_size.isdigit() and len(group_size) < 10
            if not ok or scales is None or int(group_size) < 1 or scales.size * int(group_size) != array.size:
                problem = f"does not fit its scales and group_size {group_size[:20]!r}"
                raise ModelFormatError(path, name[:80], problem, CONVERT_AGAIN)
            tensors[base] = Int8Matrix(array, scales, int(group_size))
        elif name.endswith(".scales") and f"{name.removesuffix('.scales')}.q" in arrays:
            continue
        elif array.dtype in (np.float32, np.float16, ml_dtypes.bfloat16) and array.ndim <= 2:
            tensors[name] = array
        else:
            raise ModelFormatError(
                path, name[:80], f"has type {array.dtype} and {array.ndim} axes, as no weight has", CONVERT_AGAIN
            )
    return tensors


def join_affine(path: Path, base: str, fields: Any, arrays: dict[str, NDArray[Any]]) -> AffineQuant:
    """One entry of the metadata's "affine" and its arrays, which are taken out of ``arrays``."""
    try:
        bits, group_size, shape = fields["bits"], fields["group_size"], fields["shape"]
        sizes = (bits, group_size, *shape)
        if len(shape) != 2 or not all(type(n) is int and 0 < n < 1 << 40 for n in sizes):
            raise ValueError("sizes that no matrix has")
        tiles, params, perm = (
            arrays.pop(f"{base}.tiles"),
            arrays.pop(f"{base}.params"),
            arrays.pop(f"{base}.perm", None),
        )
        if base in arrays or f"{base}.q" in arrays:
            raise ValueError("the same name twice")
        if perm is not None and not (
            perm.dtype == np.int32 and perm.ndim == 1 and np.array_equal(np.sort(perm), np.arange(shape[1]))
        ):
            raise ValueError("a perm that is no permutation")
        return AffineQuant(bits, group_size, (shape[0], shape[1]), tiles, params, perm)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"is no quantised matrix ({type(error).__name__}: {error})"
        raise ModelFormatError(path, base[:80], problem, CONVERT_AGAIN) from None


def write(path: Path, checkpoint: Checkpoint, on_progress: Callable[[int], None] = lambda n_bytes: None) -> None:
    """Write a checkpoint as model.bin: one tensor in memory at a time, under a temporary name, then renamed.

    Tensors that fill multiples of 256 bytes go first, so that each of them starts on such a multiple; safetensors
    forbids holes, so those behind an odd-sized one need not.
    """
    metadata = {"llamagpu.format_version": FORMAT_VERSION, "config": json.dumps(checkpoint.config.to_dict())}
    arrays: dict[str, NDArray[Any]] = {}
    group_sizes: set[int] = set()
    affine: dict[str, Any] = {}
    for name, tensor in checkpoint.tensors.items():
        if isinstance(tensor, Deferred):
            tensor = tensor.materialize()
        if isinstance(tensor, Int8Matrix):
            arrays[f"{name}.q"], arrays[f"{name}.scales"] = tensor.q, tensor.scales
            group_sizes.add(tensor.group_size)
        elif isinstance(tensor, AffineQuant):
            arrays[f"{name}.tiles"], arrays[f"{name}.params"] = tensor.q, tensor.params
            if tensor.perm is not None:
                arrays[f"{name}.perm"] = tensor.perm
            affine[name] = {"bits": tensor.bits, "group_size": tensor.group_size, "shape": tensor.shape}
        elif isinstance(tensor, np.ndarray):
            arrays[name] = tensor
        else:
            raise ValueError("random weights are not kept")
    if len(group_sizes) > 1:
        raise ValueError(f"one group size per file, not {sorted(group_sizes)}")
    for group_size in group_sizes:
        metadata["group_size"] = str(group_size)
    if affine:
        metadata[AFFINE] = json.dumps(affine, separators=(",", ":"))
    if checkpoint.tokenizer is not None:
        metadata[TOKENIZER] = checkpoint.tokenizer.kind
        arrays[TOKENIZER] = np.frombuffer(checkpoint.tokenizer.data, np.uint8)

    order = sorted(arrays, key=lambda name: arrays[name].nbytes % ALIGNMENT != 0)  # stable: keeps reading order
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in order:
        array = arrays[name]
        end = offset + array.nbytes
        header[name] = {"dtype": DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(np.ascontiguousarray(arrays[name]).view(np.uint8).data)  # bfloat16 is no type of buffers
            on_progress(arrays[name].nbytes)
