"""The one model inside a folder that is none by itself: a file, a split GGUF, or a snapshot of Hugging Face's cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from llamagpu.errors import ModelFormatError, printable
from llamagpu.formats.mapped_file import POINTER_PROBLEM, check_readable

SUFFIXES = (".gguf", ".bin", ".pt", ".pth")
SPLIT = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.gguf", re.ASCII)
SNAPSHOTS, REFS = "snapshots", ("refs", "main")
MOST_NAMED = 8  # in a message


def is_without_weights(names: set[str]) -> bool:
    """Whether a folder with config.json has no weights of its kind: those of GGUF files often have one."""
    return not any(name.endswith((".safetensors", ".index.json")) or name.startswith("pytorch_model") for name in names)


def model_file(folder: Path, names: set[str], is_model: Callable[[Path], bool]) -> Path | None:
    """The one model file of a folder with these names: of a split GGUF the first part. None where there is none.

    is_model: of a file. Raises ModelFormatError where there are several.
    """
    firsts: dict[str, str] = {}  # by what parts of one file have in common
    for name in sorted(names):
        if name.endswith(SUFFIXES) and not name.startswith("tokenizer") and (folder / name).is_file():
            part = SPLIT.fullmatch(name)
            firsts.setdefault(f"{part[1]} of {part[2]}" if part else name, name)
    alone = [name for name in names if name.endswith(".safetensors")]  # without a config.json, which says what it is
    models = [name for name in firsts.values() if is_model(folder / name)] or alone * (len(alone) == 1)
    if len(models) > 1:
        raise ModelFormatError(folder, "path", f"holds several models: {listed(models)}", "give one of them")
    return folder / models[0] if models else None


def has_snapshots(folder: Path, names: set[str]) -> bool:
    """Whether it is a folder models--* of Hugging Face's cache."""
    return SNAPSHOTS in names and (folder / SNAPSHOTS).is_dir()


def snapshot(folder: Path) -> Path:
    """Of a folder in Hugging Face's cache: what refs/main names, or the only one. Raises ModelFormatError."""
    reference = folder.joinpath(*REFS)
    try:
        there = sorted(path.name for path in (folder / SNAPSHOTS).iterdir() if path.is_dir())
        commit = reference.read_bytes()[:100].decode("ascii", "replace").strip() if reference.exists() else None
    except OSError as error:
        raise ModelFormatError(folder, "path", f"cannot be read ({error})", "give the folder of a snapshot") from None
    if commit is not None:
        if commit not in there:
            problem = f"is {printable(commit)!r}, which is not in {SNAPSHOTS}"
            raise ModelFormatError(
                reference, "commit", problem, "download the model again, or give a snapshot's folder"
            )
        return folder / SNAPSHOTS / commit
    if len(there) != 1:
        problem = f"holds several models: {listed(there)}" if there else "is empty"
        raise ModelFormatError(folder / SNAPSHOTS, "path", problem, "give the folder of a snapshot")
    return folder / SNAPSHOTS / there[0]


def pointers(folder: Path) -> tuple[str, ...]:
    """A note of files that Git LFS has not fetched and nobody has asked for; those that are read are refused."""
    found: list[str] = []
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # a file in it was given by its name
        return ()
    for path in paths:
        try:
            if path.is_file():
                check_readable(path)
        except ModelFormatError as error:
            found += [path.name] * (error.problem == POINTER_PROBLEM)
    if not found:
        return ()
    return (f"Git LFS has not fetched {listed(found)}: not needed here; git lfs pull gets what is missing",)


def listed(names: list[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(printable(name[:80]) for name in names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
