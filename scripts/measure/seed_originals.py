"""How the seed systems' own programs are run and what they say: for scripts/measure/seed_programs.

Nothing of theirs is here: a program is a path, a library is opened and called in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
STRUCT_BYTES, SECONDS = 1 << 16, 600  # more than any of their structs; for one run
CACHES_AT = 32 + 8 * (19 + 14)  # in runqm's struct: after the sizes, the weights, and the vectors of a token
QUANTIZE = {8: 0, 4: 1}  # simple-llama's numbers

# With the Python that has torch, in MicroRWKV's folder: weights by its own shapes, then logits and time
MICRO_RWKV = """
import json, sys, time
import numpy as np, torch
asked = json.load(sys.stdin)
sys.path.insert(0, asked["folder"])
from modelGenerate import GPT
class Config:
    pass
config = Config()
config.__dict__.update(asked["model_args"])
torch.manual_seed(1)
torch.set_num_threads(asked["threads"])
model = GPT(config).eval()
for name, p in model.named_parameters():
    if p.dim() == 2 and "time_" not in name:
        torch.nn.init.normal_(p, std=0.8 * p.shape[-1] ** -0.5)
torch.save({"model": model.state_dict(), "model_args": asked["model_args"], "config": {}}, asked["checkpoint"])
with torch.no_grad():
    rows = [model(torch.tensor([ids]))[0][0, -1].numpy() for ids in asked["texts"]]
    np.save(asked["logits"], np.array(rows))
    ids = torch.tensor([asked["texts"][0]])
    start = time.perf_counter()
    model.generate(ids, asked["n_tokens"])
    print(json.dumps({"tokens_per_s": asked["n_tokens"] / (time.perf_counter() - start)}))
"""


class FailedRun(Exception):
    """A program did not do its work; the message is what it said last."""


@dataclass(frozen=True)
class Said:
    """What a program wrote. seconds: the process as a whole. tokens_per_s: by its own word; 0 where it says nothing."""

    text: str
    tokens_per_s: float
    seconds: float


def run(command: Sequence[str | Path], threads: int, folder: Path | None = None, given: str | None = None,
        **environment: str) -> tuple[str, str, float]:  # fmt: skip
    """stdout, stderr and seconds of a command. Raises FailedRun."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    limits["OMP_WAIT_POLICY"] = "passive"  # a busy machine is no reason to spin
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, cwd=folder, timeout=SECONDS, check=False,
            input=given.encode() if given is not None else None,
            stdin=subprocess.DEVNULL if given is None else None, env={**os.environ, **limits, **environment},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedRun(str(error)) from None
    seconds = time.perf_counter() - start
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if done.returncode:
        last = (err.strip() or out.strip() or "nothing").splitlines()[-1]
        raise FailedRun(f"exit status {done.returncode}: {last}")
    return out, err, seconds


def speed(text: str, pattern: str = r"achieved tok/s: ([\d.]+)") -> float:
    found = re.findall(pattern, text)
    return float(found[-1]) if found else 0.0


def llama2c(program: Path, model: Path, tokenizer: Path, prompt: str, n_steps: int, threads: int,
            memory: Path | None = None) -> Said:  # fmt: skip
    """run, runq or runqm: greedy; n_steps positions, of which the prompt takes its own."""
    flags: list[str | Path] = ["-t", "0", "-n", str(n_steps), "-i", prompt, "-z", tokenizer]
    if memory is not None:
        flags += ["-o", memory]
    out, err, seconds = run([program, model, *flags], threads)
    out = re.sub(r"\A(Load memory from .*\n|Initialize memory\.\n)", "", out)
    return Said(out.removesuffix("\n"), speed(err), seconds)


def llama2c_chat(program: Path, model: Path, tokenizer: Path, turns: Sequence[str], memory: Path, threads: int,
                 last: int) -> Said:  # fmt: skip
    """runqm's chat, greedy, until position ``last`` of a chunk, where it ends."""
    flags: list[str | Path] = ["-t", "0", "-m", "chat", "-z", tokenizer, "-o", memory, "-n", str(last)]
    out, _, seconds = run([program, model, *flags], threads, given="".join(f"{turn}\n" for turn in turns))
    return Said(out, 0.0, seconds)


