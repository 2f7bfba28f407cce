"""Write a checkpoint as a Hugging Face folder that other engines read: plain floats, or GPTQ.

Quantised matrices are qweight, qzeros, scales and g_idx, with ``checkpoint_format`` "gptq", which stores zero - 1. So
a zero must be 1 or more; what is quantised for this format has zeros 1 to 15 (or 255), which every reader takes alike,
whether or not it cuts zero + 1 to 4 bits again. Embedding and head stay floats.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from llamagpu.checkpoint import Checkpoint, Tensor
from llamagpu.config import ModelConfig
from llamagpu.errors import UsageError
from llamagpu.formats.huggingface_description import config_json, generation_json, tokenizer_files
from llamagpu.formats.safetensors_file import DTYPES
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.tokenizers.base import Tokenizer

SHARD_BYTES = 4_000_000_000
ENTRY_BYTES = 256  # of the header, for one array, beside its name
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
NAMES = {
    "tok_embeddings.weight": "model.embed_tokens",
    "norm.weight": "model.norm",
    "output.weight": "lm_head",
    "attention_norm.weight": "input_layernorm",
    "attention.wq.weight": "self_attn.q_proj",
    "attention.wk.weight": "self_attn.k_proj",
    "attention.wv.weight": "self_attn.v_proj",
    "attention.wq.bias": "self_attn.q_proj",
    "attention.wk.bias": "self_attn.k_proj",
    "attention.wv.bias": "self_attn.v_proj",
    "attention.q_norm.weight": "self_attn.q_norm",
    "attention.k_norm.weight": "self_attn.k_norm",
    "attention.wo.weight": "self_attn.o_proj",
    "attention.wo.bias": "self_attn.o_proj",
    "ffn_norm.weight": "post_attention_layernorm",
    "feed_forward.w1.weight": "mlp.gate_proj",
    "feed_forward.w2.weight": "mlp.down_proj",
    "feed_forward.w3.weight": "mlp.up_proj",
    "feed_forward.w1.bias": "mlp.gate_proj",
    "feed_forward.w2.bias": "mlp.down_proj",
    "feed_forward.w3.bias": "mlp.up_proj",
}
TURNED = ("wq.weight", "wk.weight", "wq.bias", "wk.bias", "q_norm.weight", "k_norm.weight")


def is_ours(name: str) -> bool:
    """Whether a file of this name may be of a model folder, and go when the folder is replaced."""
    return name.endswith((".safetensors", ".json", ".jinja")) or name.startswith("tokenizer.")


def write_folder(
    folder: Path,
    checkpoint: Checkpoint,
    special_ids: tuple[int | None, int | None] = (None, None),
    on_progress: Callable[[int], None] = lambda n_bytes: None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Fill an empty folder. One tensor is in memory at a time.

    special_ids: BOS and EOS. tokenizer: the checkpoint's, opened. on_progress: called with nbytes of each tensor.
    Raises UsageError for what such a folder cannot say.
    """
    layout = Layout()
    config = config_json(checkpoint, special_ids)  # refuses before any work
    with Shards(folder, shard_bytes) as shards:
        for name, tensor in checkpoint.tensors.items():
            stored = tensor.materialize() if isinstance(tensor, Deferred) else tensor
            shards.append(layout.arrays_of(name, stored, checkpoint.config))
            on_progress(tensor.nbytes)
        shards.finish()
    config["torch_dtype"] = layout.float_type
    if layout.bits:
        config["quantization_config"] = {
            "quant_method": "gptq", "bits": layout.bits, "group_size": layout.group_size(),
            "desc_act": layout.act_order, "sym": False, "checkpoint_format": "gptq", "lm_head": False,
        }  # fmt: skip
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_json(checkpoint, special_ids))
    for file_name, data in tokenizer_files(checkpoint, tokenizer).items():
        (folder / file_name).write_bytes(data)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


class Layout:
    """Arrays of each tensor, and what its matrices have in common: config.json says it once for all of them."""

    def __init__(self) -> None:
        self.bits = 0
        self.sizes: set[tuple[int, int]] = set()  # group size and width of each quantised matrix
        self.act_order = False
        self.float_type = "float32"

    def group_size(self) -> int:
        """Raises UsageError where no one size says it all; -1 is the whole row."""
        of_parts = {size for size, width in self.sizes if size < width}
        widest_row = max((width for size, width in self.sizes if size == width), default=0)
        if not of_parts:
            return -1
        if len(of_parts) > 1 or widest_row > min(of_parts):
            raise UsageError("matrices have groups of different sizes, for which a Hugging Face folder has no word")
        return of_parts.pop()

    def arrays_of(self, name: str, stored: Tensor, config: ModelConfig) -> dict[str, NDArray[Any]]:
        """By their names in the folder. Raises UsageError for what it cannot hold."""
        short = name.split(".", 2)[2] if name.startswith("layers.") else name
        module = NAMES[short]
        if short != name:
            module = f"model.layers.{name.split('.')[1]}.{module}"
        turn = short.endswith(TURNED) and config.rope_layout == "interleaved"
        if isinstance(stored, np.ndarray):
            if stored.ndim == 2:
                self.float_type = stored.dtype.name
            array = stored[half_split_rows(stored.shape[0], config.head_dim)] if turn else stored
            return {f"{module}.{name.rpartition('.')[2]}": array}
        if not isinstance(stored, AffineQuant) or short == name:
            raise UsageError(f"{name} is quantised as a Hugging Face folder cannot hold it: leave --format out")
        if self.bits not in (0, stored.bits):
            raise UsageError("matrices have different numbers of bits, for which a Hugging Face folder has no word")
        self.bits = stored.bits
        self.sizes.add((stored.group_size, stored.shape[1]))
        self.act_order = self.act_order or stored.perm is not None
        order = half_split_rows(stored.shape[0], config.head_dim) if turn else np.arange(stored.shape[0])
        return {f"{module}.{part}": array for part, array in gptq_arrays(name, stored, order).items()}


