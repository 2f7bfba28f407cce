"""Models of the Hugging Face Hub by name, ``hf:owner/name``: the only part of llamagpu that uses the network.

huggingface_hub downloads them into its cache, which other programs share. The name of a branch is written there (in
``refs``) when all files of the model are there, so what a broken download leaves is never taken for a model.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llamagpu.errors import HubError, LlamaGPUError, UsageError, first_line
from llamagpu.formats.atomic import atomic_write
from llamagpu.formats.huggingface_files import read_index
from llamagpu.formats.model_folder import SUFFIXES
from llamagpu.hub_files import Choice, choose
from llamagpu.terminal import ENDING, handled, human_bytes, say

PREFIX = "hf:"
REPOSITORY = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
NAME = re.compile(rf"(?P<repository>{REPOSITORY})(@(?P<revision>[^:@]+))?(:(?P<file>.+))?", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")
MAIN = "main"
SECONDS = 10.0  # to wait for an answer before the cache is asked
SPARE_BYTES = 1 << 24  # that a disk keeps free
INSTALL = 'pip install "llamagpu[hub]"'
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Name:
    """What ``hf:owner/name@revision:file`` says."""

    repository: str
    revision: str
    file: str | None

    @property
    def source(self) -> str:
        """Without the file."""
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision != MAIN else "")


@dataclass(frozen=True)
class Remote:
    """A repository at one commit. blobs: of each file its bytes and its name in the cache, as far as they are told."""

    commit: str
    blobs: dict[str, tuple[int | None, str | None]]


def parse(text: str) -> Name:
    """Read ``hf:owner/name``, with ``@revision`` and ``:file`` after it; hf: may be left out. Raises UsageError."""
    found = NAME.fullmatch(text.removeprefix(PREFIX))
    revision = (found["revision"] if found else None) or MAIN
    if not found or not revision.isprintable() or {"", ".", ".."} & set(revision.split("/")):
        raise UsageError(
            f"{text[:200]!r} is not a name of the Hugging Face Hub: give hf:owner/name or hf:owner/name:FILE"
        )
    return Name(found["repository"], revision, found["file"])


def looks_like_a_name(text: str) -> bool:
    """Whether a text that is not a path, ``owner/name`` or ``owner/name:file``, may be meant for the hub."""
    found = NAME.fullmatch(text)
    return bool(found) and not text.endswith((*SUFFIXES, ".safetensors")) and not Path(text).parent.is_dir()


def fetch(text: str) -> Path:
    """Path of a model in the cache, its file or folder, after what the cache does not have is downloaded.

    text: ``hf:owner/name``, with ``@revision`` and ``:file`` after it. Where the hub cannot be reached or refuses, the
    copy in the cache is used. Raises UsageError for a wrong name or choice of file, HubError where there is no copy.
    """
    name, library = parse(text), import_library()
    try:
        with in_words(name):
            remote = look_up(library, name)
    except HubError as error:
        return from_cache(library, name, error)
    folder = cache_folder(library, name)
    snapshot = folder / "snapshots" / remote.commit

    def shards_of(index: str) -> list[str]:
        return shards(get(library, name, remote.commit, index))

    with in_words(name), handled(ENDING, end):
        chosen = choose(name.source, remote.blobs, name.file, shards_of)
        announce(library, name, remote, chosen)
        for file in chosen.files:
            get(library, name, remote.commit, file)
        remember(folder, name.revision, remote.commit)
    return snapshot / chosen.path


def end(number: int, frame: object) -> NoReturn:
    """A signal that ends the program: huggingface_hub removes the file that is not finished."""
    raise SystemExit(128 + number)


def import_library() -> Any:
    """huggingface_hub, which shows how far a download is and says nothing else. Raises UsageError."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils.logging
    except ImportError:
        raise UsageError(f"models of the Hugging Face Hub need another package: {INSTALL}") from None
    library: Any = huggingface_hub  # loaded where it is used, so its types are not at hand
    if "HF_HUB_VERBOSITY" not in os.environ:
        library.utils.logging.set_verbosity_error()
    return library


def look_up(library: Any, name: Name) -> Remote:
    if library.constants.HF_HUB_OFFLINE:
        raise HubError(f"{name.source}: HF_HUB_OFFLINE is set, so nothing is downloaded")
    api = library.HfApi(endpoint=endpoint())
    found = api.model_info(name.repository, revision=name.revision, files_metadata=True, timeout=SECONDS)
    if not COMMIT.fullmatch(str(found.sha)):
        raise HubError(f"{name.source}: the answer of {where(library)} does not name a commit")
    siblings = {file.rfilename: (file.size, blob_name(file)) for file in found.siblings or ()}
    return Remote(found.sha, siblings)


def blob_name(file: Any) -> str | None:
    """The cache names files by their content: by SHA-256 where they are large, else by what git calls them."""
    name = getattr(file.lfs, "sha256", None) or file.blob_id
    return str(name) if name else None


