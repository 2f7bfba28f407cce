"""Tokenizers: one file per kind, one protocol (``Tokenizer``); adding one is adding a file."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import check_readable
from llamagpu.tokenizers.base import StreamDecoder, Tokenizer

MAX_TOKENIZER_BYTES = 1 << 28
RANKS = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")  # the first line of a tiktoken file
# Kind to module and class, which takes the bytes and the path of its file. Modules are imported when they are needed:
# some of their libraries cost a tenth of a second.
KINDS = {
    "gguf": ("llamagpu.tokenizers.gguf", "open_gguf_tokenizer"),
    "huggingface": ("llamagpu.tokenizers.huggingface", "HuggingFaceTokenizer"),
    "llama2c": ("llamagpu.tokenizers.llama2c", "Llama2cTokenizer"),
    "sentencepiece": ("llamagpu.tokenizers.sentencepiece", "SentencePieceTokenizer"),
    "sentencepiece-greedy": ("llamagpu.tokenizers.greedy", "GreedyTokenizer"),
    "tiktoken": ("llamagpu.tokenizers.tiktoken", "TiktokenTokenizer"),
}


def open_spec(spec: TokenizerSpec, path: Path) -> Tokenizer:
    """The tokenizer that a file holds. Raises ModelFormatError."""
    if spec.kind in KINDS:
        module, name = KINDS[spec.kind]
        opened: Tokenizer = getattr(import_module(module), name)(spec.data, path)
        return opened
    raise ModelFormatError(
        path, "tokenizer", f"is of kind {spec.kind[:20]!r}, which this version does not know", "convert the model again"
    )


def read_spec(path: str | Path) -> TokenizerSpec:
    """Read a tokenizer file; its kind is told by its first bytes. Raises ModelFormatError."""
    path = Path(path)
    size = check_readable(path)
    if size > MAX_TOKENIZER_BYTES:
        raise ModelFormatError(path, "length", f"is {size} bytes, too many for a tokenizer", "give a tokenizer file")
    data = path.read_bytes()
    if RANKS.match(data, 0, 1 << 13):
        return TokenizerSpec("tiktoken", data)
    if data[:1] == b"{":  # tokenizer.json; no tokenizer.bin has pieces that long, and no protobuf opens so
        return TokenizerSpec("huggingface", data)
    # A SentencePiece protobuf opens with field 1 (its first piece); a tokenizer.bin with a small little-endian u32.
    is_sentencepiece = data[:1] == b"\x0a" and data[1:4] != b"\0\0\0"
    return TokenizerSpec("sentencepiece" if is_sentencepiece else "llama2c", data)


def find_beside(model_path: Path, vocab_size: int) -> tuple[TokenizerSpec, Tokenizer, Path] | None:
    """The tokenizer beside the model, or in its folder, that has its vocabulary: as stored and opened, and its path.

    None where none fits. Raises ModelFormatError where a file that might be it is damaged and no other fits.
    """
    damaged: ModelFormatError | None = None
    # Meta keeps the tokenizer of Llama 1 and 2 beside the models' folders.
    folders = (model_path, model_path.parent) if model_path.is_dir() else (model_path.parent,)
    for path in (folder / name for folder in folders for name in names_beside(vocab_size)):
        try:
            if path.is_file():
                spec = read_spec(path)
                tokenizer = open_spec(spec, path)
                fits = tokenizer.vocab_size <= vocab_size if spec.kind == "huggingface" else False
                if fits or tokenizer.vocab_size == vocab_size:  # Qwen's models have more rows than tokens
                    return spec, tokenizer, path
        except ModelFormatError as error:
            damaged = damaged or error
    if damaged:
        raise damaged
    return None


def names_beside(vocab_size: int) -> tuple[str, ...]:
    """The names under which people keep a tokenizer beside a model, in the order in which they are tried."""
    return "tokenizer.json", "tokenizer.model", "tokenizer.bin", f"tok{vocab_size}.model", f"tok{vocab_size}.bin"


__all__ = ["StreamDecoder", "Tokenizer", "find_beside", "names_beside", "open_spec", "read_spec"]
