"""llama2Rnn's memory-attention models: llama2.c's version 2 (Q8_0) with one more number in the header and more tensors.

Magic and version are those of llama2.c's own files, so the two are told apart by length: each header is read both ways.
Layout: docs/formats.md.
"""

from __future__ import annotations

import struct
from pathlib import Path

from llamagpu.checkpoint import ORIGIN_MEMORY, Checkpoint, Quirks
from llamagpu.config import LONGEST_MEMORY, MEMORY_LLAMA, REMEDY
from llamagpu.errors import ModelFormatError
from llamagpu.formats.llama2c import LARGEST_GROUP, MAGIC, V1_HEADER_BYTES, read_config, read_q8
from llamagpu.formats.mapped_file import CUT_SHORT, MappedFile
from llamagpu.sampling import TEMPERATURE_FIRST

VERSION = 2
PLAIN, MEMORY = struct.Struct("<Ii7iBi"), struct.Struct("<Ii7iiBi")  # headers: of llama2.c, of llama2Rnn
ORDER = (
    "attention_norm", "ffn_norm", "attention.memory_norm", "attention.ffn_norm", f"attention.{ORIGIN_MEMORY}", "norm",
    "tok_embeddings", "attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1",
    "feed_forward.w2", "feed_forward.w3", "attention.feed_forward.w1", "attention.feed_forward.w2",
    "attention.feed_forward.w3", "output",
)  # fmt: skip


def sniff(head: bytes, size: int) -> bool:
    """Whether the header is one of llama2Rnn's: the length is what it implies, or not what it implies as llama2.c's.

    So a file that was cut short is named for what it is. (In llama2.c's the group size here would be zero: padding.)
    """
    if len(head) < MEMORY.size:
        return False
    magic, version, *shape, mem_len, tied, group_size = MEMORY.unpack_from(head)
    if (magic, version) != (MAGIC, VERSION) or not 1 <= group_size <= LARGEST_GROUP or tied > 1:
        return False
    *_, plain_tied, plain_group_size = PLAIN.unpack_from(head)
    if implied_length(shape, tied, group_size, mem_len) == size:
        return True
    return implied_length(shape, plain_tied, plain_group_size, 0) != size


def implied_length(shape: list[int], tied: int, group_size: int, mem_len: int) -> int | None:
    """Length of the file that a header describes, mem_len 0 for llama2.c's; None for a header of neither."""
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, _ = shape
    if min(*shape, group_size) < 1 or tied > 1 or mem_len < 0:
        return None
    kv_dim, n_feed_forwards, n_norms = dim * n_kv_heads // n_heads, 1 + (mem_len > 0), 2 + 2 * (mem_len > 0)
    n_floats = (n_norms * n_layers + 1) * dim + n_layers * mem_len * dim
    n_weights = n_layers * (2 * dim * dim + 2 * dim * kv_dim + 3 * n_feed_forwards * dim * hidden_dim)
    n_weights += vocab_size * dim * (2 - tied)
    return V1_HEADER_BYTES + 4 * n_floats + n_weights + 4 * (n_weights // group_size)


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a llama2Rnn file. Raises ModelFormatError."""
    file = MappedFile(path)
    if file.size < V1_HEADER_BYTES:
        raise ModelFormatError(path, "length", f"is {file.size} bytes, less than a header", CUT_SHORT)
    _, _, *shape, mem_len, tied, group_size = MEMORY.unpack_from(file.bytes[: MEMORY.size].tobytes())
    if not 1 <= mem_len <= LONGEST_MEMORY:
        raise ModelFormatError(path, "mem_seq_len", f"is {mem_len}, must be 1 to {LONGEST_MEMORY}", REMEDY)
    config = read_config(path, tuple(shape), tied_head=tied == 1, architecture=MEMORY_LLAMA, mem_len=mem_len)
    version = f"llama2Rnn memory model (Q8_0, group {group_size})"
    tensors = read_q8(file, config, ORDER, group_size, version)
    quirks = Quirks(
        "llama2Rnn.c's runqm", activation_bits=8, activation_group=group_size, ends=(), sampler_order=TEMPERATURE_FIRST
    )
    return Checkpoint(path, version, config, tensors, quirks=quirks)
