"""Writes tests/data/v0.1: files of version 0.1.0 that every later version opens, and what they say.

It was run once, on the code of version 0.1.0, and is kept to show how the files came to be: run on later code it would
write files of that code's version, so do not. ``python -m tests.references.make_v0_1``

Each model's seed is the one, of those tried, whose best and second best logit are never near one another: so the text
does not hang on the last bits of a sum, and rounded activations may be compared with it too.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llamagpu import __version__
from llamagpu.chat import Chat
from llamagpu.chat_templates import choose_template
from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec, tensor_shapes
from llamagpu.cli import COMMANDS
from llamagpu.config import ModelConfig
from llamagpu.formats import native
from llamagpu.generation import Answer
from llamagpu.llm import LLM, load
from llamagpu.memory import Memory
from llamagpu.quantization import AffineQuant, Int8Matrix, round_to_nearest
from llamagpu.rwkv_shapes import is_thin
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session
from tests.small_files import q8_groups, tokenizer_bin

FOLDER = Path(__file__).parent.parent / "data" / "v0.1"
PROMPT, MORE, N_TOKENS, N_SEEDS = "on the one", " then the", 24, 40
GREEDY = SamplingParams(temperature=0.0)
LLAMA = {"architecture": "llama", "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
         "head_dim": 8, "vocab_size": 300, "max_seq_len": 96}  # fmt: skip
RWKV = {"dim": 32, "hidden_dim": 96, "n_layers": 2, "head_dim": 16, "vocab_size": 256, "max_seq_len": 4096}
QWEN2 = {"architecture": "qwen2", "qkv_bias": True, "rope_layout": "half_split", "tied_head": True}
MICRO = {"architecture": "micro_rwkv", "n_kv_heads": 4, "tied_head": True, "n_experts": 3, "n_active_experts": 2,
         "expert_hidden_dim": 10, "max_seq_len": 32, "linear_bias": True}  # fmt: skip
# Name of the file: what of the config is not LLAMA's, and how matrices are kept.
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "float32": ({}, "float32"),
    "float16": ({"rope_factors": (1.0, 1.0, 2.0, 4.0), "rope_attention_factor": 1.1}, "float16"),
    "bfloat16_qwen2": (QWEN2, "bfloat16"),
    "int8_groups": ({"tied_head": True}, "int8"),
    "q8": ({}, "q8"),
    "q4": ({"sliding_window": 24, "architecture": "mistral"}, "q4"),
    "q4_offsets": ({"architecture": "qwen3", "qk_norm": True}, "q4 offsets"),
    "q4_act_order": ({}, "q4 perm"),
    "memory_llama": ({"architecture": "memory_llama", "mem_len": 6, "max_seq_len": 12}, "int8"),
    "rwkv4": ({"architecture": "rwkv4", **RWKV, "n_heads": 1, "n_kv_heads": 1, "head_dim": 32}, "float16"),
    "rwkv5": ({"architecture": "rwkv5", **RWKV, "n_heads": 2, "n_kv_heads": 2}, "float16"),
    "rwkv6": ({"architecture": "rwkv6", **RWKV, "n_heads": 2, "n_kv_heads": 2, "ranks": (5, 7)}, "q8"),
    "rwkv7": ({"architecture": "rwkv7", **RWKV, "n_heads": 2, "n_kv_heads": 2, "ranks": (8, 5, 3, 12)}, "q4"),
    "micro_rwkv": (MICRO, "float32"),
}
# Name of the file: its model, and what it is loaded with.
SESSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("float16", {}),
    "kv_int8": ("q4_offsets", {"kv_bits": 8}),
    "window": ("float32", {"window": 16, "sinks": 2}),
    "memory_attention": ("memory_llama", {}),
    "llama2rnn": ("memory_llama", {}),
    "recurrent_4": ("rwkv4", {}),
    "recurrent_7": ("rwkv7", {}),
    "micro": ("micro_rwkv", {}),
    "chat": ("bfloat16_qwen2", {}),
}
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endfor %}<s>assistant:"


def matrix(values: Any, kind: str, rng: np.random.Generator) -> Tensor:
    """float32 [out_features, in_features] as ``kind`` keeps it."""
    if kind.startswith(("float", "bfloat")):
        kept: Tensor = values.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
        return kept
    if kind == "int8":
        numbers, scales = q8_groups(values.reshape(-1), 16)
        return Int8Matrix(numbers.reshape(values.shape), scales, 16)
    made = round_to_nearest(values, 8 if kind == "q8" else 4, 16)
    scales, zeros = made.scales_and_zeros()
    if kind == "q4 offsets":
        return AffineQuant.pack(made.rows(), scales, -scales * (zeros + np.float32(0.3)), 4, 16, has_offsets=True)
    if kind == "q4 perm":
        return replace(made, perm=rng.permutation(values.shape[1]).astype(np.int32))
    return made


def checkpoint(name: str, seed: int) -> Checkpoint:
    fields, kind = MODELS[name]
    config = ModelConfig.checked("x", {**LLAMA, **fields})
    rng = np.random.default_rng(seed)
    of_rwkv = {"decay": (-5.0, 0.0) if name == "rwkv4" else (0.4, 1.0), "w0": (-6.0, -1.0)}
    tensors: dict[str, Tensor] = {}
    for key, shape in tensor_shapes(config).items():
        leaf = key.rpartition(".")[2]
        if config.architecture.startswith("rwkv") and leaf in of_rwkv:
            tensors[key] = rng.uniform(*of_rwkv[leaf], shape).astype(np.float32)
        elif leaf.startswith("x_") or leaf in ("k_k", "k_a"):
            tensors[key] = rng.uniform(0, 1, shape).astype(np.float32)
        elif "mem" in leaf or len(shape) != 2 or min(shape) < 4:
            about = float(leaf == "weight" and "bias" not in key)
            tensors[key] = (about + 0.2 * rng.standard_normal(shape)).astype(np.float32)
        else:
            of_words = 0.4 if config.tied_head else 2.5  # so that texts do not repeat one token
            wide = of_words if "embeddings" in key or key in ("output.weight", "head.weight") else 1.5
            values = (wide * rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
            plain = is_thin(key) or (name == "micro_rwkv" and kind == "float32")
            tensors[key] = values if plain else matrix(values, kind, rng)
    spec = TokenizerSpec("bytes", b"") if config.vocab_size == 256 else TokenizerSpec("llama2c", tokenizer_bin())
    made = Checkpoint(FOLDER / name, "random", config, tensors, spec)
    if name == "bfloat16_qwen2":
        made = replace(made, stop_tokens=(299,), chat_template=TEMPLATE, sampling={"temperature": 0.6, "top_k": 20})
    return made


def clearness(llm: LLM, said: list[int]) -> float:
    """The smallest lead of a chosen token over the second best, in standard deviations of the logits."""
    prompt = llm.tokenizer.encode(PROMPT)
    logits = llm.logits(prompt + said)[len(prompt) - 1 : -1]
    best = np.sort(logits, axis=1)
    return float(((best[:, -1] - best[:, -2]) / logits.std(axis=1)).min())


def begun(llm: LLM) -> Session:
    session = Session(llm)
    session.add(llm.tokenizer.encode(PROMPT))
    return session


def write_model(name: str) -> dict[str, Any]:
    """The clearest of N_SEEDS models; what it says."""
    best: tuple[float, int] = (0.0, 0)
    path = FOLDER / f"{name}.bin"
    for seed in range(N_SEEDS):
        llm = LLM(checkpoint(name, seed), "cpu")
        answer = Answer(begun(llm), N_TOKENS, GREEDY)
        "".join(answer)
        if len(answer.tokens) == N_TOKENS and len(set(answer.tokens)) > 9:
            best = max(best, (clearness(llm, answer.tokens), seed))
    native.write(path, checkpoint(name, best[1]))
    llm = load(path, device="cpu")
    answer = Answer(begun(llm), N_TOKENS, GREEDY)
    text = "".join(answer)
    print(f"{name}: seed {best[1]}, lead {best[0]:.3f}, {path.stat().st_size} bytes: {text!r}", file=sys.stderr)
    return {"prompt": PROMPT, "ids": answer.tokens, "text": text, "lead": round(best[0], 4)}


def write_session(name: str) -> dict[str, Any]:
    """A text of one answer, and what comes after some more of it in the session itself."""
    model, options = SESSIONS[name]
    llm = load(FOLDER / f"{model}.bin", device="cpu", **options)
    form = "llama2rnn" if name == "llama2rnn" else "llamagpu"
    memory = Memory(str(FOLDER / f"{name}.session"), form)
    about: dict[str, Any] = {"model": model, "options": options, "format": form}
    if name == "chat":
        chat = Chat(Session(llm), choose_template("auto", llm)[0], "be on the one", GREEDY, 12)
        "".join(chat.ask("the ant"))
        memory.save(chat.session, chat.to_json())
        messages, tokens = list(chat.messages), list(chat.session.tokens)
        text = "".join(chat.ask("then?"))
        assert chat.answer is not None
        return {
            **about,
            "messages": messages,
            "tokens": tokens,
            "ask": "then?",
            "ids": chat.answer.tokens,
            "text": text,
        }
    session = begun(llm)
    "".join(Answer(session, N_TOKENS, SamplingParams(1.2, seed=5)))
    memory.save(session)
    tokens = list(session.tokens)
    session.add(llm.tokenizer.encode_more(MORE))
    answer = Answer(session, N_TOKENS, GREEDY)
    text = "".join(answer)
    return {**about, "tokens": tokens, "n_drawn": N_TOKENS, "seed": 5, "more": MORE, "ids": answer.tokens, "text": text}


def main() -> None:
    assert __version__ == "0.1.0", "later versions must not write these files"
    FOLDER.mkdir(parents=True, exist_ok=True)
    expected: dict[str, Any] = {
        "models": {name: write_model(name) for name in MODELS},
        "sessions": {name: write_session(name) for name in SESSIONS},
        "flags": {
            name: [p.name for p in inspect.signature(command).parameters.values()] for name, command in COMMANDS.items()
        },
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
