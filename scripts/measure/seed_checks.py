"""What scripts/measure/seed_programs compares: files made here, given to each system's own program and to ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import seed_originals as theirs
from numpy.typing import NDArray
from seed_files import (
    Shape,
    Weights,
    random_weights,
    tokenizer_bin,
    write_int8,
    write_llama2c,
    write_llama2rs,
    write_meta_unzipped,
    write_simple_llama,
)
from seed_originals import FailedRun, Heard, Said, ours
from seed_ties import LIMIT, Along, Same, quantized_alike

import llamagpu
from llamagpu.errors import LlamaGPUError
from llamagpu.llm import LLM
from llamagpu.memory import Memory
from llamagpu.session import Session

PROMPT, N_TOKENS, SPEED_TOKENS = "once there was a hat", 32, 64
STORIES = Shape(288, 768, 6, 6)  # of stories15M
MEMORY = Shape(288, 768, 6, 6, mem_len=32)
SMALL = Shape(64, 128, 2, 4, 512)  # for logits: so few numbers are rounded that hardly one falls beside a half
SMALL_MEMORY = Shape(64, 128, 2, 4, 512, 128, mem_len=64)


@dataclass(frozen=True)
class Row:
    """One comparison. same: None where it could not be made; result says what was found or why not. "ties": theirs and
    ours part where a number that is rounded lies next to a half, and agree where ours rounds it the other way."""

    system: str
    what: str
    result: str
    same: Same | None


@dataclass(frozen=True)
class Speed:
    """Medians of runs in turn, tokens a second."""

    system: str
    model: str
    theirs: float
    ours: float


@dataclass(frozen=True)
class Given:
    """Paths of what was given, by flag; and where to work."""

    paths: dict[str, Path]
    folder: Path
    threads: int
    simple_shape: Shape
    rs_shape: Shape
    group_size: int
    turns: int

    def get(self, name: str) -> Path:
        """Raises FailedRun for what was not given."""
        if name not in self.paths:
            raise FailedRun(f"not given: --{name}")
        return self.paths[name]


Check = Callable[[], tuple[str, Same]]
Found = Iterator[Row | Speed]


def row(system: str, what: str, check: Check) -> Row:
    try:
        result, same = check()
    except (FailedRun, LlamaGPUError, OSError) as error:
        not_given = str(error).startswith("not given")
        return Row(system, what, "not given in this run" if not_given else f"failed: {error}", None)
    return Row(system, what, result, same)


def same_text(a: Said, b: Said, prompt: str = PROMPT) -> tuple[str, bool]:
    """As far as both go: one may have made a token more."""
    length = min(len(a.text), len(b.text))
    n = next((i for i in range(length) if a.text[i] != b.text[i]), length)
    if n < length:
        return f"differs after {n - len(prompt)} of {length - len(prompt)} characters", False
    if length <= len(prompt):
        return f"nothing was generated: {a.text!r}, {b.text!r}", False
    return f"the same {length - len(prompt)} characters", True


def near(a: NDArray[np.float32], b: NDArray[np.float32], limit: float = LIMIT) -> tuple[str, bool]:
    """Of rows, one a token: how many agree from the first on, and how far the others are off."""
    each = np.abs(a - b).max(-1)
    n = int(np.argmax(each > limit)) if (each > limit).any() else len(each)
    largest = f"of logits up to {np.abs(a).max():.1f}"
    if n == len(each):
        return f"all {n} within {each.max():.1e} {largest}", True
    first = f"the first {n} of {len(each)} within {each[:n].max():.1e}, " if n else f"of {len(each)} "
    return f"{first}all within {each.max():.1e} {largest}", False


def or_ties(found: tuple[str, Same], llm: LLM, heard: Heard, own: NDArray[np.float32] | None = None,
            state: Any = None) -> tuple[str, Same]:  # fmt: skip
    """What was found, and where that differs, whether roundings next to a half are all of it.

    own: our logits of the first tokens, read at once. state: from which both begin; None: the beginning.
    """
    text, same = found
    if same:
        return found
    walk = Along(llm, heard)
    walk.go(state)
    if walk.ties.parted is not None or walk.ties.found or own is None:
        return f"{text}; {walk.ties}", "ties" if walk.ties.found and walk.ties.parted is None else False
    n = len(own)  # nothing parts token by token: then reading them at once has rounded otherwise
    at_once = Along(llm, Heard(heard.ids[:n], own, heard.slots))
    at_once.go()
    of_it = f"our reading of the first {n} at once, {at_once.ties}"
    return f"{text}; {walk.ties}; {of_it}", "ties" if at_once.ties.found and at_once.ties.parted is None else False


def text_or_ties(found: tuple[str, bool], said: Said, model: Path, tokenizer: Path, library: Path | None, kind: str,
                 n: int) -> tuple[str, Same]:  # fmt: skip
    """Of a text that differs: the library draws the program's, and ours goes along it. n: tokens to draw."""
    if found[1]:
        return found
    if library is None:
        return f"{found[0]}; without a library nobody looked for ties", False
    llm = llamagpu.load(model, "cpu", tokenizer, faithful=True)
    prompt = llm.encode_prompt(PROMPT)
    heard = theirs.library_logits(library, kind, model, prompt, llm.config.vocab_size, n_more=n)
    drawn = llm.tokenizer.decode(heard.ids[len(prompt) :]).replace(" ", "")
    text = theirs.without_ends(said).text.removeprefix(PROMPT.replace(" ", ""))
    length = min(len(text), len(drawn))
    if not length or drawn[:length] != text[:length]:
        return f"{found[0]}; the library's text is not the program's", False
    return or_ties(found, llm, heard, llm.logits(prompt))


