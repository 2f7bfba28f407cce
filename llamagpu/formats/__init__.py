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
from llamagpu.formats.model_folder import has_snapshots, is_without_weights, model_file, snapshot
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


def reader_of(path: Path) -> Reader | FolderReader | None:
    """The reader of a file, told by its content. Raises ModelFormatError where it cannot be read."""
    size = check_readable(path)
    with open(path, "rb") as file:
        head = file.read(SNIFF_BYTES)
    return next((reader for reader in READERS if reader.sniff(head, size)), None)


def find_reader(path: Path, is_snapshot: bool = False) -> tuple[Path, Reader | FolderReader | None]:
    """The reader of a file or folder, and what it reads: this, or the file or snapshot inside. Raises ModelFormatError
    where it cannot be read, or where a folder holds several models."""
    if not path.is_dir():
        return path, reader_of(path)
    names = list_folder(path)
    reader = next((reader for reader in FOLDER_READERS if reader.sniff_folder(names)), None)
    if reader is None or (reader is huggingface and is_without_weights(names)):
        if not is_snapshot and has_snapshots(path, names):
            return find_reader(snapshot(path), is_snapshot=True)
        file = model_file(path, names, lambda file: reader_of(file) is not None)
        if file is not None:
            return file, reader_of(file)
    return path, reader


def list_folder(path: Path) -> set[str]:
    try:
        return set(os.listdir(path))
    except OSError as error:
        raise ModelFormatError(path, "path", f"cannot be read ({error.strerror})", "check it") from None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model of any format that is known, told by its content. Raises ModelFormatError.

    A folder that holds one model file, or one snapshot of a model, stands for it.
    """
    path, reader = find_reader(Path(path))
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
    raise ModelFormatError(
        path, "header", "is of no model format that llamagpu reads", "docs/formats.md lists those that it does"
    )


__all__ = ["find_reader", "open_checkpoint"]
