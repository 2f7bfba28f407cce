"""Readers of model files and folders, each a module that knows its own by ``sniff`` or ``sniff_folder``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from llamagpu.checkpoint import Checkpoint
from llamagpu.errors import ModelFormatError
from llamagpu.formats import (
    gguf,
    huggingface,
    llama2c,
    llama2rnn,
    llama2rs,
    meta,
    native,
    rwkv_ggmf,
    simple_llama,
    torch_models,
)  # fmt: skip
from llamagpu.formats.mapped_file import check_readable
from llamagpu.watched_file import watching


class Reader(Protocol):
    """What a reader of files offers. Adding a format is adding a file, and its name below."""

    def sniff(self, head: bytes, size: int) -> bool:
        """Whether a file of ``size`` bytes that begins with ``head`` may be of this format."""
        ...

    def open_checkpoint(self, path: Path) -> Checkpoint:
        """Map the file. Raises ModelFormatError."""
        ...


class FolderReader(Protocol):
    """What a reader of folders offers."""

    def sniff_folder(self, names: set[str]) -> bool:
        """Whether a folder that holds files and folders of these names may be of this format."""
        ...

    def open_checkpoint(self, path: Path) -> Checkpoint:
        """Map the files in it. Raises ModelFormatError."""
        ...


# most certain signature first; llama2rnn tells its files from llama2c's by their length
READERS: tuple[Reader, ...] = (gguf, rwkv_ggmf, native, simple_llama, torch_models, llama2rs, llama2rnn, llama2c)
FOLDER_READERS: tuple[FolderReader, ...] = (meta, huggingface)
SNIFF_BYTES = 64
LFS_POINTER = b"version https://git-lfs."  # a few lines of text that stand for a file in a repository


def reader_of(path: Path) -> Reader | FolderReader | None:
    """The reader of a file or folder, told by its content. Raises ModelFormatError where it cannot be read."""
    if path.is_dir():
        try:
            names = set(os.listdir(path))
        except OSError as error:
            raise ModelFormatError(path, "path", f"cannot be read ({error.strerror})", "check it") from None
        return next((reader for reader in FOLDER_READERS if reader.sniff_folder(names)), None)
    size = check_readable(path)
    with open(path, "rb") as file:
        head = file.read(SNIFF_BYTES)
    return next((reader for reader in READERS if reader.sniff(head, size)), None)


def is_model(path: Path) -> bool:
    """Whether a file or folder looks like a model. Raises ModelFormatError where it cannot be read."""
    return reader_of(path) is not None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model of any format that is known, told by its content. Raises ModelFormatError."""
    path = Path(path)
    reader = reader_of(path)
    if reader is not None:
        with watching() as files:
            checkpoint = reader.open_checkpoint(path)
        checkpoint = replace(checkpoint, files=tuple(files))
        checkpoint.check_unchanged()
        return checkpoint
    if path.is_dir():
        raise ModelFormatError(path, "path", "is a folder without a model in it", "give a model file or its folder")
    if path.name in ("config.json", "params.json", "model.safetensors.index.json"):
        raise ModelFormatError(path, "header", "describes a model and is none", "give the folder that it is in")
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelFormatError(path, "header", "is a pointer of Git LFS, not the file itself", "run git lfs pull")
    raise ModelFormatError(
        path, "header", "is of no model format that llamagpu reads", "docs/formats.md lists those that it does"
    )


__all__ = ["is_model", "open_checkpoint"]