def in_turn(given: Given, system: str, model: str, a: Callable[[], Said], b: Callable[[], Said]) -> Found:
    try:
        pairs = [(a().tokens_per_s, b().tokens_per_s) for _ in range(given.turns)]
    except FailedRun:
        return
    if pairs:
        yield Speed(system, model, *(median(column) for column in zip(*pairs, strict=True)))


def ids_of(llm: LLM, n: int) -> list[int]:
    """A start token and ids from a seed, past control tokens and bytes."""
    return [1, *np.random.default_rng(3).integers(300, llm.config.vocab_size, n - 1).tolist()]


def c_tokenizer(given: Given, vocab_size: int = 32000) -> Path:
    path = given.folder / f"tokenizer{vocab_size}.bin"
    if not path.exists():
        path.write_bytes(tokenizer_bin(vocab_size))
    return path


def check_llama2c(given: Given) -> Found:
    weights, tokenizer, n, threads = random_weights(STORIES, 1), c_tokenizer(given), N_TOKENS, given.threads
    files = {
        "run": (write_llama2c(given.folder / "stories.bin", STORIES, weights), "float32", ()),
        "runq": (write_int8(given.folder / "stories_q8.bin", STORIES, weights, 32), "8 bits", ("--faithful",)),
    }
    small = random_weights(SMALL, 3)
    of_logits = {
        "run": write_llama2c(given.folder / "small.bin", SMALL, small),
        "runq": write_int8(given.folder / "small_q8.bin", SMALL, small, 32),
    }
    for program, (model, kind, how) in files.items():
        name = f"llama2.c {program}"

        def both(n: int, model: Path = model, how: tuple[str, ...] = how, program: str = program) -> tuple[Said, Said]:
            a = theirs.llama2c(given.get(f"llama2c_{program}"), model, tokenizer, PROMPT, n, threads)
            return a, ours(model, tokenizer, PROMPT, n, threads, *how)

        yield row(name, f"text, {kind}", lambda both=both: same_text(*both(n)))  # type: ignore[misc]
        yield row(name, f"logits, {kind}", lambda model=of_logits[program], how=how, program=program: library_near(  # type: ignore[misc]
            given.get(f"llama2c_{program}_library"), "llama2c", model, bool(how)))  # fmt: skip
        flag = f"llama2c_{program}_model"
        yield row(name, f"text, a file of theirs, {kind}", lambda flag=flag, how=how, program=program: same_text(  # type: ignore[misc]
            theirs.llama2c(given.get(f"llama2c_{program}"), given.get(flag), given.get("llama2c_tokenizer"), PROMPT, 200,  # noqa: E501
                           threads),
            ours(given.get(flag), given.get("llama2c_tokenizer"), PROMPT, 200, threads, *how)))  # fmt: skip
        yield from in_turn(
            given, name, f"stories15M's shape, {kind}",
            lambda model=model, program=program: theirs.llama2c(  # type: ignore[misc]
                given.get(f"llama2c_{program}"), model, tokenizer, PROMPT, SPEED_TOKENS, threads),
            lambda model=model: ours(model, tokenizer, PROMPT, SPEED_TOKENS, threads),  # type: ignore[misc]
        )  # fmt: skip
    yield from odd_groups(given)


