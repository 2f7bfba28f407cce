"""Tokenizers: one file per kind, one protocol (``Tokenizer``); adding one is adding a file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import check_readable
from llamagpu.tokenizers.base import StreamDecoder, Tokenizer

MAX_TOKENIZER_BYTES = 1 << 28
# Kind to module and class, which takes the bytes and the path of its file. Modules are imported when they are needed:
# some of their libraries cost a tenth of a second.
KINDS = {
    "gguf": ("llamagpu.tokenizers.gguf", "open_gguf_tokenizer"),
    "llama2c": ("llamagpu.tokenizers.llama2c", "Llama2cTokenizer"),
    "sentencepiece": ("llamagpu.tokenizers.sentencepiece", "SentencePieceTokenizer"),
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
    # A SentencePiece protobuf opens with field 1 (its first piece); a tokenizer.bin with a small little-endian u32.
    is_sentencepiece = data[:1] == b"\x0a" and data[1:4] != b"\0\0\0"
    return TokenizerSpec("sentencepiece" if is_sentencepiece else "llama2c", data)


def find_beside(model_path: Path, vocab_size: int) -> tuple[TokenizerSpec, Tokenizer, Path] | None:
    """The tokenizer in the model's folder that has the model's vocabulary, as stored and opened, and its path.

    None where none fits. Raises ModelFormatError where a file that might be it is damaged and no other fits.
    """
    damaged: ModelFormatError | None = None
    for name in names_beside(vocab_size):
        path = model_path.parent / name
        try:
            if path.is_file():
                spec = read_spec(path)
                tokenizer = open_spec(spec, path)
                if tokenizer.vocab_size == vocab_size:
                    return spec, tokenizer, path
        except ModelFormatError as error:
            damaged = damaged or error
    if damaged:
        raise damaged
    return None


def names_beside(vocab_size: int) -> tuple[str, ...]:
    """The names under which people keep a tokenizer beside a model, in the order in which they are tried."""
    return "tokenizer.model", "tokenizer.bin", f"tok{vocab_size}.model", f"tok{vocab_size}.bin"


__all__ = ["StreamDecoder", "Tokenizer", "find_beside", "names_beside", "open_spec", "read_spec"]