def get(library: Any, name: Name, commit: str, file: str) -> Path:
    """One file, downloaded if the cache does not have it, with a bar on a terminal."""
    return Path(library.hf_hub_download(name.repository, file, revision=commit, endpoint=endpoint()))


def shards(index: Path) -> list[str]:
    return sorted(set(read_index(index).values()))


def announce(library: Any, name: Name, remote: Remote, chosen: Choice) -> None:
    """Say what is to be downloaded. Raises HubError where the disk does not have the room."""
    folder = cache_folder(library, name)
    missing: dict[str, int] = {}
    for file in chosen.files:
        size, blob = remote.blobs[file]
        has_blob = blob is not None and (folder / "blobs" / blob).exists()
        if not has_blob and not (folder / "snapshots" / remote.commit / file).exists():
            missing[file] = size or 0
    needed = sum(missing.values())
    if not missing:
        return
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if needed + SPARE_BYTES > free:
        raise HubError(
            f"{name.source} needs {human_bytes(needed)}, and the disk of {folder.parent} has {human_bytes(free)} free:"
            " make room, or set HF_HOME to a folder on another disk"
        )
    count = f"{len(missing)} file{'s' * (len(missing) > 1)}"
    say(f"downloading {name.source}: {count}, {human_bytes(needed)}, to {folder}")


def cache_folder(library: Any, name: Name) -> Path:
    """Of the repository, in huggingface_hub's cache."""
    return Path(library.constants.HF_HUB_CACHE).expanduser() / f"models--{name.repository.replace('/', '--')}"


def remember(folder: Path, revision: str, commit: str) -> None:
    """Write down which commit a branch or tag stood for, as huggingface_hub does."""
    reference = folder / "refs" / revision
    if not COMMIT.fullmatch(revision) and commit_of(folder, revision) != commit:
        reference.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(reference) as file:
            file.write(commit.encode())


def commit_of(folder: Path, revision: str) -> str | None:
    """Which commit a revision stood for when it was downloaded last."""
    if COMMIT.fullmatch(revision):
        return revision
    try:
        text = (folder / "refs" / revision).read_bytes()[:100].decode("ascii", "replace").strip()
    except OSError:
        return None
    return text if COMMIT.fullmatch(text) else None


def from_cache(library: Any, name: Name, error: HubError) -> Path:
    """What was downloaded before. Raises ``error``, why the hub is not used, if it is not complete."""
    folder = cache_folder(library, name)
    commit = commit_of(folder, name.revision)
    snapshot = folder / "snapshots" / (commit or "none")
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    if not names:
        raise HubError(f"{error}; the cache does not hold it") from None
    try:
        chosen = choose(name.source, names, name.file, lambda index: shards(snapshot / index))
    except UsageError as choice:
        raise HubError(f"{error}; in the cache, {choice}") from None
    if not library.constants.HF_HUB_OFFLINE:
        say(f"{error}; using the copy in the cache")
    return snapshot / chosen.path


def endpoint() -> str | None:
    """HF_ENDPOINT, which names another hub; huggingface_hub reads it only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def where(library: Any) -> str:
    return endpoint() or str(library.constants.ENDPOINT)


@contextmanager
def in_words(name: Name) -> Iterator[None]:
    """Turn whatever a download raises into a HubError: one line, which says what to do."""
    try:
        yield
    except (LlamaGPUError, MemoryError):
        raise
    except Exception as error:  # of the HTTP library, which changes from version to version, too
        raise HubError(f"{name.source}: {explain(import_library(), name, error)}") from None


def explain(library: Any, name: Name, error: BaseException) -> str:
    """What went wrong and what to do, in one line."""
    kinds, hub = library.errors, where(library)
    if isinstance(error, kinds.LocalEntryNotFoundError) and error.__cause__ is not None:  # why it looked in the cache
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, kinds.GatedRepoError):
        page = f"{hub}/{name.repository}"
        return f"access is granted on request: ask for it at {page}, then set HF_TOKEN or run `hf auth login`"
    if isinstance(error, kinds.RepositoryNotFoundError):
        return f"{hub} does not have this model, or it is private: check the name, or set HF_TOKEN"
    if isinstance(error, kinds.RevisionNotFoundError):
        return f"it does not have a revision {name.revision!r}: give a branch, a tag or a commit"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk of {library.constants.HF_HUB_CACHE} is full: make room, or set HF_HOME to another disk"
    if status in (401, 403):
        return f"{hub} refuses access (status {status}): check HF_TOKEN, and that its account may read this model"
    if status == 404:
        return f"{hub} does not have a file of it ({first_line(error)})"
    if status is not None:
        return f"{hub} answers with status {status}: try again later"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"the cache cannot be written: {error.strerror}: {error.filename}"
    return f"{hub} cannot be reached, or the connection broke ({type(error).__name__}: {first_line(error)[:200]})"
