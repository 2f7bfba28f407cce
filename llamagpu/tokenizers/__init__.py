"""Tokenizers: one file per kind, one protocol (``Tokenizer``); adding one is adding a file."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from llamagpu.checkpoint import TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import check_readable
from llamagpu.tokenizers import gpt2_pair, rwkv_world, special_tokens
from llamagpu.tokenizers.base import StreamDecoder, Tokenizer

MAX_TOKENIZER_BYTES = 1 << 28
RANKS = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")  # the first line of a tiktoken file
# The lines of a tiktoken file tell whose it is: it holds neither how text is split nor the control tokens.
KINDS_BY_RANKS = {50256: "gpt2", 151643: "qwen_tiktoken"}
OTHERS_BY_RANKS = {100256: "cl100k_base", 199998: "o200k_base", 151329: "GLM-4's", 163584: "Kimi K2's"}
# Kinds whose models may have more rows than tokens, and how many more, where no name says that the two belong together.
PADDED, MOST_PADDING = ("gpt2", "huggingface", "qwen_tiktoken", "rwkv_world"), 511
OWN_NAME = "tokenizer.json"  # lies in the model's own folder, as Qwen's, of some 300 rows more
OTHER_NAMES = ("tekken.json", "qwen.tiktoken", "rwkv_vocab_*.txt", "20B_tokenizer.json", "encoder.json", "vocab.json",
               "gpt2.tiktoken")  # fmt: skip
HEAD = 1 << 13  # bytes that tell a kind
TEKKEN = re.compile(rb'"vocab"\s*:\s*\[\s*\{\s*"(rank|token_bytes|token_str)"')  # where tokenizer.json has an object
# Kind to module and class, which takes the bytes and the path of its file. Modules are imported when they are needed:
# some of their libraries cost a tenth of a second.
KINDS = {
    "bytes": ("llamagpu.tokenizers.bytes", "BytesTokenizer"),
    "gguf": ("llamagpu.tokenizers.gguf", "open_gguf_tokenizer"),
    "gpt2": ("llamagpu.tokenizers.gpt2", "Gpt2Tokenizer"),
    "huggingface": ("llamagpu.tokenizers.huggingface", "HuggingFaceTokenizer"),
    "llama2c": ("llamagpu.tokenizers.llama2c", "Llama2cTokenizer"),
    "qwen_tiktoken": ("llamagpu.tokenizers.qwen_tiktoken", "QwenTiktokenTokenizer"),
    "rwkv_world": ("llamagpu.tokenizers.rwkv_world", "RWKVWorldTokenizer"),
    "sentencepiece": ("llamagpu.tokenizers.sentencepiece", "SentencePieceTokenizer"),
    "sentencepiece-greedy": ("llamagpu.tokenizers.greedy", "GreedyTokenizer"),
    "tekken": ("llamagpu.tokenizers.tekken", "TekkenTokenizer"),
    "tiktoken": ("llamagpu.tokenizers.tiktoken", "TiktokenTokenizer"),
}


def open_spec(spec: TokenizerSpec, path: Path) -> Tokenizer:
    """The tokenizer that a file holds, with its special tokens. Raises ModelFormatError."""
    if spec.kind in KINDS:
        module, name = KINDS[spec.kind]
        opened: Tokenizer = getattr(import_module(module), name)(spec.data, path)
        opened.facts = spec.facts
        special_tokens.settle(opened, spec.facts)
        return opened
    raise ModelFormatError(
        path, "tokenizer", f"is of kind {spec.kind[:20]!r}, which this version does not know", "convert the model again"
    )


def read_spec(path: str | Path) -> TokenizerSpec:
    """Read a tokenizer file, or GPT-2's two; its kind is told by its first bytes. Raises ModelFormatError."""
    path = Path(path)
    size = check_readable(path)
    if size > MAX_TOKENIZER_BYTES:
        raise ModelFormatError(path, "length", f"is {size} bytes, too many for a tokenizer", "give a tokenizer file")
    data = path.read_bytes()
    if RANKS.match(data, 0, HEAD):
        return TokenizerSpec(kind_of_ranks(path, data.rstrip().count(b"\n") + 1), data)
    if rwkv_world.FIRST_LINE.match(data, 0, HEAD):
        return TokenizerSpec("rwkv_world", data)
    if data.startswith(gpt2_pair.MERGES) or gpt2_pair.IDS.match(data, 0, HEAD):
        return TokenizerSpec("gpt2", gpt2_pair.ranks_of_pair(path))
    if data[:1] == b"{" and TEKKEN.search(data):
        return TokenizerSpec("tekken", data)
    if data[:1] == b"{":  # tokenizer.json; no tokenizer.bin has pieces that long, and no protobuf opens so
        return TokenizerSpec("huggingface", data)
    # A SentencePiece protobuf opens with field 1 (its first piece); a tokenizer.bin with a small little-endian u32.
    is_sentencepiece = data[:1] == b"\x0a" and data[1:4] != b"\0\0\0"
    return TokenizerSpec("sentencepiece" if is_sentencepiece else "llama2c", data)


def kind_of_ranks(path: Path, n_ranks: int) -> str:
    """Whose tiktoken file has so many ranks; Llama 3's where nobody else's is known. Raises ModelFormatError."""
    if n_ranks in OTHERS_BY_RANKS:
        problem = f"is a tiktoken file of {n_ranks} ranks: {OTHERS_BY_RANKS[n_ranks]}, which this version does not read"
        raise ModelFormatError(path, "tokenizer", problem, "give the model's tokenizer.json")
    return KINDS_BY_RANKS.get(n_ranks, "tiktoken")


def find_beside(model_path: Path, vocab_size: int) -> tuple[TokenizerSpec, Tokenizer, Path] | None:
    """The tokenizer beside the model, or in its folder, that has its vocabulary: as stored and opened, and its path.

    None where none fits. Raises ModelFormatError where a file that might be it is damaged and no other fits.
    """
    damaged: ModelFormatError | None = None
    # Meta keeps the tokenizer of Llama 1 and 2 beside the models' folders.
    folders = (model_path, model_path.parent) if model_path.is_dir() else (model_path.parent,)
    for path in (path for folder in folders for name in names_beside(vocab_size) for path in sorted(folder.glob(name))):
        try:
            if path.is_file():
                spec = read_spec(path)
                tokenizer = open_spec(spec, path)
                is_own = path.name == OWN_NAME and path.parent == model_path  # beside a file anybody's may lie
                most = 0 if spec.kind not in PADDED else vocab_size if is_own else MOST_PADDING
                if 0 <= vocab_size - tokenizer.vocab_size <= most:
                    return spec, tokenizer, path
        except ModelFormatError as error:
            damaged = damaged or error
    if damaged:
        raise damaged
    return None


def names_beside(vocab_size: int) -> tuple[str, ...]:
    """The names under which people keep a tokenizer beside a model, in the order in which they are tried."""
    sized = f"tok{vocab_size}.model", f"tok{vocab_size}.bin"
    return OWN_NAME, "tokenizer.model", "tokenizer.bin", *sized, *OTHER_NAMES


__all__ = ["StreamDecoder", "Tokenizer", "find_beside", "names_beside", "open_spec", "read_spec"]