def odd_groups(given: Given) -> Found:
    """A hidden_dim of 172, as stories260K's, which groups of 32 do not divide and groups of 4 do."""
    shape = replace(SMALL, hidden_dim=172)
    weights = random_weights(shape, 3)
    for group_size, name in ((4, "fours.bin"), (32, "thirty_twos.bin")):
        model = write_int8(given.folder / name, shape, weights, group_size)
        yield row("llama2.c runq", f"logits, 8 bits, hidden_dim 172 in groups of {group_size}", lambda model=model,  # type: ignore[misc]
                  divides=group_size == 4: library_near(given.get("llama2c_runq_library"), "llama2c", model, True, divides))  # fmt: skip  # noqa: E501


def library_near(library: Path, kind: str, model: Path, faithful: bool, explain: bool = True) -> tuple[str, Same]:
    """explain: whether ties may be looked for; groups must divide all widths."""
    llm = llamagpu.load(model, "cpu", faithful=faithful)
    ids = ids_of(llm, 24)
    heard = theirs.library_logits(library, kind, model, ids, llm.config.vocab_size)
    own = llm.logits(ids)
    found = near(heard.logits, own)
    return or_ties(found, llm, heard, own) if llm.quirks.activation_bits and explain else found


def check_llama2rnn(given: Given) -> Found:
    system, threads, m = "llama2Rnn", given.threads, SMALL_MEMORY.mem_len
    model = write_int8(given.folder / "small_memory.bin", SMALL_MEMORY, random_weights(SMALL_MEMORY, 4), 32)
    large = write_int8(given.folder / "memory.bin", MEMORY, random_weights(MEMORY, 2), 32) if given.turns else model
    tokenizer, large_tokenizer = c_tokenizer(given, SMALL_MEMORY.vocab_size), c_tokenizer(given)

    def program(n_steps: int, memory: Path | None = None) -> Said:
        return theirs.llama2c(given.get("llama2rnn"), model, tokenizer, PROMPT, n_steps, threads, memory)

    def text(n_steps: int, *more: str | Path) -> Said:
        return ours(model, tokenizer, PROMPT, n_steps, threads, "--faithful", *more)

    yield row(system, "text over chunk boundaries", lambda: over_chunks(given, model, tokenizer, program, text))
    yield row(system, "logits", lambda: library_near(given.get("llama2rnn_library"), "llama2rnn", model, True))
    for n_steps, where in ((m // 2, "within a chunk"), (m, "at a chunk's end"), (2 * m + 5, "in the third chunk")):
        yield row(system, f"their memory file, {where}: logits of what follows",
                  lambda n_steps=n_steps: memory_logits(given, model, n_steps))  # type: ignore[misc]  # fmt: skip
        yield row(system, f"our memory file, {where}: their text from it, from their own",
                  lambda n_steps=n_steps: our_memory(given, model, n_steps, program))  # type: ignore[misc]  # fmt: skip
        yield row(system, f"chat, resumed {where}",
                  lambda n_steps=n_steps: chats(given, model, tokenizer, n_steps, program))  # type: ignore[misc]  # fmt: skip
    yield row(system, "chat, begun", lambda: chats(given, model, tokenizer, 0, program))
    yield row(system, "text past start and end tokens", lambda: past_ends(given))
    yield from in_turn(
        given, system, "stories15M's shape and a memory of 32",
        lambda: theirs.llama2c(given.get("llama2rnn"), large, large_tokenizer, PROMPT, SPEED_TOKENS, threads),
        lambda: ours(large, large_tokenizer, PROMPT, SPEED_TOKENS, threads),
    )  # fmt: skip


def over_chunks(given: Given, model: Path, tokenizer: Path, program: Callable[[int], Said],
                text: Callable[[int], Said]) -> tuple[str, Same]:  # fmt: skip
    n = 3 * SMALL_MEMORY.mem_len
    said = program(n)
    found = same_text(said, text(n))
    if found[1]:
        return found
    return text_or_ties(found, said, model, tokenizer, given.paths.get("llama2rnn_library"), "llama2rnn", n)


def memory_logits(given: Given, model: Path, n_steps: int) -> tuple[str, Same]:
    """Their file read by their library and by us, then the same tokens; none past the end of the chunk."""
    path, kept = given.folder / "theirs.memory", given.folder / "kept.memory"
    path.unlink(missing_ok=True)
    tokenizer = c_tokenizer(given, SMALL_MEMORY.vocab_size)
    theirs.llama2c(given.get("llama2rnn"), model, tokenizer, PROMPT, n_steps, given.threads, path)
    shutil.copy(path, kept)
    llm = llamagpu.load(model, "cpu", faithful=True)
    ids = ids_of(llm, 9)
    library, first = given.get("llama2rnn_library"), n_steps % SMALL_MEMORY.mem_len
    heard = theirs.library_logits(library, "llama2rnn", model, ids, llm.config.vocab_size, path, first)
    memory = Memory(str(kept), "llama2rnn")
    session, _ = memory.load(llm)
    rows = []
    for token in ids:
        session.add([token])
        rows.append(np.array(session.logits(64, lambda n: None, 1), np.float32)[-1])
    return or_ties(near(heard.logits, np.array(rows)), llm, heard, state=memory.load(llm)[0].state)


def our_memory(given: Given, model: Path, n_steps: int, program: Callable[..., Said]) -> tuple[str, Same]:
    """After the same ids our file and theirs; their program goes on from each."""
    own, made = given.folder / "theirs.memory", given.folder / "ours.memory"
    own.unlink(missing_ok=True)
    program(n_steps, own)
    as_it_was = own.read_bytes()
    llm = llamagpu.load(model, "cpu", c_tokenizer(given, SMALL_MEMORY.vocab_size), faithful=True)
    prompt = llm.encode_prompt(PROMPT)
    heard = theirs.library_logits(
        given.get("llama2rnn_library"), "llama2rnn", model, prompt, llm.config.vocab_size, n_more=n_steps - len(prompt)
    )
    n_all = (n_steps - 1) % SMALL_MEMORY.mem_len + 1 + N_TOKENS  # the original counts from the place in the file

    def compared(session: Session) -> tuple[str, bool]:
        own.write_bytes(as_it_was)
        Memory(str(made), "llama2rnn").save(session)
        return same_text(program(n_all, own), program(n_all, made), "")

    session = Session(llm)
    session.add(heard.ids)
    found = compared(session)
    if found[1]:
        return found
    walk = Along(llm, heard)
    session.restore(llm.model.save_state(walk.go()), n_steps)
    session.tokens = heard.ids
    again, same = compared(session)
    return (
        f"{found[0]}; {walk.ties}, and from such a file: {again}",
        "ties" if same and walk.ties.parted is None else False,
    )


def chats(given: Given, model: Path, tokenizer: Path, n_steps: int, program: Callable[..., Said]) -> tuple[str, bool]:
    own, copy = given.folder / "chat.memory", given.folder / "chat-ours.memory"
    for path in (own, copy):
        path.unlink(missing_ok=True)
    if n_steps:
        program(n_steps, own)
        shutil.copy(own, copy)
    said = theirs.llama2c_chat(
        given.get("llama2rnn"), model, tokenizer, ["ha"], own, given.threads, SMALL_MEMORY.mem_len - 1
    )
    said = Said(said.text.rpartition("Assistant: ")[2].strip(), 0, 0)
    flags = ["--faithful", "--session", str(copy), "--session_format", "llama2rnn", "--max_tokens", "64"]
    mine = theirs.our_chat(model, tokenizer, ["ha"], given.threads, *flags)
    return same_text(said, Said(mine.text.strip(), 0, 0), "")


def past_ends(given: Given) -> tuple[str, Same]:
    """A head that likes the start and the end token: they come, and the text goes on."""
    weights = random_weights(SMALL_MEMORY, 4)
    rows = np.random.default_rng(4).standard_normal((2, SMALL_MEMORY.dim), np.float32)
    weights["wcls"][1:3] = rows * np.float32(2 * SMALL_MEMORY.dim**-0.5)
    model = write_int8(given.folder / "ends.bin", SMALL_MEMORY, weights, 32)
    tokenizer, n = c_tokenizer(given, SMALL_MEMORY.vocab_size), 200
    a = theirs.llama2c(given.get("llama2rnn"), model, tokenizer, PROMPT, n, given.threads)
    b = ours(model, tokenizer, PROMPT, n, given.threads, "--faithful")
    n_ends = a.text.count("<s>") + a.text.count("</s>")
    text, same = same_text(theirs.without_ends(a), theirs.without_ends(b), PROMPT.replace(" ", ""))
    found = f"{text}; {n_ends} such tokens on the way", same and n_ends > 0
    if found[1] or not n_ends:
        return found
    return text_or_ties(found, a, model, tokenizer, given.paths.get("llama2rnn_library"), "llama2rnn", n)


def check_simple_llama(given: Given) -> Found:
    system, threads, shape = "simple-llama", given.threads, given.simple_shape
    weights = random_weights(shape, 6)
    for bits, kind, name in ((32, "f32", "llama.bin"), (8, "q8", "llama_q8.bin"), (4, "q4", "llama_q4.bin")):
        model = write_simple_llama(given.folder / name, shape, weights, bits)

        def library() -> Path:
            return given.get("simple_llama") / "build"

        def program(n: int, model: Path = model) -> Said:
            return theirs.simple_llama(given.get("torch_python"), given.get("simple_llama"), model,
                                       given.get("tokenizer_model"), PROMPT, n, threads)  # fmt: skip

        def text(n: int, *how: str, model: Path = model) -> Said:
            return ours(model, given.get("tokenizer_model"), PROMPT, n, threads, *how)

        def texts(p: Callable[..., Said] = program, t: Callable[..., Said] = text, model: Path = model,
                  kind: str = kind) -> tuple[str, Same]:  # fmt: skip
            said = p(N_TOKENS)
            found = same_text(said, t(N_TOKENS, "--faithful"))
            if found[1] or kind == "f32":
                return found
            return text_or_ties(
                found, said, model, given.get("tokenizer_model"), library() / "libllama.so", kind, N_TOKENS
            )

        yield row(system, f"text, {kind}", texts)
        yield row(system, f"logits, {kind}", lambda model=model, kind=kind, library=library: library_near(  # type: ignore[misc]
            library() / "libllama.so", kind, model, True))  # fmt: skip
        if bits != 32:
            yield row(system, f"the file that their quantize makes, {kind}",
                      lambda model=model, bits=bits: same_file(library(), model, shape, weights, bits))  # type: ignore[misc]  # fmt: skip
        yield from in_turn(given, system, f"{shape.dim} x {shape.n_layers}, {kind}", lambda p=program: p(SPEED_TOKENS),  # type: ignore[misc]
                           lambda t=text: t(SPEED_TOKENS))  # type: ignore[misc]  # fmt: skip


def same_file(library: Path, model: Path, shape: Shape, weights: Weights, bits: int) -> tuple[str, Same]:
    target = model.with_name("theirs_" + model.name)
    theirs.library_quantize(library / "libquantize.so", model.with_name("llama.bin"), target, bits)
    return quantized_alike(target, model, shape, weights, bits)


def check_llama2rs(given: Given) -> Found:
    system, shape, weights = "llama2.rs", given.rs_shape, random_weights(given.rs_shape, 7)
    kinds: Sequence[tuple[str, str, str, bool]] = (
        ("llama2rs", "C", "GPTQ variant C", True),
        ("llama2rs", "C", "GPTQ variant C, whose RoPE is another in the original", False),
        ("llama2rs_f32", "float32", "float32", True),
        ("llama2rs_2023", "A", "GPTQ variant A, no prompt", False),
    )
    for flag, variant, what, without_queries in kinds:
        old = variant == "A"
        prompt = "" if old else PROMPT
        note = ", wq of zeros" if without_queries else ""
        model = given.folder / f"{flag}{without_queries:d}.bin"
        write_llama2rs(model, shape, weights, variant, given.group_size, without_queries)

        def program(n: int, flag: str = flag, model: Path = model, prompt: str = prompt, old: bool = old) -> Said:
            tokenizer = given.get("llama2rs_tokenizer")
            return theirs.llama2rs(given.get(flag), model, tokenizer, prompt, n, given.threads, old)

        def text(n: int, *how: str, model: Path = model, prompt: str = prompt) -> Said:
            return ours(model, given.get("llama2rs_tokenizer"), prompt, n, given.threads, *how)

        yield row(system, f"text, {what}{note}", lambda p=program, t=text, prompt=prompt: same_text(  # type: ignore[misc]
            p(N_TOKENS), t(N_TOKENS, "--faithful"), prompt))  # fmt: skip
        if variant == "C" and not without_queries:
            yield from in_turn(given, system, f"{shape.dim} x {shape.n_layers}, GPTQ", lambda p=program: p(SPEED_TOKENS),  # type: ignore[misc]  # noqa: E501
                               lambda t=text: t(SPEED_TOKENS))  # type: ignore[misc]  # fmt: skip


def check_rllama(given: Given) -> Found:
    system, threads = "rllama", given.threads
    shape = Shape(256, 768, 4, 4)
    weights = random_weights(shape, 8)
    folders = {n: write_meta_unzipped(given.folder / f"meta{n}", shape, weights, n) for n in (1, 2)}

    def program(n_shards: int, prompt: str, *more: str, n: int = N_TOKENS) -> Said:
        tokenizer = given.get("tokenizer_model")
        return theirs.rllama(given.get("rllama"), folders[n_shards], tokenizer, prompt, n, threads, *more)

    def text(n_shards: int, prompt: str, *more: str, n: int = N_TOKENS) -> Said:
        tokenizer = given.get("tokenizer_model")
        return ours(folders[n_shards], tokenizer, prompt, n, threads, "--faithful", *more)

    for n_shards, prompt, what in ((1, PROMPT, "text"), (2, PROMPT, "text, two shards"),
                                   (1, "Computers are pretty complica", "text, a prompt that BPE reads otherwise"),
                                   (1, "", "text, empty prompt")):  # fmt: skip
        yield row(system, what, lambda s=n_shards, p=prompt: same_text(program(s, p), text(s, p), p))  # type: ignore[misc]
    penalty = ("--repetition-penalty", "0.8")
    yield row(system, "their text with a repetition penalty of 0.8 and without", lambda: same_text(
        program(1, PROMPT, *penalty), program(1, PROMPT)))  # fmt: skip
    yield row(system, "text, repetition penalty 0.8", lambda: same_text(
        program(1, PROMPT, *penalty), text(1, PROMPT, "--repetition_penalty", "0.8")))  # fmt: skip

    def their_speed() -> Said:
        """It says whole milliseconds: the time of more tokens less that of fewer."""
        short, long = (program(1, PROMPT, n=n) for n in (40, 40 + SPEED_TOKENS))
        return Said("", SPEED_TOKENS / (long.seconds - short.seconds), 0)

    yield from in_turn(given, system, f"{shape.dim} x {shape.n_layers}, float16 on disk", their_speed,
                       lambda: text(1, PROMPT, n=SPEED_TOKENS))  # fmt: skip


def check_micro_rwkv(given: Given) -> Found:
    for active in (4, 2):
        yield row("MicroRWKV", f"logits, {active} of 4 experts active", lambda a=active: micro_logits(given, a))  # type: ignore[misc]


def micro_logits(given: Given, active: int) -> tuple[str, bool]:
    args = {"block_size": 512, "vocab_size": 1000, "n_layer": 4, "n_head": 4, "n_embd": 128, "num_experts": 4,
            "num_active_experts": active, "expert_dim": 64, "dim": 128, "dropout": 0.0, "bias": False}  # fmt: skip
    rng = np.random.default_rng(9)
    texts = [rng.integers(0, 1000, n).tolist() for n in (30, 1, 7, 255, 256, 300)]
    checkpoint = given.folder / f"micro{active}.pt"
    a = theirs.micro_rwkv(given.get("torch_python"), given.get("micro_rwkv"), checkpoint, args, texts, given.threads)
    llm = llamagpu.load(checkpoint, "cpu")
    text, same = near(a, np.array([last_logits(llm, ids) for ids in texts]))
    return f"{text}; texts of {', '.join(str(len(ids)) for ids in texts)} tokens", same


def last_logits(llm: LLM, ids: list[int]) -> NDArray[np.float32]:
    """Of the last token alone: those before are of other texts, since this model also looks ahead."""
    logits = llm.model.forward(ids, llm.model.new_state(llm.state_options(len(ids))))
    last: NDArray[np.float32] = np.asarray(logits, np.float32).reshape(-1, llm.config.vocab_size)[-1]
    return last


CHECKS: dict[str, Callable[[Given], Found]] = {
    "llama2.c": check_llama2c, "llama2Rnn": check_llama2rnn, "llama2.rs": check_llama2rs,
    "MicroRWKV": check_micro_rwkv, "rllama": check_rllama, "simple-llama": check_simple_llama,
}  # fmt: skip
