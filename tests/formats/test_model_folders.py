"""Folders that hold one model file, folders of Hugging Face's cache, and pointers of Git LFS in place of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llamagpu
from llamagpu import inspect_commands
from llamagpu.errors import ModelFormatError
from llamagpu.formats import find_reader, native, open_checkpoint
from llamagpu.formats.mapped_file import LFS_POINTER
from llamagpu.model_text import open_text
from tests.formats.gguf_files import File, small_model
from tests.formats.test_gguf import split
from tests.references.make_huggingface import LLAMA, TOKENS, build, random_tensors, write_folder
from tests.tokenizers.test_gguf import byte_level_keys
from tests.tokenizers.tokenizer_json import llama3_like

POINTER = LFS_POINTER + b"example/spec/v1\noid sha256:4d7a\nsize 135\n"
NAME = "llama gqa tied"


def logits_of(path: Path) -> np.ndarray:
    return llamagpu.load(path, device="cpu").logits(TOKENS)


def a_gguf(folder: Path) -> None:
    (folder / "model.Q8_0.gguf").write_bytes(small_model(kind="Q8_0")[0].to_bytes())


def a_split_gguf(folder: Path) -> None:
    split(small_model()[0], folder)


def a_model_bin(folder: Path) -> None:
    native.write(folder / "model.bin", open_checkpoint(build(NAME, folder.with_name("source"))))


@pytest.mark.parametrize("write", [a_gguf, a_split_gguf, a_model_bin])
@pytest.mark.parametrize("with_config", [False, True])
def test_a_folder_with_one_model_file(write: Callable[[Path], None], with_config: bool, tmp_path: Path) -> None:
    """Those who offer GGUF files often keep a config.json beside them."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder)
    file = min(folder.iterdir())
    (folder / "README.md").write_text("a model")
    (folder / "tokenizer.bin").write_bytes(np.arange(1, 40, dtype="<i4").tobytes())  # as plausible as a llama2.c file
    if with_config:
        (folder / "config.json").write_text('{"model_type": "llama"}')
    assert find_reader(folder)[1] is not None
    assert open_checkpoint(folder).path == file
    np.testing.assert_array_equal(logits_of(folder), logits_of(file))


