"""Throw damaged files at the readers: each must be read or refused with ModelFormatError, fast and in little memory.

    python scripts/fuzz_readers.py --minutes 10           # all readers, one after the other, ten minutes in all
    python scripts/fuzz_readers.py --target native --minutes 1 --seed 5

Of a model that is a folder, each case is one damaged file among the good others.

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
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy: a process with threads should not be forked
os.environ["RUST_BACKTRACE"] = "0"  # else a panic of the tokenizers library reads 40 MB of symbols

import fire
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from fuzz_seeds import Case, memory_config, seed_files

from llamagpu.checkpoint import Checkpoint
from llamagpu.errors import ModelFormatError
from llamagpu.formats import open_checkpoint
from llamagpu.formats.llama2rnn_memory import read_memory
from llamagpu.quantization import AffineQuant, Deferred, Int8Matrix
from llamagpu.tokenizers import Tokenizer, open_spec, read_spec

MAX_SECONDS = 1.0
MEMORY_FACTOR = 2
# What is allowed above twice the file, whatever its size: the grain of interpreter and allocator, and the pages of a
# library's code at its first use. sentencepiece builds tables of its own, too: 8 MB for the 0.5 MB of Llama 2's model.
BUILDS_TABLES = ("tokenizer_model", "tokenizer_json", "native", "gguf", "huggingface")
MEMORY_SLACK = dict.fromkeys(BUILDS_TABLES, 8 << 20)
DEFAULT_SLACK = 4 << 20
CASE_TIMEOUT = 20.0
MEMORY_CONFIG = memory_config()
INTERESTING = [0, 1, -1, 2, 3, 7, 255, 256, 257, 2**15, 2**16, 2**24, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**62]
EXTREME = [2**64, 10**40, 10**400, "1e9", "1,1,1", "0,4611686018427387904", "null", "1.5", "[]", "NaN"]


def damage(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four random mutations of a file; they favour its first bytes, where the header is."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        size = len(out)
        near_start = rng.random() < 0.6
        at = rng.randrange(min(size, 300) if near_start else size) if size else 0
        if out[:2] == b"PK" and rng.random() < 0.4:  # the directory of a zip is at its end
            at = max(0, size - 1 - rng.randrange(2000))
        kind = 8 if data[:1] == b"{" and rng.random() < 0.7 else rng.randrange(10)  # else it is hardly ever JSON
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
    """Change a number, a string or a piece of JSON: of a file, or of a safetensors header whose length stays true."""
    is_file = out[:1] == b"{"
    if not is_file and (len(out) < 16 or out[8:9] != b"{"):
        return
    start, length = (0, len(out)) if is_file else (8, int.from_bytes(out[:8], "little"))
    if length > len(out) - start:
        return
    text = out[start : start + length].decode("latin-1")
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
    out[: start + length] = changed if is_file else struct.pack("<Q", len(changed)) + changed


def open_all(path: Path, target: str) -> tuple[Checkpoint | None, Tokenizer | None]:
    """Open a file as a program does; this is what time and memory are measured of."""
    if target.startswith("tokenizer"):
        path = path / "encoder.json" if path.is_dir() else path
        return None, open_spec(read_spec(path), path)
    if target == "llama2rnn_memory":
        read_memory(path, MEMORY_CONFIG)
        return None, None
    checkpoint = open_checkpoint(path)
    return checkpoint, open_spec(checkpoint.tokenizer, path) if checkpoint.tokenizer else None


def use_all(checkpoint: Checkpoint | None, tokenizer: Tokenizer | None) -> None:
    """Touch both ends of every tensor, and encode and decode a text: nothing that was accepted may fail later."""
    for tensor in checkpoint.tensors.values() if checkpoint else ():
        tensor = tensor.materialize() if isinstance(tensor, Deferred) else tensor
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


def write_case(path: Path, data: Case) -> None:
    if isinstance(data, bytes):
        path.write_bytes(data)
        return
    shutil.rmtree(path, ignore_errors=True)
    for name, content in data.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def size_of(data: Case) -> int:
    return len(data) if isinstance(data, bytes) else sum(map(len, data.values()))


def run_case(path: Path, target: str, data: Case) -> tuple[str, str, float, int]:
    """The same in a forked process, and "crash" or "hang" where that does not answer."""
    write_case(path, data)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the tokenizers library tells of its panics there
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
    every = [data for files in seeds.values() for data in files if isinstance(data, bytes)]
    np.seterr(all="ignore")  # damaged scales overflow float32: no fault of the reader
    report: dict[str, Any] = {}
    n_failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in targets:
            path = Path(folder, "case" if isinstance(seeds[name][0], dict) else "case.bin")
            for data in (b"\n\1", seeds[name][0]):  # what libraries load at first use is no part of any case
                if isinstance(data, type(seeds[name][0])):
                    write_case(path, data)
                    try_case(path, name)
            counts: dict[str, int] = {"cases": 0, "read": 0, "refused": 0}
            failures: list[dict[str, Any]] = []
            slowest, most_memory = 0.0, 0
            number = 0 if case is None else case
            end = time.monotonic() + 60 * minutes / len(targets)
            while time.monotonic() < end:
                data = make_case(seeds[name], every, name, seed, number)
                outcome, detail, seconds, memory = run_case(path, name, data)
                problem = judge(name, outcome, seconds, memory, size_of(data))
                if problem == "too slow":  # once more: another program may have held the machine
                    outcome, detail, seconds, memory = run_case(path, name, data)
                    problem = judge(name, outcome, seconds, memory, size_of(data))
                counts["cases"] += 1
                counts[outcome] = counts.get(outcome, 0) + 1
                slowest = max(slowest, seconds)
                most_memory = max(most_memory, memory - MEMORY_FACTOR * size_of(data))
                if problem:
                    failures.append({"case": number, "size": size_of(data), "problem": problem, "detail": detail,
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


def make_case(files: list[Case], every: list[bytes], name: str, seed: int, number: int) -> Case:
    rng = random.Random(f"{name}/{seed}/{number}")
    data = rng.choice(files)
    if isinstance(data, bytes):
        return damage(data, rng, every)
    file = rng.choice(sorted(data))
    if rng.random() < 0.5:  # most files of an unzipped model are numbers, in which damage is none
        file = rng.choice([name for name in sorted(data) if not name.rpartition("/")[2].isdigit()])
    return data | {file: damage(data[file], rng, every)}


if __name__ == "__main__":
    fire.Fire(fuzz)
