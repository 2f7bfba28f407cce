"""Reading what torch.save wrote: against torch's own files, and against Python's pickle for plain objects."""

from __future__ import annotations

import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamagpu.errors import ModelFormatError
from llamagpu.formats.pickle_reader import TensorRef, read_pickle
from llamagpu.formats.torch_zip import TorchFile
from tests.references.make_torch_files import (
    MODEL_ARGS,
    STATE_DICT,
    TRAINING,
    model_values,
    state_values,
    write_state_dict,
    write_training,
)
from tests.torch_files import BFLOAT16, Entry, Saved, View, entries_of, write_unzipped, zip_bytes


def arrays(file: TorchFile, saved: dict[str, TensorRef]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: file.array(tensor, name) for name, tensor in saved.items()}


def check_state_dict(path: Path) -> None:
    file = TorchFile(path)
    expected = state_values()
    expected["bfloat16"] = expected["bfloat16"].astype(BFLOAT16)
    expected |= {
        "tied": expected["shared"],
        "part": expected["shared"][2:5],
        "parameter": expected["float32"],
    }
    with pytest.raises(ModelFormatError, match=r"transposed: has strides \[1, 4\].*contiguous"):
        file.array(file.root["transposed"], "transposed")
    found = arrays(file, {name: tensor for name, tensor in file.root.items() if name != "transposed"})
    assert list(found) == [name for name in file.root if name != "transposed"]
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert not found[name].flags.owndata
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert file.root["tied"] == file.root["shared"]


def check_training(path: Path) -> None:
    file = TorchFile(path)
    assert file.root["model_args"] == MODEL_ARGS
    assert file.root["iter_num"] == 100_000
    assert file.root["config"] == {"device": "cuda", "compile": True, "wandb": None, "lr": 5e-4}
    assert file.array(file.root["best_val_loss"], "best_val_loss") == 1.5
    group = file.root["optimizer"]["param_groups"][0]
    assert (group["betas"], group["params"][:3]) == ((0.9, 0.95), [0, 1, 2])
    found = arrays(file, file.root["model"])
    for name, values in model_values().items():
        np.testing.assert_array_equal(found[f"_orig_mod.{name}"], values, err_msg=name)
    assert file.root["model"]["_orig_mod.output.weight"] == file.root["model"]["_orig_mod.tok_embeddings.weight"]


def test_files_that_torch_wrote() -> None:
    check_state_dict(STATE_DICT)
    check_training(TRAINING)


def test_files_that_this_torch_writes(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed; tests/references holds files that it wrote")
    write_state_dict(tmp_path / "state.pth")
    check_state_dict(tmp_path / "state.pth")
    write_training(tmp_path / "training.pt")
    check_training(tmp_path / "training.pt")


def random_object(rng: random.Random, shared: list[Any], depth: int = 4) -> Any:
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, False, "", "x", "é猫🙂" * 90, "text" * 80])
    if kind == 1:
        return rng.choice([0, 1, 255, 256, 65535, 65536, -1, -128, 2**31 - 1, 2**31, -(2**31), -(2**63), 2**64])
    if kind == 2:
        return rng.choice([0.0, -0.0, 1.5, float("inf"), 1e-300])
    if kind == 3 and shared:
        return rng.choice(shared)
    if kind <= 5:
        return rng.randrange(-(10**12), 10**12)
    items = [random_object(rng, shared, depth - 1) for _ in range(rng.randrange(6))]
    if kind == 6:
        made: Any = items
    elif kind == 7:
        made = tuple(items)
    else:
        keys = [rng.choice([f"key {rng.randrange(20)}", rng.randrange(100)]) for _ in items]
        made = rng.choice([dict, OrderedDict])(zip(keys, items, strict=True))
    shared.append(made)
    return made


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_objects_are_what_pickle_makes_of_them(protocol: int) -> None:
    rng = random.Random(protocol)
    for _ in range(150):
        value = random_object(rng, [], 5)
        data = pickle.dumps(value, protocol)
        assert repr(read_pickle(data, Path("x"), 1 << 20)) == repr(plain(pickle.loads(data)))


def plain(value: Any) -> Any:
    """The same with every OrderedDict a dict."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


def test_what_is_stored_once_is_shared() -> None:
    inner = [1]
    found = read_pickle(pickle.dumps([inner, inner], 2), Path("x"), 0)
    assert found[0] is found[1]
    own: list[Any] = []
    own.append(own)
    found = read_pickle(pickle.dumps(own, 2), Path("x"), 0)
    assert found[0] is found


def values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(40).astype(np.float32)
    return {
        "a": rng.standard_normal((3, 4)).astype(np.float16),
        "b": View(base, 4, (3, 2), (2, 1)),
        "c": View(base, 10, (1, 5, 1), (77, 1, 3)),  # the stride of an axis of one is never used
        "d": View(base, 0, (40,), (1,)),
        **{f"n{i}": rng.integers(0, 9, 3) for i in range(100)},
    }


def check_values(file: TorchFile) -> None:
    expected = values()
    base = expected["d"].base
    found = arrays(file, file.root)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["a"], expected["a"])
    np.testing.assert_array_equal(found["b"], base[4:10].reshape(3, 2))
    np.testing.assert_array_equal(found["c"], base[10:15].reshape(1, 5, 1))
    np.testing.assert_array_equal(found["d"], base)
    for i in range(100):
        np.testing.assert_array_equal(found[f"n{i}"], expected[f"n{i}"])


@pytest.mark.parametrize("zip64", [False, True])
def test_memo_numbers_in_any_order(zip64: bool, tmp_path: Path) -> None:
    numbers = random.Random(1).sample(range(2**32), 5000)
    saved = Saved(values(), metadata=True, memo_index=numbers.__getitem__)
    path = tmp_path / "a.pth"
    path.write_bytes(zip_bytes(entries_of(saved), zip64))
    check_values(TorchFile(path))


def test_an_unzipped_folder_is_the_same(tmp_path: Path) -> None:
    write_unzipped(tmp_path / "unzipped", values())
    check_values(TorchFile(tmp_path / "unzipped"))


def test_other_files_in_the_zip_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    more = [Entry("elsewhere/data/0", b"1"), Entry("archive/.data/serialization_id", b"123"), Entry("archive/x/", b"")]
    path.write_bytes(zip_bytes([*more, *entries_of(Saved(values()))]))
    check_values(TorchFile(path))


def test_a_tensor_by_the_names_of_protocol_4(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode() + b"\x94"

    def name(module: str, attribute: str) -> bytes:
        return text(module) + text(attribute) + b"\x93\x94"

    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x03t\x94Q"
    ordered = name("collections", "OrderedDict") + b")R\x94"
    tensor = name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\0K\x03\x85K\1\x85\x89" + ordered + b"tR"
    body = b"}\x94" + text("x") + tensor + b"s."
    data = b"\x80\x04\x95" + len(body).to_bytes(8, "little") + body
    path = tmp_path / "a.pth"
    stored = np.arange(3, dtype=np.float32)
    path.write_bytes(zip_bytes([Entry("a/data.pkl", data), Entry("a/data/0", stored.tobytes())]))
    file = TorchFile(path)
    np.testing.assert_array_equal(file.array(file.root["x"], "x"), stored)
