"""Which safetensors files of a folder hold a model: one, or the shards that an index names."""

from __future__ import annotations

import os
from pathlib import Path

from llamagpu.errors import ModelFormatError
from llamagpu.formats.json_file import read_json_object
from llamagpu.formats.safetensors_file import SafetensorsFile

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOAD = "download the model again, all files of it"


def weight_files(folder: Path, only: str | None) -> dict[str, SafetensorsFile]:
    """The opened file of each tensor. only: the name of one that was asked for. Raises ModelFormatError."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelFormatError(folder, "path", f"cannot be read ({error.strerror})", "check it") from None
    weight_map = read_index(folder / INDEX) if INDEX in names else {}
    if only is not None and only not in weight_map.values():
        return whole_file(folder / only)
    if WEIGHTS in names and only in (None, WEIGHTS):
        return whole_file(folder / WEIGHTS)
    if weight_map:
        return shards(folder, weight_map)
    files = [name for name in names if name.endswith(".safetensors")]
    if len(files) == 1:  # earlier GPTQ exporters named it as they liked
        return whole_file(folder / files[0])
    if files:
        problem = f"is missing, as is {WEIGHTS}: which of {len(files)} .safetensors files belong together?"
        raise ModelFormatError(folder, INDEX, problem, "give one of the files, or download the index")
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        raise ModelFormatError(
            folder, WEIGHTS, "is missing: the weights are PyTorch pickles (pytorch_model*.bin), which may run code",
            "convert them to safetensors: save_pretrained(FOLDER, safe_serialization=True) of transformers does it",
        )  # fmt: skip
    raise ModelFormatError(folder, WEIGHTS, "is missing: there are no weights beside config.json", DOWNLOAD)


def whole_file(path: Path) -> dict[str, SafetensorsFile]:
    file = SafetensorsFile(path, DOWNLOAD)
    return dict.fromkeys(file.entries, file)


def read_index(path: Path) -> dict[str, str]:
    """Tensor to name of its shard, which must be a plain name. Raises ModelFormatError."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(path, "weight_map", "is missing or no object of tensors and files", DOWNLOAD)
    for name, file in weight_map.items():
        plain = isinstance(file, str) and file.isprintable() and not set("/\\:") & set(file)
        if not plain or not file.endswith(".safetensors") or len(file) > 200:
            problem = f"is in {str(file)[:80]!r}, which is no name of a .safetensors file in this folder"
            raise ModelFormatError(path, name[:80], problem, DOWNLOAD)
    return weight_map


def shards(folder: Path, weight_map: dict[str, str]) -> dict[str, SafetensorsFile]:
    """Each tensor in one shard, the one that the index names. Raises ModelFormatError."""
    files: dict[str, SafetensorsFile] = {}
    for name in dict.fromkeys(weight_map.values()):
        path = folder / name
        if not path.exists():
            raise ModelFormatError(path, "path", f"is missing: a shard that {INDEX} names", "download it, too")
        file = SafetensorsFile(path, DOWNLOAD)
        for tensor in file.entries:
            if tensor in files:
                raise ModelFormatError(path, tensor[:80], f"is in {files[tensor].path.name}, too", DOWNLOAD)
            if weight_map.get(tensor) != name:
                raise ModelFormatError(path, tensor[:80], f"is there, but not by {INDEX}", DOWNLOAD)
            files[tensor] = file
    for tensor, name in weight_map.items():
        if tensor not in files:
            raise ModelFormatError(folder / name, tensor[:80], f"is missing: {INDEX} says that it is there", DOWNLOAD)
    return files