def half_split_rows(n_rows: int, head_dim: int) -> NDArray[np.int64]:
    """Which row of interleaved heads each row of half-split heads is: 0, 2, 4, ... 1, 3, 5, ... of each head."""
    return np.arange(n_rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def gptq_arrays(name: str, matrix: AffineQuant, order: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """qweight int32 [in * bits / 32, out], qzeros int32 [groups, out * bits / 32], scales float16 [groups, out] and
    g_idx int32 [in], rows in another order. Raises UsageError for what does not fit."""
    (out_features, in_features), bits = matrix.shape, matrix.bits
    scales, zeros = matrix.scales_and_zeros()
    per_word = 32 // bits
    if out_features % per_word or in_features % per_word:
        raise UsageError(f"{name} is {out_features} by {in_features}: GPTQ packs {per_word} numbers into a word")
    if matrix.has_offsets or not ((zeros >= 1) & (zeros <= 2**bits)).all() or (zeros % 1).any():
        raise UsageError(f"{name} has zeros that GPTQ's files cannot hold (whole numbers from 1): leave --format out")
    if matrix.params.dtype != np.float16:
        raise UsageError(f"{name} has scales that float16 does not hold exactly: leave --format out")
    q = matrix.rows()[order]
    g_idx = np.arange(in_features, dtype=np.int32) // np.int32(matrix.group_size)
    if matrix.perm is not None:
        q[:, matrix.perm] = q.copy()
        g_idx[matrix.perm] = g_idx.copy()
    return {
        "qweight": np.ascontiguousarray(packed_words(q, bits).T),
        "qzeros": packed_words(np.ascontiguousarray((zeros[order] - 1).astype(np.uint8).T), bits),
        "scales": np.ascontiguousarray(scales[order].T.astype(np.float16)),
        "g_idx": g_idx,
    }


def packed_words(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """uint8 [n, m] to int32 [n, m * bits / 32]: neighbours of a row in one word, the first in its lowest bits."""
    per_word = 32 // bits
    words = np.zeros((numbers.shape[0], numbers.shape[1] // per_word), np.uint32)
    for i in range(per_word):
        words |= numbers[:, i::per_word].astype(np.uint32) << np.uint32(bits * i)
    return words.view(np.int32)


class Shards:
    """Safetensors files of at most ``shard_bytes`` (a tensor that is larger has one to itself), and their index.

    The header of a file is written when the next one begins, into room that was left for it.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.files: list[dict[str, Any]] = []  # header entries of each
        self.file: BinaryIO | None = None
        self.offset = 0
        self.room = 1 << 20

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()

    def append(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Arrays that stay together."""
        n_bytes = sum(array.nbytes for array in arrays.values())
        n_header = sum(len(name) + ENTRY_BYTES for name in arrays)
        held = sum(len(name) + ENTRY_BYTES for name in self.files[-1]) if self.files else 0
        if self.file is None or self.offset + n_bytes > self.shard_bytes or held + n_header > self.room - ENTRY_BYTES:
            self.begin_next()
        assert self.file is not None
        for name, array in arrays.items():
            end = self.offset + array.nbytes
            dtype = DTYPE_NAMES[array.dtype]
            self.files[-1][name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [self.offset, end]}
            self.file.write(np.ascontiguousarray(array).view(np.uint8).data)
            self.offset = end

    def begin_next(self) -> None:
        self.close_file()
        self.files.append({})
        self.offset = 0
        self.file = open(self.folder / f"{len(self.files)}.part", "wb")  # noqa: SIM115  # closed by close_file
        self.file.seek(8 + self.room)

    def close_file(self) -> None:
        """Write the header of the file in hand."""
        if self.file is not None:
            with self.file as file:
                text = json.dumps({"__metadata__": {"format": "pt"}, **self.files[-1]}, separators=(",", ":")).encode()
                file.seek(0)
                file.write(struct.pack("<Q", self.room) + text.ljust(self.room))
            self.file = None

    def finish(self) -> None:
        """Give the files their names, now that their number is known."""
        self.close_file()
        n, places, total = len(self.files), {}, 0
        for i, entries in enumerate(self.files, 1):
            name = "model.safetensors" if n == 1 else f"model-{i:05}-of-{n:05}.safetensors"
            os.rename(self.folder / f"{i}.part", self.folder / name)
            places.update(dict.fromkeys(entries, name))
            total += sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries.values())
        if n > 1:
            write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
