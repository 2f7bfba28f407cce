"""llamagpu convert: what it checks before any work, and the writing."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn

import numpy as np

from llamagpu.calibrate import SEQUENCE_TOKENS, Sequences, calibration_sequences
from llamagpu.checkpoint import Checkpoint
from llamagpu.devices import choose_device
from llamagpu.errors import UsageError, printable
from llamagpu.formats import huggingface_writer, native, open_checkpoint
from llamagpu.formats.atomic import atomic_folder
from llamagpu.formats.leftovers import remove_leftovers
from llamagpu.formats.mapped_file import forget_pages
from llamagpu.llm import find_tokenizer, model_path
from llamagpu.model_info import bytes_of
from llamagpu.quantization.affine import SMALLEST_GROUP
from llamagpu.quantize import Recipe, check_floats, output_bytes, quantised
from llamagpu.sampling import check_whole
from llamagpu.terminal import ENDING, ProgressBar, count_tokens, handled, human_bytes, say, say_removed
from llamagpu.text_files import read_text_file
from llamagpu.tokenizers import Tokenizer, special_tokens

METHODS = ("none", "q8", "q4", "gptq")
FORMATS = ("llamagpu", "huggingface")
DEFAULT_GROUP, DEFAULT_HEAD_BITS, DEFAULT_CALIBRATION_TOKENS = 128, 8, 128 * SEQUENCE_TOKENS
SPARE_BYTES = 1 << 20  # of headers and what else is small


def convert(
    src: str,
    out: str,
    *,
    quantize: str = "none",
    group_size: int | None = None,
    head_bits: int | None = None,
    calibration: str | None = None,
    calibration_tokens: int | None = None,
    act_order: bool = False,
    format: str = "llamagpu",
    device: str = "auto",
    tokenizer: str | None = None,
    force: bool = False,
) -> None:
    """Write any model that opens as one native model.bin, tokenizer inside, or as a Hugging Face folder; quantise it.

    Args:
        src: The model to read.
        out: The file (or folder) to write. It bears this name only once it is whole.
        quantize: none keeps weights as they are; q8 and q4 round them to 8 or 4 bits; gptq learns 4 bits from a text.
        group_size: Weights that share a scale: 16, 32, 64, 128 ... or -1, the whole row. Default: 128.
        head_bits: Of head and embedding, tied or not: 4, 8 or 16 (float16). Default: 8; 16 in a Hugging Face folder.
        calibration: For gptq: a text file such as the model will meet.
        calibration_tokens: How much of it, from its beginning. Default: 65536, as 128 sequences of up to 512.
        act_order: For gptq: columns with the largest inputs first. Often better; costs a little speed.
        format: llamagpu (one file), or huggingface (a folder that other engines read, GPTQ where it is quantised).
        device: For gptq, where the matrices are solved: auto, cuda, cuda:N or cpu. The text is read on the CPU.
        tokenizer: The tokenizer file, where the model does not hold it and it is not beside it; none leaves it out.
        force: Replace OUT where it exists.
    """
    started = time.monotonic()
    check_flags(quantize, group_size, head_bits, calibration, calibration_tokens, act_order, format, device)
    as_folder = format == "huggingface"
    checkpoint = open_checkpoint(model_path(src))
    path = check_out(out, as_folder, force)
    say_removed(remove_leftovers(path.parent))  # now, since they may hold the space that is needed
    if quantize != "none":
        check_floats(checkpoint)
        if quantize == "gptq" and checkpoint.config.recurrent:
            kind = checkpoint.config.architecture
            raise UsageError(f"gptq learns what a Llama's layers see, and this is an {kind}: q4 and q8 need no text")
    source, opened = with_tokenizer(checkpoint, tokenizer)
    if as_folder:
        source = as_in_folder(source)
    plan, bar, xp = source, ProgressBar("writing", "B"), None
    if quantize != "none":
        sequences = None
        if quantize == "gptq":
            sequences = read_calibration(calibration or "", source, opened, calibration_tokens)
            xp = solver_module(device)
            bar.title = "quantising"
        recipe = Recipe(
            8 if quantize == "q8" else 4, max(0, DEFAULT_GROUP if group_size is None else group_size),
            bits_of_head(head_bits, as_folder), sequences, act_order, smallest_zero=int(as_folder),
        )  # fmt: skip
        plan = quantised(source, recipe, bar.advance, xp or np)
    bar.total = sum(t.nbytes for name, t in plan.tensors.items() if xp is None or is_solved(name, t.shape))
    check_space(path, plan)

    def on_progress(n_bytes: int) -> None:
        if xp is None:
            bar.advance(n_bytes)
        forget_pages()
        checkpoint.check_unchanged()

    with terminable():
        if as_folder:
            ids = special_tokens.named_ids(opened) if opened else (None, None)
            with atomic_folder(path) as folder:
                huggingface_writer.write_folder(folder, plan, ids, on_progress, tokenizer=opened)
        else:
            native.write(path, plan, on_progress)
    bar.close()
    for note in plan.notes:
        say(printable(note))
    about = "tokenizer inside" if plan.tokenizer else "no tokenizer"
    say(f"wrote {out}: {human_bytes(bytes_of(path))}, {about}, in {time.monotonic() - started:.1f} s")


def check_flags(
    quantize: str,
    group_size: int | None,
    head_bits: int | None,
    calibration: str | None,
    calibration_tokens: int | None,
    act_order: bool,
    format: str,
    device: str,
) -> None:
    """Raises UsageError for values that are none, and for flags that would do nothing."""
    if quantize not in METHODS:
        raise UsageError(f"--quantize must be {', '.join(METHODS[:-1])} or {METHODS[-1]}, not {quantize!r}")
    if format not in FORMATS:
        raise UsageError(f"--format must be {' or '.join(FORMATS)}, not {format!r}")
    if quantize == "none":
        for name, value in (("group_size", group_size), ("head_bits", head_bits)):
            if value is not None:
                raise UsageError(f"--{name} is of no use with --quantize none")
    if group_size is not None and group_size != -1 and not (is_power(group_size) and group_size >= SMALLEST_GROUP):
        raise UsageError(f"--group_size must be 16, 32, 64, 128 ... or -1 for the whole row, not {group_size}")
    if head_bits not in (None, 4, 8, 16):
        raise UsageError(f"--head_bits must be 4, 8 or 16, not {head_bits}")
    if format == "huggingface" and head_bits in (4, 8):
        raise UsageError(f"--head_bits {head_bits} has no place in a Hugging Face folder: it takes 16")
    if quantize == "gptq":
        if calibration is None:
            raise UsageError("gptq learns from text: give --calibration FILE (q4 needs none)")
        if calibration_tokens is not None:
            check_whole("calibration_tokens", calibration_tokens, 1, 1 << 30)
        return
    given = (calibration is not None, calibration_tokens is not None, act_order, device != "auto")
    for name, there in zip(("calibration", "calibration_tokens", "act_order", "device"), given, strict=True):
        if there:
            raise UsageError(f"--{name} is for --quantize gptq: {quantize} does not learn from text")


def is_power(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def bits_of_head(head_bits: int | None, as_folder: bool) -> Literal[4, 8, 16]:
    chosen = head_bits or (16 if as_folder else DEFAULT_HEAD_BITS)
    return 4 if chosen == 4 else 8 if chosen == 8 else 16


def check_out(out: str, as_folder: bool, force: bool) -> Path:
    """Where to write: behind a link, what it names. Raises UsageError for what may not be replaced."""
    path = Path(out)
    if os.path.lexists(path) and path.is_dir() != as_folder:
        what = ("is there and is no folder", "folder") if as_folder else ("is a folder", "file")
        raise UsageError(f"{out} {what[0]}: name the {what[1]} to write")
    if os.path.lexists(path) and not path.is_file() and not path.is_dir():
        raise UsageError(f"{out} is there and is no regular file: name another")
    if path.exists() and not force:
        raise UsageError(f"{out} exists: --force replaces it")
    if path.is_dir():
        others = [name for name in os.listdir(path) if not huggingface_writer.is_ours(name) or (path / name).is_dir()]
        if others:
            raise UsageError(f"{out} holds more than a model, such as {others[0][:80]!r}: name another folder")
    path = path.resolve()
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {out}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {out}: the folder {path.parent} may not be written")
    return path


def with_tokenizer(checkpoint: Checkpoint, tokenizer: str | None) -> tuple[Checkpoint, Tokenizer | None]:
    """The checkpoint with its tokenizer inside, and that opened. Raises UsageError."""
    if tokenizer == "none":
        return replace(checkpoint, tokenizer=None), None
    try:
        spec, opened, _ = find_tokenizer(checkpoint, tokenizer)
    except UsageError as error:
        raise UsageError(f"{error} (or leave it out with --tokenizer none)") from None
    return replace(checkpoint, tokenizer=spec), opened


def as_in_folder(checkpoint: Checkpoint) -> Checkpoint:
    """With the tokenizer in a kind that has a file there; a note where it has none."""
    spec = checkpoint.tokenizer
    if spec is not None and spec.kind == "gguf":
        from llamagpu.tokenizers.gguf import rebuilt

        return replace(checkpoint, tokenizer=replace(rebuilt(spec.data, checkpoint.path), facts=spec.facts))
    if spec is not None and spec.kind not in ("huggingface", "sentencepiece"):
        note = f"a tokenizer of kind {spec.kind} has no file in a Hugging Face folder: --tokenizer FILE will be needed"
        return replace(checkpoint, tokenizer=None, notes=(*checkpoint.notes, note))
    return checkpoint


def read_calibration(file: str, checkpoint: Checkpoint, tokenizer: Tokenizer | None, n_tokens: int | None) -> Sequences:
    """Token ids of a text file. Raises UsageError."""
    if tokenizer is None:
        raise UsageError("gptq reads a text, which needs a tokenizer: leave --tokenizer none out")
    n_tokens = n_tokens or DEFAULT_CALIBRATION_TOKENS
    text = read_text_file(file, f"--calibration {file}", most=64 * n_tokens)
    try:
        sequences = calibration_sequences(text, tokenizer, checkpoint.config, n_tokens)
    except UsageError as error:
        raise UsageError(f"--calibration {file}: {error}") from None
    say(f"calibrating with {count_tokens(sum(map(len, sequences)))} in sequences of up to {len(sequences[0])}")
    return sequences


def solver_module(device: str) -> ModuleType:
    """numpy or, where there is a GPU, cupy on it. Raises DeviceError."""
    chosen = choose_device(device)
    say(": ".join(filter(None, (f"solving on {chosen.description}", chosen.why_not_gpu))))
    if chosen.name == "cpu":
        return np
    from llamagpu.backends.cuda.cupy_device import import_cupy

    cupy: ModuleType = import_cupy()
    cupy.cuda.Device(int(chosen.name.removeprefix("cuda:"))).use()
    return cupy


def is_solved(name: str, shape: tuple[int, ...]) -> bool:
    """Whether GPTQ works on this tensor: what its progress counts."""
    return name.startswith("layers.") and len(shape) == 2


def check_space(path: Path, plan: Checkpoint) -> None:
    """Raises UsageError where the disk has too little left for what is to be written."""
    needed = output_bytes(plan.tensors) + len(plan.tokenizer.data if plan.tokenizer else b"") + SPARE_BYTES
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UsageError(f"{path} needs about {human_bytes(needed)}, and its disk has {human_bytes(free)} left")


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the work like Ctrl-C, which cleans up, with the status that a shell expects of them."""

    def end(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    with handled(ENDING, end):
        yield
