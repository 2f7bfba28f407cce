"""model.bin, our own file: safetensors with the config and the tokenizer inside. Layout: docs/formats.md."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec, check_tensors
from llamagpu.config import ModelConfig
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import huggingface
from llamagpu.formats.atomic import atomic_write
from llamagpu.formats.safetensors_file import DTYPES, MAX_HEADER_BYTES, MAX_TENSORS, SafetensorsFile
from llamagpu.formats.token_facts import facts_of, values_of
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix
from llamagpu.sampling import SamplingParams

# 2 says what the source knew of special tokens; of a file of version 1 its tokenizer alone is asked.
FORMAT_VERSION, READ_VERSIONS = "2", ("1", "2")
ALIGNMENT = 256
FLOATS = [DTYPES[name] for name in ("F32", "F16", "BF16")]
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
TOKENIZER = "tokenizer"
BYTES = "bytes"  # the kind of tokenizer that has no data
AFFINE = "affine"  # of the metadata: bits, group size and shape of each quantised matrix
STOP_TOKENS, SAMPLING, CHAT_TEMPLATE = "stop_tokens", "sampling", "chat_template"
SPECIAL_TOKENS = "special_tokens"  # of the metadata: see token_facts.py
ENTRY_BYTES = 1024  # of the header, for one tensor, beside its name: at most three arrays and a description
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
    if metadata["llamagpu.format_version"] not in READ_VERSIONS:
        problem = f"is {metadata['llamagpu.format_version'][:20]!r}; this version reads {' and '.join(READ_VERSIONS)}"
        raise ModelFormatError(path, "llamagpu.format_version", problem, CONVERT_AGAIN)
    config = ModelConfig.checked(path, read_json_object(path, metadata, "config"))
    arrays = {name: file.array(name) for name in file.entries}
    tokenizer = read_tokenizer(path, metadata, arrays)
    tensors = join_quantized(path, arrays, metadata)
    check_tensors(path, config, tensors)
    return Checkpoint(
        path, "llamagpu model.bin", config, tensors, tokenizer, read_stop_tokens(path, metadata, config),
        metadata.get(CHAT_TEMPLATE), read_sampling(path, metadata),
    )  # fmt: skip


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
    facts = None
    if SPECIAL_TOKENS in metadata:
        facts = facts_of(path, read_json_object(path, metadata, SPECIAL_TOKENS))
    if data is None and kind in (None, BYTES):
        return None if kind is None else TokenizerSpec(kind, b"", facts)
    if data is None or kind is None or data.dtype != np.uint8 or data.ndim != 1:
        raise ModelFormatError(path, TOKENIZER, "must be both named in the metadata and held as bytes", CONVERT_AGAIN)
    return TokenizerSpec(kind, data.tobytes(), facts)


def read_stop_tokens(path: Path, metadata: dict[str, str], config: ModelConfig) -> tuple[int, ...]:
    try:
        tokens = json.loads(metadata.get(STOP_TOKENS, "[]"))
        if isinstance(tokens, list) and all(type(token) is int and 0 <= token < config.vocab_size for token in tokens):
            return tuple(tokens)
    except (ValueError, RecursionError):
        pass
    raise ModelFormatError(path, STOP_TOKENS, "is no JSON list of ids of this model", CONVERT_AGAIN)


def read_sampling(path: Path, metadata: dict[str, str]) -> dict[str, float]:
    values = read_json_object(path, metadata, SAMPLING) if SAMPLING in metadata else {}
    names = {field.name for field in fields(SamplingParams)}
    if not all(name in names and type(value) in (int, float) for name, value in values.items()):
        raise ModelFormatError(path, SAMPLING, "does not hold numbers by the names of sampling flags", CONVERT_AGAIN)
    return values


def join_quantized(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> dict[str, Tensor]:
    """Pairs ``X.q`` (int8) and ``X.scales`` (float32, flat) become the Int8Matrix ``X``; ``X.tiles``, ``X.params`` and
    perhaps ``X.perm`` the AffineQuant ``X``; the rest must be floats, of one or two axes."""
    tensors: dict[str, Tensor] = {}
    affine = read_json_object(path, metadata, AFFINE) if AFFINE in metadata else {}
    for base, entry in affine.items():
        tensors[base] = join_affine(path, base, entry, arrays)
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
        elif array.dtype in FLOATS and array.ndim <= 2:
            tensors[name] = array
        else:
            raise ModelFormatError(
                path, name[:80], f"has type {array.dtype} and {array.ndim} axes, as no weight has", CONVERT_AGAIN
            )
    return tensors


def join_affine(path: Path, base: str, entry: Any, arrays: dict[str, NDArray[Any]]) -> AffineQuant:
    """One entry of the metadata's "affine" and its arrays, which are taken out of ``arrays``."""
    try:
        bits, group_size, shape = entry["bits"], entry["group_size"], entry["shape"]
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
        has_offsets = entry.get("has_offsets", False)
        if type(has_offsets) is not bool:
            raise ValueError("sizes that no matrix has, or offsets that are neither there nor not")
        return AffineQuant(bits, group_size, (shape[0], shape[1]), tiles, params, perm, has_offsets)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"is no quantised matrix ({type(error).__name__}: {error})"
        raise ModelFormatError(path, base[:80], problem, CONVERT_AGAIN) from None


