"""Which files of a repository are fetched: all that a model needs, and nothing else."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import llamagpu
from llamagpu.errors import UsageError
from llamagpu.hub_files import BESIDE, Choice, choose

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
# A folder as large companies publish them, with copies of the weights in other formats
FOLDER = ["README.md", "LICENSE.txt", ".gitattributes", "config.json", "generation_config.json", "tokenizer.json",
          "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
          "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors", "onnx/model.onnx",
          "original/consolidated.00.pth", "original/params.json", "original/tokenizer.model", "tf_model.h5",
          "flax_model.msgpack", "training_args.bin", "image.png", "coreml/a.mlmodel"]  # fmt: skip
SMALL = ["chat_template.jinja", "config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json",
         "tokenizer.model", "tokenizer_config.json"]  # fmt: skip
GGUFS = ["config.json", "README.md", "x-Q4_K_M.gguf", "x-Q4_K_S.gguf", "x-Q8_0.gguf", "mmproj-x-f16.gguf",
         "BF16/x-BF16-00001-of-00002.gguf", "BF16/x-BF16-00002-of-00002.gguf"]  # fmt: skip


def chosen(names: list[str], wanted: str | None = None) -> Choice:
    def shards_of(index: str) -> list[str]:
        assert index.endswith(INDEX)
        return SHARDS

    return choose("hf:o/n", names, wanted, shards_of)


def files(names: list[str], wanted: str | None = None) -> list[str]:
    return sorted(chosen(names, wanted).files)


def test_a_folder_of_one_safetensors() -> None:
    assert files([*FOLDER, "model.safetensors"]) == sorted([*SMALL, "model.safetensors"])
    assert chosen([*FOLDER, "model.safetensors"]).path == ""
    assert files(["config.json", "gptq-4bit.safetensors", "quantize_config.json"])[1] == "gptq-4bit.safetensors"


def test_a_folder_of_shards() -> None:
    assert files([*FOLDER, INDEX, *SHARDS]) == sorted([*SMALL, INDEX, *SHARDS])
    assert files([*FOLDER, INDEX, *SHARDS], SHARDS[1]) == sorted([*SMALL, INDEX, *SHARDS])  # one stands for them all
    with pytest.raises(UsageError, match=f"is not complete: it does not have {SHARDS[1]}"):
        chosen([*FOLDER, INDEX, SHARDS[0]])


def test_metas_own_files() -> None:
    names = [
        "consolidated.00.pth",
        "consolidated.01.pth",
        "params.json",
        "tokenizer.model",
        "checklist.chk",
        "README.md",
    ]
    assert files(names) == ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"]
    inside = ["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"]
    for wanted in ("original", "original/"):
        found = chosen([*FOLDER, "model.safetensors"], wanted)
        assert (found.path, sorted(found.files)) == ("original", inside)


def test_a_gguf_is_fetched_alone() -> None:
    assert chosen(["x.gguf", "config.json", "mmproj-x-f16.gguf"]) == Choice("x.gguf", ("x.gguf",))
    assert chosen(GGUFS, "x-Q8_0.gguf") == Choice("x-Q8_0.gguf", ("x-Q8_0.gguf",))
    for part in ("q8_0", "Q8_0", "x-q8_0"):
        assert chosen(GGUFS, part).path == "x-Q8_0.gguf"
    assert chosen(GGUFS, "Q4_K_M").path == "x-Q4_K_M.gguf"
    assert chosen(GGUFS, "mmproj-x-f16.gguf").path == "mmproj-x-f16.gguf"  # who names it shall have it


@pytest.mark.parametrize("wanted", ["bf16", "BF16", "BF16/x-BF16-00001-of-00002.gguf"])
def test_all_parts_of_a_split_gguf(wanted: str) -> None:
    assert chosen(GGUFS, wanted) == Choice(GGUFS[6], tuple(GGUFS[6:]))


def test_a_choice_that_is_missing_or_not_one_lists_the_files() -> None:
    models = "BF16/x-BF16-00001-of-00002.gguf, x-Q4_K_M.gguf, x-Q4_K_S.gguf, x-Q8_0.gguf"
    for wanted, words in {
        None: f"hf:o/n holds 4 models, give one as hf:o/n:FILE: {models}",
        "Q2_K": f"hf:o/n does not have a file 'Q2_K': its models are {models}",
        "Q8": f"hf:o/n does not have a file 'Q8': its models are {models}",  # a part of a word is none
        "x": f"hf:o/n:x fits 4 files, give one of them: {models}",
    }.items():
        with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
            chosen(GGUFS, wanted)
    two = ["d/a.gguf", "d/b.gguf", "c.gguf"]
    with pytest.raises(UsageError, match=r"^hf:o/n:d holds 2 models, give one as hf:o/n:d/FILE: a\.gguf, b\.gguf$"):
        chosen(two, "d")
    with pytest.raises(UsageError, match=r"holds 100 models.* and 40 more$"):
        chosen([f"{i}.gguf" for i in range(100)])


def test_other_single_files_bring_the_tokenizer_beside_them() -> None:
    assert files(["stories15M.bin", "tokenizer.bin", "README.md"]) == ["stories15M.bin", "tokenizer.bin"]
    rwkv = ["RWKV-4.pth", "RWKV-5.pth", "rwkv_vocab_v20230424.txt", "README.md"]
    assert files(rwkv, "RWKV-5.pth") == ["RWKV-5.pth", "rwkv_vocab_v20230424.txt"]
    assert files([*FOLDER, "model.safetensors"], "tokenizer.json") == SMALL  # for tokenize


def test_nothing_that_llamagpu_reads() -> None:
    for names in ([], ["README.md", "pytorch_model.bin", "config.json"], ["onnx/model.onnx"]):
        with pytest.raises(UsageError, match=r"hf:o/n does not hold a model that llamagpu reads"):
            chosen(names)


def test_names_that_lead_out_of_the_repository_are_left_out() -> None:
    bad = ["../x.gguf", "/x.gguf", "a//x.gguf", "a/../x.gguf", "a\\x.gguf", "c:x.gguf", "x\n.gguf", "./x.gguf"]
    assert chosen([*bad, "good.gguf"]).path == "good.gguf"
    for name in bad:
        with pytest.raises(UsageError, match="does not have a file"):
            chosen([*bad, "good.gguf"], name)


def test_every_small_file_that_a_reader_opens_is_fetched() -> None:
    """A reader that learns to read one more file finds it in what is downloaded, too."""
    package = Path(llamagpu.__file__).parent
    quoted = re.compile(r'"([\w.*-]+\.(?:json|jinja|model|tiktoken|txt))"')
    found: set[str] = set()
    for folder in ("formats", "tokenizers"):
        for path in (package / folder).glob("*.py"):
            found |= set(quoted.findall(path.read_text()))
    found = {name for name in found if not name.startswith((".", "llamagpu.")) and "index" not in name}
    assert {"config.json", "tokenizer.json", "merges.txt", "params.json"} <= found
    assert not {name for name in found if not any(fnmatchcase(name, known) for known in BESIDE)}
