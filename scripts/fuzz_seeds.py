"""Valid files and folders of each kind, for scripts/fuzz_readers.py to damage."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec
from llamagpu.config import ModelConfig
from llamagpu.formats import native, open_checkpoint
from llamagpu.quantization import AffineQuant
from tests.formats import gguf_files
from tests.formats.gguf_rwkv_files import rwkv_gguf
from tests.formats.quantized_folders import Quantized, build_pair
from tests.llama2rs_files import llama2rs_file
from tests.memory_model_files import (
    MemoryShape,
    Recurrence,
    memory_file,
    memory_model_bytes,
    memory_weights,
    training_args,
    training_state,
)
from tests.micro_rwkv_files import MicroShape, micro_bytes
from tests.references.make_huggingface import build
from tests.references.make_torch_files import STATE_DICT, TRAINING
from tests.references.rwkv_reference import VERSIONS
from tests.references.rwkv_reference import random_weights as rwkv_weights
from tests.rwkv_files import ggmf_bytes, huggingface_arrays, huggingface_config, pth_bytes, write_folder
from tests.simple_llama_files import simple_llama_file
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v1_bytes, v2_bytes
from tests.tokenizers import tokenizer_json, vocabularies
from tests.tokenizers.test_gguf import world_keys
from tests.torch_files import Saved, entries_of, meta_state, params_of, torch_bytes, write_meta, zip_bytes

Case = bytes | dict[str, bytes]  # a file, or the files of a folder by name


def seed_files() -> dict[str, list[Case]]:
    """Valid files of each kind, to be damaged."""
    shape, untied = Shape(), Shape(tied=False, n_kv_heads=4)
    large = Shape(dim=128, hidden_dim=384, n_layers=8, n_heads=8, n_kv_heads=4, vocab_size=2000)  # 6 MB
    large_weights = random_weights(large)
    weights, untied_weights = random_weights(shape), random_weights(untied)
    quantized = v2_bytes(Shape(hidden_dim=20), random_weights(Shape(hidden_dim=20)), 8)
    demo = Path(__file__).parent.parent / "llamagpu" / "demo.bin"
    native_files: list[Case] = [demo.read_bytes()] if demo.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source.bin"), Path(folder, "out.bin")
        for data in (v0_bytes(shape, weights), quantized):
            source.write_bytes(data)
            checkpoint = open_checkpoint(source)
            spec = TokenizerSpec("llama2c", tokenizer_bin())
            native.write(out, Checkpoint(source, "", checkpoint.config, checkpoint.tensors, spec))
            native_files.append(out.read_bytes())
            if data is not quantized:
                few_bits = replace(
                    checkpoint, tensors=to_4_bits(checkpoint.tensors), tokenizer=spec, stop_tokens=(2, 5),
                    sampling={"temperature": 0.5}, chat_template="{{ messages }}",
                )  # fmt: skip
                native.write(out, few_bits)
                native_files.append(out.read_bytes())
    state = meta_state(untied, np.float16)
    saved, params = Saved(state), params_of(untied, rope_theta=5e5, use_scaled_rope=True)
    tokens = [bytes([byte]) for byte in range(256)] + [b"%d" % n for n in range(10, 5000)]
    return {
        "meta": [
            {"consolidated.00.pth": pth, "params.json": json.dumps(params).encode()}
            for pth in (torch_bytes(state), torch_bytes(state, metadata=True), zip_bytes(entries_of(saved), zip64=True))
        ],
        "meta_unzipped": unzipped_folders(untied),
        "torch_training": [path.read_bytes() for path in (TRAINING, STATE_DICT)],
        "micro_rwkv": [micro_bytes(MicroShape()), micro_bytes(MicroShape(bias=True), prefix="_orig_mod.")],
        "tokenizer_tiktoken": [b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))],
        "llama2c_v0": [v0_bytes(shape, weights), v0_bytes(untied, untied_weights), v0_bytes(large, large_weights)],
        "llama2c_v1": [v1_bytes(shape, weights), v1_bytes(untied, untied_weights), v1_bytes(large, large_weights)],
        "llama2c_v2": [v2_bytes(shape, weights, 16), quantized, v2_bytes(large, large_weights, 32)],
        "llama2rnn": memory_models(),
        "llama2rnn_training": memory_checkpoints(),
        "llama2rnn_memory": [memory_file(Recurrence(MEMORY, memory_weights(MEMORY)), 10, pos) for pos in (0, 3)],
        "llama2rs": [llama2rs_file(variant, act_order=variant in "BC").data for variant in ("A", "B", "C", "float32")],
        "simple_llama": [simple_llama_file(bits)[0] for bits in (32, 8, 4)],
        "native": native_files,
        "gguf": gguf_seeds(),
        "huggingface": huggingface_folders(),
        **rwkv_seeds(),
        "tokenizer_json": [*(make() for make in tokenizer_json.KINDS.values()), tokenizer_json.pile_like()],
        "tokenizer_rwkv_world": world_vocabularies(),
        "tokenizer_gpt2_pair": [vocabularies.gpt2_pair(vocabularies.gpt2_tokens(n)) for n in (40, 400)],
        "tokenizer_bin": [tokenizer_bin(), tokenizer_bin(raw_byte_dialect=True), tokenizer_bin(32000)],
        "tokenizer_model": [open_checkpoint(demo).tokenizer.data] if demo.exists() else [],  # type: ignore[union-attr]
    }


MEMORY = MemoryShape(mem_len=5, max_seq_len=8)
LARGE_MEMORY = MemoryShape(dim=128, hidden_dim=384, n_layers=4, n_heads=8, n_kv_heads=4, vocab_size=2000, mem_len=300)


def memory_models() -> list[Case]:
    """Small ones, so that the header is much of the file; and one whose memory is longer than a byte says."""
    shapes = (MEMORY, MemoryShape(tied=False, mem_len=1), LARGE_MEMORY)
    return [memory_model_bytes(shape, memory_weights(shape), 8) for shape in shapes]


def memory_checkpoints() -> list[Case]:
    state = training_state(MEMORY, memory_weights(MEMORY))
    return [torch_bytes({"model": state, "model_args": training_args(MEMORY, theta=10000)})]


def memory_config() -> ModelConfig:
    """Of the model whose memory files are among the seeds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.bin")
        path.write_bytes(memory_model_bytes(MEMORY, memory_weights(MEMORY), 8))
        return open_checkpoint(path).config