def llama2rs(program: Path, model: Path, tokenizer: Path, prompt: str, n_steps: int, threads: int,
             positional: bool = False) -> Said:  # fmt: skip
    """positional: the program of August 2023. It reads tokenizer.bin of its folder."""
    folder = model.parent / "llama2rs"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.bin").write_bytes(tokenizer.read_bytes())
    flags = ["-c", str(model), "-t", "0", "-s", str(n_steps), "-p", prompt]
    out, _, seconds = run(
        [program, *([str(model), "0", str(n_steps), prompt] if positional else flags)], threads, folder
    )
    text = out.partition("\nachieved tok/s")[0]
    return Said(text.split("<s>\n")[-1].removeprefix(" "), speed(out), seconds)


def rllama(program: Path, model: Path, tokenizer: Path, prompt: str, n_steps: int, threads: int, *more: str) -> Said:
    """Greedy by --top-k 1. n_steps: tokens with the prompt's and the start token."""
    where: list[str | Path] = [
        "--model-path",
        model,
        "--tokenizer-path",
        tokenizer,
        "--param-path",
        model / "params.json",
    ]
    how = [
        "--prompt",
        prompt,
        "--max-seq-len",
        str(n_steps),
        "--top-k",
        "1",
        "--max-threads",
        str(threads),
        "-q",
        *more,
    ]
    out, _, seconds = run([program, *where, *how], threads)
    return Said(out.removesuffix("\n"), 0.0, seconds)


def simple_llama(python: Path, folder: Path, model: Path, tokenizer: Path, prompt: str, n_tokens: int,
                 threads: int) -> Said:  # fmt: skip
    """Its run.py, greedy. n_tokens with the prompt's."""
    work = model.parent / "simple_llama"
    (work / "bin").mkdir(parents=True, exist_ok=True)
    for link, target in ((work / "build", folder / "build"), (work / "bin" / "tokenizer.model", tokenizer)):
        if not link.exists():
            link.symlink_to(target.resolve())
    flags = ["--bin", str(model), "--method", "greedy", "--max-toks", str(n_tokens), prompt]
    out, _, seconds = run([python, folder / "run.py", *flags], threads, work, TERM="dumb")
    lines = out.partition("Time to generate first token")[0].replace("\x1b", "\n").split("\n")
    return Said(
        next(line for line in reversed(lines) if line.strip()), speed(out, r"Tokens per second: ([\d.]+)"), seconds
    )


def ours(model: Path, tokenizer: Path | None, prompt: str, n_tokens: int, threads: int, *more: str | Path) -> Said:
    """llamagpu run on the CPU, greedy, with the prompt before the text."""
    command: list[str | Path] = [sys.executable, "-P", "-m", "llamagpu", "run", model, prompt, "--device", "cpu"]
    command += ["--temperature", "0", "--max_tokens", str(n_tokens), "--echo", *more]
    command += ["--tokenizer", tokenizer] if tokenizer is not None else []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    out, err, seconds = run(command, threads, PYTHONPATH=path)
    return Said(out, speed(err, r"generated .*?, ([\d.]+) tok/s"), seconds)


def our_chat(model: Path, tokenizer: Path, turns: Sequence[str], threads: int, *more: str) -> Said:
    """llamagpu chat on the CPU, greedy."""
    command: list[str | Path] = [sys.executable, "-P", "-m", "llamagpu", "chat", model, "--device", "cpu"]
    command += ["--temperature", "0", "--tokenizer", tokenizer, *more]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    out, _, seconds = run(command, threads, given="".join(f"{turn}\n" for turn in turns), PYTHONPATH=path)
    return Said(out.rstrip("\n"), 0.0, seconds)


def without_ends(said: Said) -> Said:
    """Control tokens are printed by some and not by others, and spaces after them; runqm says where a start token came."""  # noqa: E501
    text = re.sub(r"\ntokens \d+/\d+\n", "", said.text)
    return Said(re.sub(r"\n?</?s>\n?| ", "", text), said.tokens_per_s, said.seconds)


def micro_rwkv(python: Path, folder: Path, checkpoint: Path, model_args: dict[str, Any], texts: list[list[int]],
               threads: int) -> NDArray[np.float32]:  # fmt: skip
    """Writes a checkpoint of its model and returns the logits [texts, vocabulary] after each text."""
    request = {"folder": str(folder), "model_args": model_args, "checkpoint": str(checkpoint), "texts": texts,
               "logits": str(checkpoint.with_suffix(".npy")), "threads": threads, "n_tokens": 8}  # fmt: skip
    run([python, "-c", MICRO_RWKV], threads, given=json.dumps(request))
    return np.asarray(np.load(checkpoint.with_suffix(".npy")), np.float32)


