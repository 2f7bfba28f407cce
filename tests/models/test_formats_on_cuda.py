"""Every format through the CUDA backend, which says what the CPU says; and through `convert`: equal logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llamagpu.backends.cuda.device import Device
from llamagpu.checkpoint import Checkpoint
from llamagpu.formats import native, open_checkpoint
from llamagpu.llm import LLM
from tests.formats.gguf_files import Shape as GGUFShape
from tests.formats.gguf_files import small_model
from tests.formats.quantized_folders import Quantized, build_pair
from tests.llama2rs_files import llama2rs_file
from tests.models.test_llama_on_cuda import both, greedy
from tests.references.make_huggingface import CASES, KEPT, TOKENS, build, expected
from tests.simple_llama_files import simple_llama_file
from tests.small_files import Shape, random_weights, v0_bytes, v1_bytes, v2_bytes
from tests.torch_files import write_meta

SHAPE = Shape(tied=False, hidden_dim=32)
N_TOKENS = 24


def file_of(make: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "model").write_bytes(make())
        return folder / "model"

    return write


def gguf(arch: str, *kinds: str) -> Callable[[Path], Path]:
    shape = GGUFShape(256, 256, 2, 4, 2, 64) if any("K" in kind for kind in kinds) else GGUFShape(64, 96, 2, 4, 2, 16)
    return file_of(lambda: small_model(arch, list(kinds), shape)[0].to_bytes())


FORMATS: dict[str, Callable[[Path], Path]] = {
    "llama2.c version 0": file_of(lambda: v0_bytes(SHAPE, random_weights(SHAPE))),
    "llama2.c version 1": file_of(lambda: v1_bytes(SHAPE, random_weights(SHAPE))),
    "llama2.c version 2": file_of(lambda: v2_bytes(SHAPE, random_weights(SHAPE), 8)),
    "llama2.rs A": file_of(lambda: llama2rs_file("A").data),
    "llama2.rs C, act-order": file_of(lambda: llama2rs_file("C", act_order=True).data),
    "llama2.rs float32": file_of(lambda: llama2rs_file("float32").data),
    "simple-llama float32": file_of(lambda: simple_llama_file(32)[0]),
    "simple-llama 8 bits": file_of(lambda: simple_llama_file(8)[0]),
    "simple-llama 4 bits": file_of(lambda: simple_llama_file(4)[0]),
    "Meta, two shards, float16": lambda folder: write_meta(folder / "model", SHAPE, 2, dtype=np.float16),
    "Meta, unzipped": lambda folder: write_meta(folder / "model", SHAPE, unzipped=True),
    "GGUF llama Q4_0, Q8_0": gguf("llama", "Q4_0", "Q8_0"),
    "GGUF qwen2 Q4_1, Q5_0, Q5_1": gguf("qwen2", "Q4_1", "Q5_0", "Q5_1"),
    "GGUF qwen3 BF16, F16": gguf("qwen3", "BF16", "F16"),
    "GGUF llama Q4_K, Q6_K": gguf("llama", "Q4_K", "Q6_K"),
    "GGUF qwen2 Q2_K, Q3_K, Q5_K": gguf("qwen2", "Q2_K", "Q3_K", "Q5_K"),
    "Hugging Face bfloat16 in shards": lambda folder: build("llama bfloat16", folder / "model"),
    "GPTQ": lambda folder: build_pair(Quantized(), folder)[0],
    "GPTQ act-order, 8 bits": lambda folder: build_pair(Quantized(g_idx="act order", bits=8, group_size=64), folder)[0],
    "AWQ": lambda folder: build_pair(Quantized("awq"), folder)[0],
}


def prompt_of(checkpoint: Checkpoint) -> list[int]:
    """Longer than what the fused kernels take, so that those of prompts run too."""
    return [int(token) for token in np.random.default_rng(3).integers(0, checkpoint.config.vocab_size, 12)]


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_the_gpu_says_what_the_cpu_says(make: Callable[[Path], Path], tmp_path: Path, device: Device) -> None:
    checkpoint = open_checkpoint(make(tmp_path))
    cpu, cuda = both(checkpoint, device)
    prompt = prompt_of(checkpoint)
    n_tokens = min(N_TOKENS, checkpoint.config.max_seq_len - len(prompt))
    said = greedy(cpu, prompt, n_tokens)
    assert len(said) >= 15
    assert greedy(cuda, prompt, n_tokens) == said
    ids = (prompt + said)[: checkpoint.config.max_seq_len]
    on_cpu, on_cuda = cpu.logits(ids), cuda.logits(ids)
    assert np.square(on_cuda - on_cpu).sum() / np.square(on_cpu).sum() < 1e-5


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_converted_it_is_the_same_model(make: Callable[[Path], Path], tmp_path: Path) -> None:
    before = open_checkpoint(make(tmp_path))
    native.write(tmp_path / "model.bin", before)
    after = open_checkpoint(tmp_path / "model.bin")
    assert after.config == before.config
    assert (after.stop_tokens, after.chat_template) == (before.stop_tokens, before.chat_template)
    prompt = prompt_of(before)
    np.testing.assert_array_equal(LLM(after, "cpu").logits(prompt), LLM(before, "cpu").logits(prompt))


@pytest.mark.parametrize("name", [name for name, (_, dtype, _) in CASES.items() if dtype == "F32"])
def test_logits_of_transformers(name: str, tmp_path: Path, device: Device) -> None:
    """float32 weights, so float32 keys and values: within 1e-4 of what transformers computes."""
    _, cuda = both(open_checkpoint(build(name, tmp_path)), device)
    assert np.abs(cuda.logits(TOKENS)[KEPT] - expected(name)).max() < 1e-4