def unzipped_folders(shape: Shape) -> list[Case]:
    """The pickle is one file of many in such a folder, so each is there in which it is damaged as often as any."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_meta(Path(name, "model"), shape, unzipped=True, dtype=np.float16)
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return [files]


def world_vocabularies() -> list[Case]:
    """Small ones in both ways to write them, and one as large as RWKV's."""
    small = vocabularies.world_tokens()
    as_bytes = "".join(f"{i} {token!r} {len(token)}\n" for i, token in enumerate(small, 1)).encode()
    many = [*small, *(b" %d" % i for i in range(65529 - len(small)))]
    return [vocabularies.world_file(small), as_bytes, vocabularies.world_file(many)]


def gguf_seeds() -> list[Case]:
    """Each version, of small matrices, so that the header is much of the file; and the types of 256 weights."""
    files: list[Case] = []
    for version, arch in enumerate(("llama", "qwen2", "qwen3"), 1):
        shape = gguf_files.Shape(32, 32, 1, 2, 1, 16)
        small, _ = gguf_files.small_model(arch, ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"], shape)
        small.version = version
        small.keys |= gguf_files.small_vocabulary()
        files.append(small.to_bytes())
    world, _ = gguf_files.small_model("llama", shape=gguf_files.Shape(32, 32, 1, 2, 1, 16))
    world.keys |= world_keys(vocabularies.world_tokens(290), 300)
    files.append(world.to_bytes())
    large, _ = gguf_files.small_model("llama", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
    return [*files, large.to_bytes()]


def huggingface_folders() -> list[Case]:
    """A model in shards, and GPTQ and AWQ models, with tokenizers and everything else that is read."""
    with tempfile.TemporaryDirectory() as name:
        folders = [build("llama gqa tied", Path(name, "0")), build("qwen3 bfloat16", Path(name, "1"))]
        folders += [build_pair(Quantized(g_idx="act order"), Path(name, "2"))[0]]
        folders += [build_pair(Quantized("awq"), Path(name, "3"))[0]]
        for folder, make in zip(folders, tokenizer_json.KINDS.values(), strict=True):
            (folder / "tokenizer.json").write_bytes(make())
            decoder = {"2": {"content": "</s>", "special": True}}
            settings = {"added_tokens_decoder": decoder, "eos_token": "</s>", "chat_template": "{{ messages }}"}
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
            suggestions = {"eos_token_id": [2, 3], "temperature": 0.6, "top_k": 50, "do_sample": True}
            (folder / "generation_config.json").write_text(json.dumps(suggestions))
        return [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]


def rwkv_seeds() -> dict[str, list[Case]]:
    """Every version in every form, of small matrices, so that names and headers are much of a file."""
    models = {version: rwkv_weights(version, 8, 2, 4, 8, 12, 2) for version in VERSIONS}
    wide = rwkv_weights(7, 32, 2, 32, 32, 12, 32)
    folders: list[Case] = []
    with tempfile.TemporaryDirectory() as name:
        for version, weights in models.items():
            folder = write_folder(Path(name, str(version)), huggingface_arrays(weights), huggingface_config(weights))
            folders.append({path.name: path.read_bytes() for path in folder.iterdir()})
    q8 = gguf.GGMLQuantizationType.Q8_0
    blocks = ggmf_bytes(wide, quantise=lambda matrix: (9, gguf.quantize(matrix, q8).tobytes()))
    return {
        "rwkv_ggmf": [*(ggmf_bytes(weights, half=version > 5) for version, weights in models.items()), blocks],
        "rwkv_pth": [pth_bytes(weights, np.float16) for weights in models.values()],
        "huggingface_rwkv": folders,
        "gguf_rwkv": [
            rwkv_gguf(models[6], every=1)[0].to_bytes(), rwkv_gguf(models[7])[0].to_bytes(),
            rwkv_gguf(wide, "Q4_1", "Q8_0")[0].to_bytes(),
        ],
    }  # fmt: skip


def to_4_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random 4-bit matrices of the same shapes, in groups of 16: with act-order, with offsets, or bfloat16, in turn."""
    generator = np.random.default_rng(0)
    out = dict(tensors)
    for i, (name, tensor) in enumerate(tensors.items()):
        if len(tensor.shape) == 2:
            scales = np.ones((tensor.shape[0], -(-tensor.shape[1] // 16)), np.float16)
            perm = generator.permutation(tensor.shape[1]) if i % 2 else None
            q, has_offsets = generator.integers(0, 16, tensor.shape), i % 3 == 1
            out[name] = AffineQuant.pack(q, scales, scales * 8, 4, 16, perm, has_offsets)
            if i % 7 == 0:
                out[name] = generator.standard_normal(tensor.shape, np.float32).astype(ml_dtypes.bfloat16)
    return out