def test_several_models_are_named(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(small_model()[0].to_bytes())
    with pytest.raises(ModelFormatError, match=r"holds several models: a\.gguf, b\.gguf; give one of them"):
        open_checkpoint(tmp_path)
    for i in range(20):
        (tmp_path / f"c{i}\n.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelFormatError, match=r"a\.gguf, b\.gguf, c0\\n\.gguf.* and 14 more") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.problem.isprintable()


def test_a_split_model_without_its_first_part(tmp_path: Path) -> None:
    split(small_model()[0], tmp_path)[0].unlink()
    with pytest.raises(ModelFormatError, match="give its first part"):
        open_checkpoint(tmp_path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "data.bin").write_text("no model, by its content, whatever it is called")
    assert find_reader(tmp_path)[1] is None
    with pytest.raises(ModelFormatError, match="a folder without a model in it"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def cached(root: Path, *commits: str) -> Path:
    """A folder as huggingface_hub keeps it: files are links to blobs, under the name of a commit."""
    for i, commit in enumerate(commits):
        source, folder = build(NAME, root / f"source{i}"), root / "models--a--b" / "snapshots" / commit
        folder.mkdir(parents=True)
        blobs = root / "models--a--b" / "blobs"
        blobs.mkdir(exist_ok=True)
        for file in source.iterdir():
            blob = blobs / f"{commit}{file.name}"
            blob.write_bytes(file.read_bytes())
            (folder / file.name).symlink_to(Path("../../blobs") / blob.name)
    return root / "models--a--b"


def point_to(root: Path, commit: str) -> None:
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)


def test_a_folder_of_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = cached(tmp_path, "0123abcd")
    assert open_checkpoint(root).path == root / "snapshots" / "0123abcd"  # the only one
    point_to(root, "0123abcd\n")
    np.testing.assert_array_equal(logits_of(root), logits_of(tmp_path / "source0"))
    (root / "snapshots" / "0123abcd" / "tokenizer.json").write_bytes(llama3_like())
    inspect_commands.info(str(root))
    assert "Hugging Face" in capsys.readouterr().out


def test_the_snapshot_that_main_names(tmp_path: Path) -> None:
    root = cached(tmp_path, "aaaa", "bbbb")
    with pytest.raises(ModelFormatError, match=r"snapshots: path: holds several models: aaaa, bbbb; give the folder"):
        open_checkpoint(root)
    for commit in ("aaaa", "bbbb"):
        point_to(root, commit)
        assert open_checkpoint(root).path.name == commit
    for commit in ("cccc", "../../..", "", "\x1b[2J\xff" * 50):
        point_to(root, commit)
        with pytest.raises(ModelFormatError, match=r"main: commit: is .* not in snapshots") as caught:
            open_checkpoint(root)
        assert caught.value.problem.isprintable()


def test_a_snapshot_of_a_gguf_file(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "aaaa"
    folder.mkdir(parents=True)
    a_gguf(folder)
    assert open_checkpoint(tmp_path).path == folder / "model.Q8_0.gguf"


def test_the_tokens_of_a_folder_are_those_of_the_file_that_it_stands_for(tmp_path: Path) -> None:
    """Many folders of GGUF files keep the tokenizer of the model that they were made from."""
    folder = tmp_path / "snapshots" / "aaaa"
    folder.mkdir(parents=True)
    file, small = folder / "model.gguf", small_model("qwen2")[0]
    file.write_bytes(File({**small.keys, **byte_level_keys("qwen2")}, small.tensors).to_bytes())
    expected = open_text(file).tokenizer.encode("the cat")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(llama3_like())
    for path in (folder, tmp_path):
        assert open_text(path).tokenizer.encode("the cat") == expected
    file.unlink()
    for path in (folder, tmp_path):
        assert open_text(path).tokenizer.encode("the cat")[0] == 500, "without a model its own"


def test_snapshots_within_one_another_end(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "aaaa").symlink_to(tmp_path)
    with pytest.raises(ModelFormatError, match="a folder without a model in it"):
        open_checkpoint(tmp_path)
    (tmp_path / "snapshots" / "aaaa").unlink()
    with pytest.raises(ModelFormatError, match="snapshots: path: is empty"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model-00002-of-00003.safetensors", "model.safetensors.index.json", "tokenizer.json",
     "tokenizer_config.json", "generation_config.json"],
)  # fmt: skip
def test_a_pointer_of_git_lfs_in_a_folder(name: str, tmp_path: Path) -> None:
    folder = build(NAME, tmp_path)
    (folder / "tokenizer.json").write_bytes(llama3_like())
    (folder / name).write_bytes(POINTER)
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(folder)
    assert str(caught.value) == f"{folder / name}: header: is a Git LFS pointer, not the file; run: git lfs pull"


def test_pointers_that_nobody_needs_are_told(tmp_path: Path) -> None:
    folder = build(NAME, tmp_path)
    (folder / "tokenizer.json").write_bytes(llama3_like())
    assert open_checkpoint(folder).notes == ()
    for name in ("tokenizer.model", "onnx.bin"):
        (folder / name).write_bytes(POINTER)
    assert open_checkpoint(folder).notes == (
        "Git LFS has not fetched onnx.bin, tokenizer.model: not needed here; git lfs pull gets what is missing",
    )


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "model.bin", "consolidated.00.pth"])
def test_a_pointer_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(
            ModelFormatError, match=rf"{name}: header: is a Git LFS pointer, not the file; run: git lfs"
        ):
            open_checkpoint(path)


def test_a_sentencepiece_pointer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, LLAMA, random_tensors(LLAMA, seed=0))
    (folder / "tokenizer.model").write_bytes(POINTER)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.model: header: is a Git LFS pointer"):
        open_checkpoint(folder)
