"""Throw damaged files at the readers: each must be read or refused with ModelFormatError, fast and in little memory.

    python scripts/fuzz_readers.py --minutes 10           # all readers, one after the other, ten minutes in all
    python scripts/fuzz_readers.py --target native --minutes 1 --seed 5

Every case is made from its number alone, so a failure can be run again with --case N. Each runs in a process of its
own, forked from one that has read nothing but a small file, so that a crash inside a library is seen, and no case
profits from memory that another left behind. Prints JSON; exit status 1 on failures. Linux only (/proc).
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy: a process with threads should not be forked

import fire
import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from llamagpu.checkpoint import Checkpoint, Tensor, TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats import native, open_checkpoint
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix
from llamagpu.tokenizers import Tokenizer, open_spec, read_spec
from tests.formats import gguf_files
from tests.llama2rs_files import llama2rs_file
from tests.simple_llama_files import simple_llama_file
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v1_bytes, v2_bytes

MAX_SECONDS = 1.0
MEMORY_FACTOR = 2
# What is allowed above twice the file, whatever its size: the grain of interpreter and allocator, and the pages of a
# library's code at its first use. sentencepiece builds tables of its own, too: 8 MB for the 0.5 MB of Llama 2's model.
MEMORY_SLACK = {"tokenizer_model": 8 << 20, "native": 8 << 20, "gguf": 8 << 20}
DEFAULT_SLACK = 4 << 20
CASE_TIMEOUT = 20.0
INTERESTING = [0, 1, -1, 2, 3, 7, 255, 256, 257, 2**15, 2**16, 2**24, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**62]
EXTREME = [2**64, 10**40, 10**400, "1e9", "1,1,1", "0,4611686018427387904", "null", "1.5", "[]", "NaN"]


def seed_files() -> dict[str, list[bytes]]:
    """Valid files of each kind, to be damaged."""
    shape, untied = Shape(), Shape(tied=False, n_kv_heads=4)
    large = Shape(dim=128, hidden_dim=384, n_layers=8, n_heads=8, n_kv_heads=4, vocab_size=2000)  # 6 MB
    large_weights = random_weights(large)
    weights, untied_weights = random_weights(shape), random_weights(untied)
    quantized = v2_bytes(Shape(hidden_dim=20), random_weights(Shape(hidden_dim=20)), 8)
    demo = Path(__file__).parent.parent / "llamagpu" / "demo.bin"
    native_files = [demo.read_bytes()] if demo.exists() else []
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
    return {
        "llama2c_v0": [v0_bytes(shape, weights), v0_bytes(untied, untied_weights), v0_bytes(large, large_weights)],
        "llama2c_v1": [v1_bytes(shape, weights), v1_bytes(untied, untied_weights), v1_bytes(large, large_weights)],
        "llama2c_v2": [v2_bytes(shape, weights, 16), quantized, v2_bytes(large, large_weights, 32)],
        "llama2rs": [llama2rs_file(variant, act_order=variant in "BC").data for variant in ("A", "B", "C", "float32")],
        "simple_llama": [simple_llama_file(bits)[0] for bits in (32, 8, 4)],
        "native": native_files,
        "gguf": gguf_seeds(),
        "tokenizer_bin": [tokenizer_bin(), tokenizer_bin(raw_byte_dialect=True), tokenizer_bin(32000)],
        "tokenizer_model": [open_checkpoint(demo).tokenizer.data] if demo.exists() else [],  # type: ignore[union-attr]
    }


def gguf_seeds() -> list[bytes]:
    """Each version, of small matrices, so that the header is much of the file; and the types of 256 weights."""
    files = []
    for version, arch in enumerate(("llama", "qwen2", "qwen3"), 1):
        shape = gguf_files.Shape(32, 32, 1, 2, 1, 16)
        small, _ = gguf_files.small_model(arch, ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"], shape)
        small.version = version
        small.keys |= gguf_files.small_vocabulary()
        files.append(small.to_bytes())
    large, _ = gguf_files.small_model("llama", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
    return [*files, large.to_bytes()]


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


def damage(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four random mutations of a file; they favour its first bytes, where the header is."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        size = len(out)
        near_start = rng.random() < 0.6
        at = rng.randrange(min(size, 300) if near_start else size) if size else 0
        kind = rng.randrange(10)
        if kind == 0:
            del out[at:]
        elif kind == 1:
            out += rng.randbytes(rng.choice([1, 1, 4, 100]))
        elif kind == 2 and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            value = rng.choice(INTERESTING) + rng.choice([0, 0, 1, -1])
            width = rng.choice([4, 8])
            aligned = at - at % 4 if rng.random() < 0.7 else at
            out[aligned : aligned + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
        elif kind == 4:
            del out[at : at + rng.choice([1, 4, 28, 1000])]
        elif kind == 5:
            out[at:at] = out[at : at + rng.choice([1, 4, 8, 256])]
        elif kind == 6:
            out[at : at + 16] = rng.randbytes(16)
        elif kind == 7:
            other = rng.choice(others)
            cut = rng.randrange(len(other))
            out[at : at + 64] = other[cut : cut + 64]
        elif kind == 8:
            damage_json(out, rng)
        elif kind == 9:
            out = bytearray(rng.randbytes(rng.choice([0, 1, 8, 27, 28, 40, 300, 5000])))
    return bytes(out)


def damage_json(out: bytearray, rng: random.Random) -> None:
    """Change a number, a string or a piece of a safetensors header, keeping its stated length true."""
    if len(out) < 16 or out[8:9] != b"{":
        return
    length = int.from_bytes(out[:8], "little")
    if length > len(out) - 8:
        return
    text = out[8 : 8 + length].decode("latin-1")
    numbers = list(re.finditer(r"-?\d+", text))
    words = list(re.finditer(r'"[^"]*"', text))
    if rng.random() < 0.6 and numbers:
        place = rng.choice(numbers)
        new = str(rng.choice([*INTERESTING, *EXTREME]))
    elif words:
        place = rng.choice(words)
        new = rng.choice([text[slice(*rng.choice(words).span())], '""', '"\\u0000"', "[" * 2000, "{}", "true"])
    else:
        return
    changed = (text[: place.start()] + new + text[place.end() :]).encode("latin-1")
    out[: 8 + length] = struct.pack("<Q", len(changed)) + changed


def open_all(path: Path, target: str) -> tuple[Checkpoint | None, Tokenizer | None]:
    """Open a file as a program does; this is what time and memory are measured of."""
    if target.startswith("tokenizer"):
        return None, open_spec(read_spec(path), path)
    checkpoint = open_checkpoint(path)
    return checkpoint, open_spec(checkpoint.tokenizer, path) if checkpoint.tokenizer else None


def use_all(checkpoint: Checkpoint | None, tokenizer: Tokenizer | None) -> None:
    """Touch both ends of every tensor, and encode and decode a text: nothing that was accepted may fail later."""
    for stored in checkpoint.tensors.values() if checkpoint else ():
        tensor = stored.materialize() if isinstance(stored, Deferred) else stored
        if isinstance(tensor, Int8Matrix | AffineQuant):
            tensor.dequantize(0, 1)
            tensor.dequantize(tensor.shape[0] - 1)
        else:
            np.asarray(tensor).reshape(-1)[[0, -1]].astype(np.float32)
    if tokenizer:
        tokenizer.decode(tokenizer.encode("Once upon a time, the cat 猫 sat.\n🙂 <s> \u2581x"))
        tokenizer.decode([0, tokenizer.vocab_size - 1, tokenizer.vocab_size])


def resident_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def try_case(path: Path, target: str) -> tuple[str, str, float, int]:
    """Outcome, detail, seconds and bytes of opening one file, in this process."""
    before, start = resident_bytes("VmRSS"), time.perf_counter()
    seconds, memory = 0.0, 0
    try:
        opened = open_all(path, target)
        seconds, memory = time.perf_counter() - start, resident_bytes("VmHWM") - before
        use_all(*opened)
        return "read", "", seconds, memory
    except ModelFormatError as error:
        outcome = "message of several lines" if "\n" in str(error) else "refused"
        detail = str(error)
    except BaseException as error:
        outcome, detail = "wrong exception", "".join(traceback.format_exception(error)[-4:])
    seconds = seconds or time.perf_counter() - start
    return outcome, detail, seconds, memory or resident_bytes("VmHWM") - before


def run_case(path: Path, target: str, data: bytes) -> tuple[str, str, float, int]:
    """The same in a forked process, and "crash" or "hang" where that does not answer."""
    path.write_bytes(data)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(try_case(path, target)).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    answer = b""
    deadline = time.monotonic() + CASE_TIMEOUT
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = pipe.read(65536)
            if not part:
                break
            answer += part
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hang", "", CASE_TIMEOUT, 0
    status = os.waitpid(child, 0)[1]
    if not answer:
        return "crash", f"exit status {os.waitstatus_to_exitcode(status)}", 0.0, 0
    outcome, detail, seconds, memory = json.loads(answer)
    return outcome, detail, seconds, memory


def judge(target: str, outcome: str, seconds: float, memory: int, size: int) -> str:
    """Empty if the case went well, else what is wrong with it."""
    if outcome not in ("read", "refused"):
        return outcome
    if seconds > MAX_SECONDS:
        return "too slow"
    allowed = MEMORY_FACTOR * size + MEMORY_SLACK.get(target, DEFAULT_SLACK)
    return "too much memory" if memory > allowed else ""


def fuzz(minutes: float = 10, target: str | None = None, seed: int = 0, case: int | None = None) -> None:
    """Damage valid files at random for MINUTES in all, and count what the readers do with them."""
    seeds = seed_files()
    targets = [target] if target else list(seeds)
    every = [data for files in seeds.values() for data in files]
    np.seterr(all="ignore")  # damaged scales overflow float32: no fault of the reader
    report: dict[str, Any] = {}
    n_failures = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.bin")
        for name in targets:
            for data in (b"\n\1", seeds[name][0]):  # what libraries load at first use is no part of any case
                path.write_bytes(data)
                try_case(path, name)
            counts: dict[str, int] = {"cases": 0, "read": 0, "refused": 0}
            failures: list[dict[str, Any]] = []
            slowest, most_memory = 0.0, 0
            number = 0 if case is None else case
            end = time.monotonic() + 60 * minutes / len(targets)
            while time.monotonic() < end:
                data = make_case(seeds[name], every, name, seed, number)
                outcome, detail, seconds, memory = run_case(path, name, data)
                problem = judge(name, outcome, seconds, memory, len(data))
                if problem == "too slow":  # once more: another program may have held the machine
                    outcome, detail, seconds, memory = run_case(path, name, data)
                    problem = judge(name, outcome, seconds, memory, len(data))
                counts["cases"] += 1
                counts[outcome] = counts.get(outcome, 0) + 1
                slowest = max(slowest, seconds)
                most_memory = max(most_memory, memory - MEMORY_FACTOR * len(data))
                if problem:
                    failures.append({"case": number, "size": len(data), "problem": problem, "detail": detail,
                                     "seconds": seconds, "memory": memory})  # fmt: skip
                if case is not None:
                    break
                number += 1
            n_failures += len(failures)
            report[name] = {
                **counts, "slowest_seconds": round(slowest, 3), "most_bytes_above_twice_the_file": most_memory,
                "bytes_allowed_above_twice_the_file": MEMORY_SLACK.get(name, DEFAULT_SLACK),
                "n_failures": len(failures), "failures": failures[:20],
            }  # fmt: skip
            print(f"{name}: {counts}, {len(failures)} failures", file=sys.stderr, flush=True)
    print(json.dumps({"seed": seed, "minutes": minutes, "targets": report}, indent=2))
    sys.exit(1 if n_failures else 0)


def make_case(files: list[bytes], every: list[bytes], name: str, seed: int, number: int) -> bytes:
    rng = random.Random(f"{name}/{seed}/{number}")
    return damage(rng.choice(files), rng, every)


if __name__ == "__main__":
    fire.Fire(fuzz)
