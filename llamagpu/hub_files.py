"""Which files of a repository of the Hugging Face Hub make up one model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from llamagpu.errors import UsageError, printable
from llamagpu.formats.huggingface_files import INDEX, WEIGHTS
from llamagpu.formats.meta import SHARD as META_SHARD
from llamagpu.formats.model_folder import SPLIT, SUFFIXES
from llamagpu.tokenizers import OTHER_NAMES, OWN_NAME

# What the readers look for beside weights, in each format
CONFIG, PARAMS = "config.json", "params.json"
BESIDE = (
    CONFIG, PARAMS, "generation_config.json", "quantize_config.json", "quant_config.json", OWN_NAME, "tokenizer.model",
    "tokenizer.bin", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "merges.txt", *OTHER_NAMES,
)  # fmt: skip
# Files with the suffix of a model that are not one: projectors of pictures, copies of safetensors, states of a training
NO_MODELS = ("mmproj*", "*imatrix*", "pytorch_model*", "training_args*", "optimizer*", "scheduler*", "rng_state*",
             "tokenizer*", "tok[0-9]*.bin")  # fmt: skip
MOST_NAMED = 60  # in a message


Shards = Callable[[str], Iterable[str]]  # from the path of an index to the names of the shards beside it


@dataclass(frozen=True)
class Choice:
    """path: of the model inside the repository, a file or a folder ("" is the whole). files: all that it needs."""

    path: str
    files: tuple[str, ...]


def choose(source: str, names: Iterable[str], wanted: str | None, shards_of: Shards) -> Choice:
    """The files of one model among ``names``. Raises UsageError, which lists what there is.

    source: how the user names the repository, for messages. wanted: a file, a folder, or a part of a file's name such
    as Q4_K_M; None takes the only model.
    """
    there = sorted(name for name in names if is_plain(name))
    folder = f"{wanted.rstrip('/')}/" if wanted else ""
    if wanted is None:
        chosen = model_of(source, "", there, shards_of)
    elif any(name.startswith(folder) for name in there):
        chosen = model_of(f"{source}:{wanted}", folder, there, shards_of)
    else:
        file = wanted if wanted in there else match(source, wanted, model_files(there))
        chosen = files_of(file, there, shards_of)
    missing = [name for name in chosen.files if name not in there]
    if missing:
        raise UsageError(f"{source} is not complete: it does not have {listed(missing)}")
    return chosen


def is_plain(name: str) -> bool:
    """Whether a repository's name of a file leads to a place inside the repository."""
    parts = name.split("/")
    return name.isprintable() and not set(name) & set("\\:") and not any(part in ("", ".", "..") for part in parts)


def model_of(source: str, folder: str, there: list[str], shards_of: Shards) -> Choice:
    """The only model of a folder: safetensors or Meta's files as a whole, or one file, which may lie deeper."""
    here = inside(folder, there)
    tensors = [name for name in here if name.endswith(".safetensors")]
    weights: list[str] = []
    if CONFIG in here and WEIGHTS in here:
        weights = [WEIGHTS]
    elif CONFIG in here and INDEX in here:
        weights = [INDEX, *shards_of(folder + INDEX)]
    elif CONFIG in here and len(tensors) == 1:
        weights = tensors
    elif PARAMS in here and not tensors:
        weights = [name for name in here if META_SHARD.fullmatch(name)]
    if weights:
        return Choice(folder.rstrip("/"), in_folder(folder, [*beside(here), *weights]))
    models = model_files([name for name in there if name.startswith(folder)])
    if not models:
        known = "safetensors with config.json, GGUF, ...; see docs/formats.md"
        files = listed([name for name in there if name.startswith(folder)])
        raise UsageError(f"{source} does not hold a model that llamagpu reads ({known}): {files or 'it is empty'}")
    if len(models) > 1:
        how = f"{source.rstrip('/')}{'/' if folder else ':'}FILE"
        names = listed([name.removeprefix(folder) for name in models])
        raise UsageError(f"{source} holds {len(models)} models, give one as {how}: {names}")
    return files_of(models[0], there, shards_of)


def model_files(names: list[str]) -> list[str]:
    """The files that are models by themselves; of a split GGUF the first part."""
    firsts: dict[str, str] = {}
    for name in names:
        file = name.rpartition("/")[2]
        if name.endswith((*SUFFIXES, ".safetensors")) and not any(fnmatchcase(file.lower(), no) for no in NO_MODELS):
            split = SPLIT.fullmatch(name)
            firsts.setdefault(f"{split[1]} of {split[2]}" if split else name, name)
    return list(firsts.values())


def match(source: str, wanted: str, models: list[str]) -> str:
    """The one model whose name holds ``wanted``, as llama.cpp and ollama take it: Q4_K_M, in any case of letters."""
    pattern = re.compile(rf"(?<![a-z0-9]){re.escape(wanted.lower())}(?![a-z0-9_])")
    matching = [name for name in models if pattern.search(name.lower())]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{source}:{wanted} fits {len(matching)} files, give one of them: {listed(matching)}")
    known = f"its models are {listed(models)}" if models else "and no other model"
    raise UsageError(f"{source} does not have a file {wanted!r}: {known}")


def files_of(file: str, there: list[str], shards_of: Shards) -> Choice:
    """What a file needs of those beside it. A shard of safetensors stands for the whole folder."""
    folder = file[: file.rfind("/") + 1]
    here, name = inside(folder, there), file.removeprefix(folder)
    if name.endswith(".gguf"):  # the tokenizer is inside
        split = SPLIT.fullmatch(name)
        parts = [
            other for other in here if split and (part := SPLIT.fullmatch(other)) and part.groups() == split.groups()
        ]
        return Choice(file, in_folder(folder, parts or [name]))
    shards = list(shards_of(folder + INDEX)) if name.endswith(".safetensors") and INDEX in here else []
    if name in shards:
        return Choice(folder.rstrip("/"), in_folder(folder, [*beside(here), INDEX, *shards]))
    return Choice(file, in_folder(folder, [*beside(here), name]))


def inside(folder: str, there: list[str]) -> list[str]:
    """The names of the files right in a folder, which ends with / or is empty."""
    names = [name.removeprefix(folder) for name in there if name.startswith(folder)]
    return [name for name in names if "/" not in name]


def in_folder(folder: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(folder + name for name in dict.fromkeys(names))


def beside(names: list[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, known) for known in BESIDE)]


def listed(names: list[str]) -> str:
    rest = len(names) - MOST_NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(printable(name[:120]) for name in names[:MOST_NAMED]) + more
