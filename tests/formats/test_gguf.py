"""GGUF files: what is opened is what was written, and it runs as an independent forward pass says."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from numpy.typing import NDArray

import llamagpu
from llamagpu.checkpoint import Checkpoint
from llamagpu.errors import ModelFormatError
from llamagpu.formats import native, open_checkpoint
from llamagpu.quantization import AffineQuant, Deferred
from llamagpu.tokenizers import open_spec, read_spec
from tests.formats.gguf_files import File, Floats, Shape, Tensor, small_model, small_vocabulary
from tests.models.reference_by_names import forward_by_names
from tests.references import make_gguf
from tests.tokenizers.test_tokenizers import random_texts

ARCHITECTURES = ("llama", "qwen2", "qwen3")
IDS = [1, 7, 30, 7, 2, 0, 29, 11, 11, 5, 1, 3]
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def write(path: Path, file: File) -> Path:
    path.write_bytes(file.to_bytes())
    return path


def expected_logits(weights: dict[str, Floats], arch: str, **more: Any) -> NDArray[np.float64]:
    arguments: dict[str, Any] = {"head_dim": 32, "eps": 1e-6, "theta": 5000.0, "half_split": arch != "llama"} | more
    return forward_by_names(weights, IDS, **arguments)


def assert_tensors_equal(opened: Checkpoint, weights: dict[str, Floats]) -> None:
    """Every weight, bit for bit."""
    assert set(opened.tensors) == set(weights)
    for name, expected in weights.items():
        tensor = opened.tensors[name]
        made = tensor.materialize() if isinstance(tensor, Deferred) else tensor
        values = made.dequantize() if isinstance(made, AffineQuant) else np.asarray(made).astype(np.float32)
        np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32), err_msg=name)


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_of_each_type(kind: str, tmp_path: Path) -> None:
    file, weights = small_model("llama", kind)
    path = write(tmp_path / "small.gguf", file)
    opened = open_checkpoint(path)
    assert_tensors_equal(opened, weights)
    assert opened.nbytes == sum(len(tensor.data) for tensor in file.tensors.values())
    logits = llamagpu.load(path, device="cpu").logits(IDS)
    np.testing.assert_allclose(logits, expected_logits(weights, "llama"), atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_model_of_each_architecture(arch: str, tied: bool, tmp_path: Path) -> None:
    """Matrices of mixed types, as files of llama.cpp have them, and grouped-query attention."""
    file, weights = small_model(arch, ["Q4_K", "Q6_K", "Q8_0", "F16"], tied=tied)
    path = write(tmp_path / "small.gguf", file)
    opened = open_checkpoint(path)
    config = opened.config
    assert (config.architecture, config.tied_head) == (arch, tied)
    assert (config.qkv_bias, config.qk_norm) == (arch == "qwen2", arch == "qwen3")
    assert (config.n_heads, config.n_kv_heads, config.head_dim, config.dim) == (4, 2, 32, 256)
    assert_tensors_equal(opened, weights)
    expected = expected_logits(weights, arch)
    np.testing.assert_allclose(llamagpu.load(path, device="cpu").logits(IDS), expected, atol=1e-4)
    other_layout = expected_logits(weights, arch, half_split=arch == "llama")
    assert np.abs(expected - other_layout).max() > 0.01


@pytest.mark.parametrize("biased", [("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")])
def test_biases_of_a_llama(biased: tuple[str, ...], tmp_path: Path) -> None:
    """As the converter writes them of a model with attention_bias, or with mlp_bias."""
    file, weights = small_model("llama")
    rng = np.random.default_rng(3)
    for name, meta in zip(biased, meta_names(biased), strict=True):
        for i in range(2):
            values = rng.standard_normal(file.tensors[f"blk.{i}.{name}.weight"].shape[0]).astype(np.float32)
            file.tensors[f"blk.{i}.{name}.bias"] = Tensor(values.shape, "F32", values.tobytes())
            weights[f"layers.{i}.{meta}.bias"] = values
    path = write(tmp_path / "small.gguf", file)
    config = open_checkpoint(path).config
    assert (config.out_bias, config.ffn_bias) == ("attn_output" in biased, "ffn_up" in biased)
    expected = expected_logits(weights, "llama")
    np.testing.assert_allclose(llamagpu.load(path, device="cpu").logits(IDS), expected, atol=1e-4)


def meta_names(names: tuple[str, ...]) -> list[str]:
    known = {
        "attn_q": "attention.wq",
        "attn_k": "attention.wk",
        "attn_v": "attention.wv",
        "attn_output": "attention.wo",
    }
    known |= {"ffn_gate": "feed_forward.w1", "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3"}
    return [known[name] for name in names]


def permuted(weights: Floats, n_heads: int) -> Floats:
    """As llama.cpp's converter turns wq and wk of Llama from Hugging Face's order into Meta's."""
    width = weights.shape[0] // n_heads
    return weights.reshape(n_heads, 2, width // 2, -1).swapaxes(1, 2).reshape(weights.shape)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_files_written_by_the_gguf_package(arch: str, tmp_path: Path) -> None:
    """Weights in Hugging Face's order, which is half_split; Llama's wq and wk are permuted on the way to the file."""
    _, weights = small_model(arch)
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", arch)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(5000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    file, _ = small_model(arch)
    names = dict(zip(file.tensors, weights, strict=True))
    kinds = [gguf.GGMLQuantizationType[kind] for kind in TYPES[:8]]
    for i, (name, meta) in enumerate(names.items()):
        values = weights[meta]
        n_heads = 4 if ".wq." in meta else 2
        stored = permuted(values, n_heads) if arch == "llama" and (".wq." in meta or ".wk." in meta) else values
        kind = kinds[i % len(kinds)] if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        raw = quantize(stored, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        rounded = gguf.quants.dequantize(raw, kind).reshape(values.shape)
        if stored is not values:  # back: each head's rows in the order of the original
            rounded = rounded.reshape(n_heads, 16, 2, -1).swapaxes(1, 2).reshape(values.shape)
        weights[meta] = rounded
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    logits = llamagpu.load(tmp_path / "small.gguf", device="cpu").logits(IDS)
    np.testing.assert_allclose(logits, expected_logits(weights, arch, half_split=True), atol=1e-4)


@pytest.mark.parametrize("alignment", [8, 32, 256])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_each_version_and_alignment(version: int, alignment: int, tmp_path: Path) -> None:
    file, weights = small_model("llama", "Q4_0")
    file.version, file.alignment = version, alignment
    file.keys |= small_vocabulary()
    if alignment != 32:
        file.keys["general.alignment"] = ("u32", alignment)
    file.keys |= {"tokenizer.ggml.eot_token_id": ("u32", 5), "tokenizer.chat_template": ("str", "{{ é }}")}
    opened = open_checkpoint(write(tmp_path / "small.gguf", file))
    assert opened.format == f"GGUF version {version}"
    assert_tensors_equal(opened, weights)
    assert (opened.stop_tokens, opened.chat_template) == ((2, 5), "{{ é }}")
    assert opened.tokenizer is not None
    assert open_spec(opened.tokenizer, opened.path).vocab_size == 300


def test_values_of_every_type_are_stepped_over(tmp_path: Path) -> None:
    file, weights = small_model()
    numbers = {kind: (kind, 1) for kind in ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "u64", "i64", "f64")}
    file.keys |= {f"general.a_{kind}": value for kind, value in numbers.items()}
    file.keys |= {f"general.many_{kind}": ("arr", kind, [0, 1, 1]) for kind in numbers}
    file.keys["general.texts"] = ("arr", "str", ["", "a", "é" * 1000])
    file.keys["general.none"] = ("arr", "str", [])
    file.keys["general.nested"] = ("arr", "arr", [("u16", [1, 2, 3]), ("arr", [("str", ["x"]), ("bool", [])])])
    assert_tensors_equal(open_checkpoint(write(tmp_path / "small.gguf", file)), weights)


@pytest.mark.parametrize(
    ("keys", "factors", "more"),
    [
        ({"type": ("str", "none"), "factor": ("f32", 4.0)}, None, {}),
        ({"type": ("str", "linear"), "factor": ("f32", 4.0)}, None, {"divisors": [4.0] * 16}),
        ({"factor": ("f32", 4.0)}, None, {"divisors": [4.0] * 16}),
        ({}, np.linspace(1, 8, 16, dtype=np.float32), {"divisors": np.linspace(1, 8, 16, dtype=np.float32).tolist()}),
        (
            {"type": ("str", "linear"), "factor": ("f32", 2.0)},
            np.linspace(1, 8, 16, dtype=np.float32),
            {"divisors": (2 * np.linspace(1, 8, 16, dtype=np.float32)).tolist()},
        ),
    ],
    ids=["none", "linear", "linear by default", "Llama 3's tensor", "both"],
)
def test_rope_scaling(
    keys: dict[str, tuple[str, object]], factors: Floats | None, more: dict[str, object], tmp_path: Path
) -> None:
    file, weights = small_model()
    file.keys |= {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    if factors is not None:
        file.tensors["rope_freqs.weight"] = Tensor((16,), "F32", factors.tobytes())
    path = write(tmp_path / "small.gguf", file)
    expected = expected_logits(weights, "llama", **more)
    np.testing.assert_allclose(llamagpu.load(path, device="cpu").logits(IDS), expected, atol=1e-4)


def test_yarn(tmp_path: Path) -> None:
    """Qwen's way to 4 times the positions. The borders, by hand: of 32 elements at theta 5000 within 16 positions, pair
    -4.7 turns 32 times and pair 1.76 once, so pairs 0 and 1 go part of the way from 0 to 2, the others all of it."""
    file, weights = small_model("qwen2")
    file.keys |= {
        "qwen2.rope.scaling.type": ("str", "yarn"),
        "qwen2.rope.scaling.factor": ("f32", 4.0),
        "qwen2.rope.scaling.original_context_length": ("u32", 16),
    }
    path = write(tmp_path / "small.gguf", file)
    divisors = [1.0, 1 / (0.5 + 0.5 / 4), *[4.0] * 14]
    more = {"divisors": divisors, "attention_factor": 1 + 0.1 * np.log(4)}
    expected = expected_logits(weights, "qwen2", **more)
    np.testing.assert_allclose(llamagpu.load(path, device="cpu").logits(IDS), expected, atol=1e-4)


def test_a_sliding_window(tmp_path: Path) -> None:
    file, weights = small_model()
    file.keys["llama.attention.sliding_window"] = ("u32", 4)
    path = write(tmp_path / "small.gguf", file)
    expected = expected_logits(weights, "llama", window=4)
    np.testing.assert_allclose(llamagpu.load(path, device="cpu").logits(IDS), expected, atol=1e-4)
    assert np.abs(expected - expected_logits(weights, "llama")).max() > 0.01


def split(file: File, folder: Path, n_parts: int = 3) -> list[Path]:
    """As llama.cpp splits: all keys in the first part, the tensors over all."""
    names = list(file.tensors)
    paths = []
    for i in range(n_parts):
        own = {name: file.tensors[name] for name in names[i::n_parts]}
        keys = {"split.no": ("u16", i), "split.count": ("u16", n_parts), "split.tensors.count": ("i32", len(names))}
        path = folder / f"small-{i + 1:05}-of-{n_parts:05}.gguf"
        paths.append(write(path, File((file.keys if i == 0 else {}) | keys, own)))
    return paths


def test_a_split_model(tmp_path: Path) -> None:
    file, weights = small_model("llama", "Q8_0")
    paths = split(file, tmp_path)
    assert_tensors_equal(open_checkpoint(paths[0]), weights)
    with pytest.raises(ModelFormatError, match=r"later part.*give its first part: small-00001-of-00003.gguf"):
        open_checkpoint(paths[1])
    paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFormatError, match=r"split.count.*not named as the first part"):
        open_checkpoint(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").rename(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(ModelFormatError, match=r"split.no: says part 2 of 3, unlike the file's name"):
        open_checkpoint(paths[0])
    paths[2].unlink()
    with pytest.raises(ModelFormatError, match=r"small-00003-of-00003.gguf is not there"):
        open_checkpoint(paths[0])


def test_a_converted_model_runs_as_the_gguf_does(tmp_path: Path) -> None:
    file, _ = small_model("qwen2", ["Q4_K", "Q6_K", "Q5_0", "BF16"])
    file.keys |= small_vocabulary() | {"tokenizer.ggml.eot_token_id": ("u32", 9)}
    source = write(tmp_path / "small.gguf", file)
    before = open_checkpoint(source)
    native.write(tmp_path / "model.bin", before)
    after = open_checkpoint(tmp_path / "model.bin")
    assert (after.config, after.tokenizer, after.stop_tokens) == (before.config, before.tokenizer, (2, 9))
    first, second = (llamagpu.load(path, device="cpu") for path in (source, tmp_path / "model.bin"))
    np.testing.assert_array_equal(first.logits(IDS), second.logits(IDS))
    assert first.tokenizer.encode("the 猫 sat") == second.tokenizer.encode("the 猫 sat")


def test_opening_reads_next_to_nothing(tmp_path: Path) -> None:
    """A sparse file of 40 GB, and 131,072 tokens with 280,000 merges, in well under a second."""
    n_layers, dim, hidden, vocab = 80, 8192, 28672, 131072
    shape = Shape(dim, hidden, 0, 64, 8, 128, vocab, 8192)
    file, _ = small_model("llama", "Q4_0", Shape(n_layers=1))
    one_layer = [name for name in file.tensors if name.startswith("blk.0.")]
    wide = {256: dim, 512: hidden, 128: dim, 64: 1024, 300: vocab}
    tensors: dict[str, Tensor] = {}
    at = 0
    for name in [
        "token_embd.weight",
        *(name.replace("blk.0.", f"blk.{i}.") for i in range(n_layers) for name in one_layer),
        "output_norm.weight",
        "output.weight",
    ]:
        like = file.tensors[f"blk.0.{name.split('.', 2)[2]}" if name.startswith("blk.") else name]
        size = tuple(wide[n] for n in like.shape)
        tensors[name] = Tensor(size, like.kind, b"", at)
        at += 4 * size[0] if len(size) == 1 else size[0] * size[1] // 32 * 18
    file.tensors = tensors
    tokens = [b"token%d" % i for i in range(vocab)]
    file.keys |= {
        "llama.embedding_length": ("u32", dim), "llama.feed_forward_length": ("u32", hidden),
        "llama.block_count": ("u32", n_layers), "llama.attention.head_count": ("u32", 64),
        "llama.attention.head_count_kv": ("u32", 8), "llama.attention.key_length": ("u32", 128),
        "llama.attention.value_length": ("u32", 128), "llama.rope.dimension_count": ("u32", 128),
        "tokenizer.ggml.model": ("str", "gpt2"), "tokenizer.ggml.tokens": ("arr", "str", tokens),
        "tokenizer.ggml.merges": ("arr", "str", [b"a b"] * 280_000),
    }  # fmt: skip
    path = write(tmp_path / "large.gguf", file)
    with open(path, "r+b") as out:
        out.truncate(file.marks["data"] + at)
    start = time.process_time()
    opened = open_checkpoint(path)
    seconds = time.process_time() - start
    assert opened.config.n_layers == 80
    assert opened.config.vocab_size == shape.vocab_size
    assert opened.nbytes == at > 38e9
    assert opened.tokenizer is not None
    assert seconds < 1
    assert struct.unpack("<Q", opened.tokenizer.data[16:24]) == (3,), "the keys of the vocabulary and no others"


def test_stories260k_is_the_same_model(data: Path) -> None:
    folder = data / "llama2c"
    ours, original = (
        open_checkpoint(folder / name) for name in ("tinyllamas-stories-260k-f32.gguf", "stories260K.bin")
    )
    assert len(ours.tensors) == 48
    for name, tensor in ours.tensors.items():
        source = original.tensors["tok_embeddings.weight" if name == "output.weight" else name]
        np.testing.assert_array_equal(np.asarray(tensor).view(np.uint32), np.asarray(source).view(np.uint32))


def test_stories260k_text_with_the_vocabulary_inside(data: Path) -> None:
    folder = data / "llama2c"
    expected = (folder / "stories260K.expected_stdout_200.txt").read_text()
    llm = llamagpu.load(folder / "tinyllamas-stories-260k-f32.gguf", device="cpu")
    assert "".join(llm.generate("", max_tokens=220, temperature=0)).startswith(expected)
    other = open_spec(read_spec(folder / "tok512.bin"), folder)
    for text in random_texts(1000):
        assert llm.tokenizer.encode(text) == other.encode(text)
        assert llm.tokenizer.decode(llm.tokenizer.encode(text)) == other.decode(other.encode(text))


@pytest.mark.parametrize("arch", make_gguf.ARCHITECTURES)
def test_logits_equal_those_of_transformers(arch: str, tmp_path: Path) -> None:
    """Its reader of GGUF and its models share nothing with ours. Stored: tests/references/make_gguf.py."""
    path = tmp_path / "small.gguf"
    path.write_bytes(make_gguf.model_bytes(arch))
    logits = llamagpu.load(path, device="cpu").logits(make_gguf.IDS)
    np.testing.assert_allclose(logits, np.load(make_gguf.STORED)[arch], atol=1e-4)


def test_the_stored_logits_are_those_of_transformers() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    stored = np.load(make_gguf.STORED)
    for arch, logits in make_gguf.reference_logits().items():
        np.testing.assert_allclose(logits, stored[arch], atol=1e-5)