@dataclass(frozen=True)
class Heard:
    """What a library of theirs said. ids: all that it was given and that it drew, greedily; logits [ids, vocab_size].

    slots: [renewals, 2, layers, M, dim], keys and values of llama2rnn's memory, as it began and after each chunk.
    """

    ids: list[int]
    logits: NDArray[np.float32]
    slots: NDArray[np.float32]


def library_logits(library: Path, kind: str, model: Path, ids: Sequence[int], vocab_size: int,
                   memory: Path | None = None, first: int = 0, n_more: int = 0) -> Heard:  # fmt: skip
    """kind: llama2c, llama2rnn, f32, q8 or q4 (of simple-llama). memory: a file from which llama2rnn goes on. first:
    the position of ids[0]. n_more: tokens to draw after the ids. The library is called in a process of its own."""
    out = model.parent / f"{model.name}.logits.npz"
    request = [str(library), kind, str(model), str(memory or ""), str(vocab_size), str(first), str(n_more), str(out)]
    run([sys.executable, str(Path(__file__)), "logits", *request, *map(str, ids)], 1)
    with np.load(out) as arrays:
        return Heard(arrays["ids"].tolist(), arrays["logits"], arrays["slots"])


def library_quantize(library: Path, source: Path, target: Path, bits: int) -> None:
    """simple-llama's own quantisation of a file."""
    run([sys.executable, str(Path(__file__)), "quantize", str(library), str(source), str(target), str(bits)], 1)


def call_logits(library: str, kind: str, model: str, memory: str, vocab_size: str, first: str, n_more: str, out: str,
                *asked: str) -> None:  # fmt: skip
    lib = ctypes.CDLL(library)
    pointer = ctypes.POINTER(ctypes.c_float)
    slots: list[NDArray[np.float32]] = []
    renew = None
    if kind in ("f32", "q8", "q4"):
        new, forward = getattr(lib, f"runtime_new_{kind}"), getattr(lib, f"runtime_forward_{kind}")
        new.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(new(model.encode()))
    else:
        space = ctypes.create_string_buffer(STRUCT_BYTES)
        handle, forward = ctypes.cast(space, ctypes.c_void_p), lib.forward
        lib.build_transformer(handle, model.encode())
        if kind == "llama2rnn":
            path = ctypes.c_char_p(memory.encode() if memory else None)
            lib.build_memoryer(ctypes.create_string_buffer(STRUCT_BYTES), path, handle, 0)
            renew = Renewal(lib, space)
            slots.append(renew.slots())
    forward.restype = pointer
    forward.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    ids, rows = [int(token) for token in asked], []
    for i in range(len(ids) + int(n_more)):
        place = int(first) + i
        row = forward(handle, ids[i], place % renew.mem_len if renew else place)
        rows.append(np.ctypeslib.as_array(row, (int(vocab_size),)).copy())
        if renew and (place + 1) % renew.mem_len == 0:
            renew()
            slots.append(renew.slots())
        if i + 1 >= len(ids):
            ids.append(int(rows[-1].argmax()))
    np.savez(out, ids=ids[: len(rows)], logits=np.array(rows), slots=np.array(slots, np.float32))


class Renewal:
    """What runqm's loop does after a chunk, by the places of its sizes and caches in the struct that it fills."""

    def __init__(self, lib: Any, space: Any) -> None:
        self.lib, self.space = lib, space
        self.dim, _, self.n_layers, _, _, _, self.n_positions, self.mem_len = struct.unpack_from("<8i", space)
        self.caches = struct.unpack_from("<3Q", space, CACHES_AT)  # keys, values, memory

    def __call__(self) -> None:
        for row in range(self.mem_len):
            for layer in range(self.n_layers):
                self.lib.update_memory_cache(self.space, ctypes.c_void_p(self.caches[2]), row, layer)

    def slots(self) -> NDArray[np.float32]:
        shape, pointer = (self.n_layers, self.n_positions, self.dim), ctypes.POINTER(ctypes.c_float)
        whole = [np.ctypeslib.as_array(ctypes.cast(at, pointer), shape) for at in self.caches[:2]]
        return np.array([part[:, : self.mem_len] for part in whole])


def call_quantize(library: str, source: str, target: str, bits: str) -> None:
    ctypes.CDLL(library).quant_model(source.encode(), target.encode(), ctypes.c_int(QUANTIZE[int(bits)]))


if __name__ == "__main__":
    calls: dict[str, Callable[..., None]] = {"logits": call_logits, "quantize": call_quantize}
    calls[sys.argv[1]](*sys.argv[2:])
