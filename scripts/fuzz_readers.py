"""Throw damaged files at the readers: each must be read or refused with ModelFormatError, fast and in little memory.

    python scripts/fuzz_readers.py --minutes 10           # all readers, one after the other, ten minutes in all
    python scripts/fuzz_readers.py --target native --minutes 1 --seed 5

Every case is made from its number alone, so a failure can be run again with --case N. A worker process does the
reading; if it dies (a crash inside a library) or hangs, that is a failure too. Prints JSON; exit status 1 on failures.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import struct
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fire
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from llamagpu.checkpoint import Checkpoint, TokenizerSpec
from llamagpu.errors import ModelFormatError
from llamagpu.formats import native, open_checkpoint
from llamagpu.quantization import Int8Matrix
from llamagpu.tokenizers import open_spec, read_spec
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes, v1_bytes, v2_bytes

MAX_SECONDS = 1.0
MEMORY_FACTOR = 2
MEMORY_SLACK = 4 << 20  # the interpreter's and the allocator's own grain, whatever the file's size
CASE_TIMEOUT = 20.0
INTERESTING = [0, 1, -1, 2, 3, 7, 255, 256, 257, 2**15, 2**16, 2**24, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**62]


def seed_files() -> dict[str, list[bytes]]:
    """Valid files of each kind, to be damaged."""
    shape, untied = Shape(), Shape(tied=False, n_kv_heads=4)
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
    return {
        "llama2c_v0": [v0_bytes(shape, weights), v0_bytes(untied, untied_weights)],
        "llama2c_v1": [v1_bytes(shape, weights), v1_bytes(untied, untied_weights)],
        "llama2c_v2": [v2_bytes(shape, weights, 16), quantized],
        "native": native_files,
        "tokenizer_bin": [tokenizer_bin(), tokenizer_bin(raw_byte_dialect=True)],
        "tokenizer_model": [open_checkpoint(demo).tokenizer.data] if demo.exists() else [],  # type: ignore[union-attr]
    }


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
        new = str(rng.choice([*INTERESTING, 2**64, 10**40, "1e9", "null", "1.5", "[]", "NaN"]))
    elif words:
        place = rng.choice(words)
        new = rng.choice([text[slice(*rng.choice(words).span())], '""', '"\\u0000"', "[" * 2000, "{}", "true"])
    else:
        return
    changed = (text[: place.start()] + new + text[place.end() :]).encode("latin-1")
    out[: 8 + length] = struct.pack("<Q", len(changed)) + changed


def read(path: Path, target: str) -> None:
    """What a program does with a file: open it, touch every tensor, use the tokenizer."""
    if target.startswith("tokenizer"):
        specs = [read_spec(path)]
    else:
        checkpoint = open_checkpoint(path)
        for tensor in checkpoint.tensors.values():
            if isinstance(tensor, Int8Matrix):
                tensor.dequantize(0, 1)
                tensor.dequantize(tensor.shape[0] - 1)
            else:
                np.asarray(tensor).reshape(-1)[[0, -1]].astype(np.float32)
        specs = [checkpoint.tokenizer] if checkpoint.tokenizer else []
    for spec in specs:
        tokenizer = open_spec(spec, path)
        tokenizer.decode(tokenizer.encode("Once upon a time, the cat 猫 sat.\n🙂 <s> \u2581x"))
        tokenizer.decode([0, tokenizer.vocab_size - 1])


def resident_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def work(pipe: Connection, folder: str) -> None:
    """Worker: for each (target, bytes) from the pipe, read the file and send what happened."""
    path = Path(folder, "case.bin")
    np.seterr(all="ignore")  # damaged scales overflow float32: no fault of the reader
    while (job := pipe.recv()) is not None:
        target, data = job
        path.write_bytes(data)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = resident_bytes("VmRSS")
        start = time.perf_counter()
        try:
            read(path, target)
            outcome, detail = "read", ""
        except ModelFormatError as error:
            outcome, detail = "refused", str(error)
            if "\n" in detail:
                outcome = "message of several lines"
        except BaseException as error:
            outcome, detail = "wrong exception", "".join(traceback.format_exception(error)[-4:])
        seconds = time.perf_counter() - start
        pipe.send((outcome, detail, seconds, resident_bytes("VmHWM") - before))


class Worker:
    def __init__(self, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=work, args=(child, folder), daemon=True)
        self.process.start()
        child.close()

    def run(self, target: str, data: bytes) -> tuple[str, str, float, int]:
        try:
            self.pipe.send((target, data))
            if not self.pipe.poll(CASE_TIMEOUT):
                self.process.kill()
                return "hang", "", CASE_TIMEOUT, 0
            result: tuple[str, str, float, int] = self.pipe.recv()
            return result
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            return "crash", f"exit code {self.process.exitcode}", 0.0, 0


def judge(outcome: str, seconds: float, memory: int, size: int) -> str:
    """Empty if the case went well, else what is wrong with it."""
    if outcome not in ("read", "refused"):
        return outcome
    if seconds > MAX_SECONDS:
        return "too slow"
    return "too much memory" if memory > MEMORY_FACTOR * size + MEMORY_SLACK else ""


def fuzz(minutes: float = 10, target: str | None = None, seed: int = 0, case: int | None = None) -> None:
    """Damage valid files at random for MINUTES in all, and count what the readers do with them."""
    seeds = seed_files()
    targets = [target] if target else list(seeds)
    every = [data for files in seeds.values() for data in files]
    report: dict[str, Any] = {}
    n_failures = 0
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(folder)
        for name in targets:
            counts = {"cases": 0, "read": 0, "refused": 0}
            failures: list[dict[str, Any]] = []
            slowest, largest = 0.0, 0
            end = time.monotonic() + 60 * minutes / len(targets)
            number = case if case is not None else 0
            while time.monotonic() < end and seeds[name]:
                data = make_case(seeds[name], every, name, seed, number)
                outcome, detail, seconds, memory = worker.run(name, data)
                counts["cases"] += 1
                counts[outcome] = counts.get(outcome, 0) + 1
                problem = judge(outcome, seconds, memory, len(data))
                if problem and not failures:  # once more, in a fresh process: another program may have held the machine
                    worker = Worker(folder)
                    outcome, detail, seconds, memory = worker.run(name, data)
                    problem = judge(outcome, seconds, memory, len(data))
                slowest, largest = max(slowest, seconds), max(largest, memory - MEMORY_FACTOR * len(data))
                if problem:
                    n_failures += 1
                    failures.append({"case": number, "size": len(data), "problem": problem, "detail": detail,
                                     "seconds": seconds, "memory": memory})  # fmt: skip
                if outcome in ("crash", "hang"):
                    worker = Worker(folder)
                if case is not None:
                    break
                number += 1
            report[name] = {
                **counts, "slowest_seconds": round(slowest, 3), "largest_bytes_above_twice_the_file": max(largest, 0),
                "failures": failures[:20], "n_failures": len(failures),
            }  # fmt: skip
            print(f"{name}: {counts}, {len(failures)} failures", file=sys.stderr, flush=True)
        worker.process.kill()
    print(json.dumps({"seed": seed, "minutes": minutes, "slack_bytes": MEMORY_SLACK, "targets": report}, indent=2))
    sys.exit(1 if n_failures else 0)


def make_case(files: list[bytes], every: list[bytes], name: str, seed: int, number: int) -> bytes:
    rng = random.Random(f"{name}/{seed}/{number}")
    return damage(rng.choice(files), rng, every)


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    fire.Fire(fuzz)