def write(path: Path, checkpoint: Checkpoint, on_progress: Callable[[int], None] = lambda n_bytes: None) -> None:
    """Write a checkpoint as model.bin: one tensor in memory at a time, under a temporary name, then renamed.

    on_progress: called with the size of each tensor, as the source holds it. The header is written last, into room left
    for it, since only a tensor that has been put together tells its layout. Arrays that fill multiples of 256 bytes are
    written as they come, so that each of them starts on such a multiple; safetensors forbids holes, so the small odd
    ones go to the end.
    """
    metadata = describe(checkpoint)
    entries: dict[str, Any] = {}
    group_sizes: set[int] = set()
    affine: dict[str, Any] = {}
    odd: list[tuple[str, NDArray[Any]]] = []
    offset = 0
    header_bytes = header_room(checkpoint, metadata)
    with atomic_write(path) as file:

        def append(name: str, array: NDArray[Any]) -> None:
            nonlocal offset
            end = offset + array.nbytes
            dtype = DTYPE_NAMES[array.dtype]
            entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
            file.write(np.ascontiguousarray(array).view(np.uint8).data)
            offset = end

        file.seek(8 + header_bytes)
        for name, tensor in checkpoint.tensors.items():
            stored = tensor.materialize() if isinstance(tensor, Deferred) else tensor
            if isinstance(stored, AffineQuant):
                affine[name] = {"bits": stored.bits, "group_size": stored.group_size, "shape": stored.shape}
                if stored.has_offsets:
                    affine[name]["has_offsets"] = True
            elif isinstance(stored, Int8Matrix):
                group_sizes.add(stored.group_size)
            for array_name, array in arrays_of(name, stored).items():
                if array.nbytes % ALIGNMENT:
                    odd.append((array_name, array))
                else:
                    append(array_name, array)
            on_progress(tensor.nbytes)
        if checkpoint.tokenizer is not None and checkpoint.tokenizer.data:
            odd.append((TOKENIZER, np.frombuffer(checkpoint.tokenizer.data, np.uint8)))
        for name, array in odd:
            append(name, array)
        if len(group_sizes) > 1:
            raise ValueError(f"one group size per file, not {sorted(group_sizes)}")
        for group_size in group_sizes:
            metadata["group_size"] = str(group_size)
        if affine:
            metadata[AFFINE] = json.dumps(affine, separators=(",", ":"))
        text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
        assert len(text) <= header_bytes
        if header_bytes > MAX_HEADER_BYTES or text.count(b"{") > MAX_TENSORS:
            raise UsageError(f"{checkpoint.path}: its chat template is too large to be kept in a model.bin")
        file.seek(0)
        file.write(struct.pack("<Q", header_bytes) + text.ljust(header_bytes))


def describe(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of a file that are known before its tensors are."""
    metadata = {"llamagpu.format_version": FORMAT_VERSION, "config": json.dumps(checkpoint.config.to_dict())}
    if checkpoint.stop_tokens:
        metadata[STOP_TOKENS] = json.dumps(checkpoint.stop_tokens)
    if checkpoint.sampling:
        metadata[SAMPLING] = json.dumps(dict(checkpoint.sampling))
    if checkpoint.chat_template is not None:
        try:
            checkpoint.chat_template.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"{checkpoint.path}: its chat template is no valid Unicode, so no file can keep it"
            ) from None
        metadata[CHAT_TEMPLATE] = checkpoint.chat_template
    if checkpoint.tokenizer is not None:
        metadata[TOKENIZER] = checkpoint.tokenizer.kind
        if checkpoint.tokenizer.facts is not None:
            metadata[SPECIAL_TOKENS] = json.dumps(values_of(checkpoint.tokenizer.facts))
    return metadata


def header_room(checkpoint: Checkpoint, metadata: dict[str, str]) -> int:
    """Bytes that are certainly enough for the header, such that the data begin on a multiple of 256."""
    of_names = sum(4 * len(json.dumps(name)) + ENTRY_BYTES for name in checkpoint.tensors)
    return -(-(8 + len(json.dumps(metadata)) + of_names + ENTRY_BYTES) // ALIGNMENT) * ALIGNMENT - 8


def arrays_of(name: str, tensor: Tensor) -> dict[str, NDArray[Any]]:
    """What the file holds of a tensor, by name."""
    if isinstance(tensor, Int8Matrix):
        return {f"{name}.q": tensor.q, f"{name}.scales": tensor.scales}
    if isinstance(tensor, AffineQuant):
        arrays = {f"{name}.tiles": tensor.q, f"{name}.params": tensor.params}
        return arrays if tensor.perm is None else {**arrays, f"{name}.perm": tensor.perm}
    if not isinstance(tensor, np.ndarray):
        raise ValueError("random weights are not kept")
    return {name: tensor}
