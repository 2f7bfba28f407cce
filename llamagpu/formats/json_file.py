"""Small JSON files beside a model's weights, read with limits: they are hostile until checked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import check_readable

MAX_BYTES = 1 << 22  # the index of a model of 1024 layers is smaller
MAX_VALUES = 1 << 17  # commas and brackets, before anything builds objects from them
MAX_DEPTH = 32  # so that nothing that walks over it, or prints it, runs out of stack
REMEDY = "the file is damaged or not what its name says: download or export it again"


def read_text(path: Path) -> str:
    """A UTF-8 file of at most 4 MiB. Raises ModelFormatError."""
    size = check_readable(path)
    if size > MAX_BYTES:
        raise ModelFormatError(path, "length", f"is {size} bytes, too many for a {path.name[-40:]}", REMEDY)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelFormatError(path, "text", f"is no UTF-8 at byte {error.start}", REMEDY) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. No name may stand in an object twice. Raises ModelFormatError."""
    text = read_text(path)
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise ModelFormatError(path, "JSON", f"holds more values than any {path.name[-40:]}", REMEDY)

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ModelFormatError(path, twice[:80], "is there twice", REMEDY)
        return values

    try:
        value = json.loads(text, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(path, "JSON", f"is no valid JSON ({error})", REMEDY) from None
    if not isinstance(value, dict):
        raise ModelFormatError(path, "JSON", "is no object of names and values", REMEDY)
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in children(outer)]
    if level:
        raise ModelFormatError(path, "JSON", f"is nested deeper than {MAX_DEPTH} levels", REMEDY)
    return value


def children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
