"""The commands that show something: what a model is, the ids of a text, what this machine would do."""

from __future__ import annotations

import importlib.metadata
import json as json_format
import platform

import numpy as np

from llamagpu import __version__
from llamagpu.backends.cuda.kernels import kernel_folder
from llamagpu.chat_templates import read_template_args
from llamagpu.chat_text import read_messages
from llamagpu.commands import DEMO_PROMPT, text_of
from llamagpu.devices import choose_device, cpu_description, why_no_gpu
from llamagpu.errors import LlamaGPUError, UsageError, printable
from llamagpu.formats import open_checkpoint
from llamagpu.gpu_driver import count_gpus
from llamagpu.llm import DEMO, find_tokenizer, load, model_path
from llamagpu.model_info import facts_of, rows_of
from llamagpu.model_text import open_text
from llamagpu.terminal import say
from llamagpu.text_files import piped_text
from llamagpu.tokenizers import Tokenizer


def info(model: str = DEMO, *, tokenizer: str | None = None, context: int | None = None, json: bool = False) -> None:
    """Show what a model file or folder is: shape, weights, tokenizer, memory.

    Args:
        model: A model file or folder, or demo.
        tokenizer: The tokenizer file, where the model does not hold it and it is not beside it.
        context: Number of positions to state the memory for. By default what the model was trained for.
        json: Write one JSON object, with sizes in bytes.
    """
    checkpoint = open_checkpoint(model_path(model))
    config = checkpoint.config
    if config.endless and context is not None:
        raise UsageError("this model has no end and a state of one size: leave out --context")
    positions = config.max_seq_len if context is None else context
    if not 1 <= positions <= config.max_seq_len:
        raise UsageError(f"context must be from 1 to {config.max_seq_len}, not {positions}")
    found: dict[str, object] | None = None
    try:
        spec, opened, path = find_tokenizer(checkpoint, tokenizer)
        found = {"kind": spec.kind, "n_tokens": opened.vocab_size, "file": str(path)}
        place = "inside the file" if path == checkpoint.path else f"from {printable(str(path))}"
        about_tokenizer = f"{spec.kind}, {opened.vocab_size} tokens, {place}"
    except LlamaGPUError as error:
        if tokenizer is not None:
            raise
        about_tokenizer = f"none: {error}"
    if json:
        print(json_format.dumps(facts_of(checkpoint, positions) | {"tokenizer": found}, indent=1))
        return
    for name, value in rows_of(checkpoint, about_tokenizer, positions):
        print(f"{name:<13} {printable(value)}")


def tokenize(
    model: str,
    text: str | None = None,
    *,
    tokenizer: str | None = None,
    bos: bool = True,
    special: bool = False,
    pieces: bool = False,
    messages: str | None = None,
    template: str = "auto",
    template_args: str | None = None,
    json: bool = False,
) -> None:
    """Show the token ids of a text, or of a conversation, on one line.

    Args:
        model: A model file or folder, demo, a tokenizer file, or a folder that holds one.
        text: The text. - is standard input, and so is no TEXT where stdin is not a terminal.
        tokenizer: The tokenizer file, where the model does not hold it and it is not beside it.
        bos: Begin with the model's start token, as run does.
        special: Read control tokens that are written in the text.
        pieces: One token a line: its id and its text, or the name of a control token.
        messages: Instead of a text: a JSON file with a list of messages, as chat would read them; - is standard input.
        template: With --messages: auto, model (its own), llama2 or plain.
        template_args: With --messages: a JSON object of what the model's template may ask for.
        json: Write one JSON object: ids, and with --pieces the text of each, or its bytes where they are no text.
    """
    if text is None and messages is None:
        text = piped_text() or None
    if text is None and messages is None:
        raise UsageError("TEXT is missing: give one, or --messages FILE")
    if text is not None and messages is not None:
        raise UsageError("give a TEXT or --messages FILE, not both")
    if messages is None and (template != "auto" or template_args is not None):
        raise UsageError("--template and --template_args are for --messages")
    if messages is not None and (special or not bos):
        raise UsageError("--special and --bos are for a TEXT: of a conversation the template decides")
    said = read_messages(messages) if messages is not None else []
    values = read_template_args(template_args)
    opened = open_text(model, tokenizer)
    if text is None:
        ids = opened.chat_ids(said, values, template, say)
    else:
        ids = opened.tokenizer.encode(text_of(text), add_bos=bos, special=special)
    found = [piece_of(opened.tokenizer, token) for token in ids] if pieces else []
    if json:
        of_pieces = {"pieces": [list(piece) if isinstance(piece, bytes) else piece for piece in found]}
        print(json_format.dumps({"ids": ids} | (of_pieces if pieces else {}), ensure_ascii=False))
    elif pieces:
        controls = set(opened.tokenizer.controls.values())
        for token, piece in zip(ids, found, strict=True):
            quoted = repr(piece)[1:] if isinstance(piece, bytes) else repr(piece)
            print(f"{token}\t{printable(str(piece)) if token in controls else quoted}")
    else:
        print(*ids)


def piece_of(tokenizer: Tokenizer, token: int) -> str | bytes:
    """The text of a token, or how a control token is written; bytes where it is no whole character."""
    if token in tokenizer.controls.values():
        return tokenizer.text_of(token) or ""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def doctor(*, json: bool = False) -> None:
    """Show which device would run, and why not the GPU.

    Args:
        json: Write one JSON object.
    """
    n_gpus, _ = count_gpus()
    kernels = kernel_folder()
    rows = [
        ("llamagpu", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("processor", cpu_description()),
        ("GPUs", str(n_gpus)),
        ("CuPy", installed("cupy-cuda12x", "cupy-cuda13x", "cupy")),
        ("kernels", str(kernels) if kernels else "missing: reinstall llamagpu"),
        ("GPU", why_no_gpu(0) or "ready"),
    ]
    rows.append(("will run on", choose_device("auto").description))
    try:
        text = "".join(load(DEMO).generate(DEMO_PROMPT, max_tokens=8, temperature=0))
        rows.append(("self-test", f"passed: {DEMO_PROMPT}{text}"))
        failed = None
    except LlamaGPUError as error:
        rows.append(("self-test", f"failed: {error}"))
        failed = error
    if json:
        print(json_format.dumps({name.replace(" ", "_").replace("-", "_"): value for name, value in rows}, indent=1))
    else:
        for name, value in rows:
            print(f"{name:<13} {value}")
    if failed:
        raise failed


def installed(*names: str) -> str:
    """Name and version of the first of these packages that is installed."""
    for name in names:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"
