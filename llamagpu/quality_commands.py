"""The commands that judge models: perplexity, and compare, which says what quantisation cost."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llamagpu.bench_command import check_output, write
from llamagpu.commands import about_faithful
from llamagpu.errors import UsageError, printable
from llamagpu.llm import LLM, load
from llamagpu.models.window import window_and_sinks
from llamagpu.perplexity import Window, score, stream, windows
from llamagpu.perplexity import compare as compare_models
from llamagpu.sampling import check_whole
from llamagpu.terminal import ProgressBar, human_bytes, say
from llamagpu.text_files import read_text_file

LONGEST_WINDOW = 2048
# The quirks of other programs (Quirks) that matter to a text which is read, and to one whose tokens are given
OF_TOKENS = ("activation_bits", "rope_layout")
OF_A_TEXT = (*OF_TOKENS, "adds_bos", "greedy_tokenizer")


def perplexity(
    model: str,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    documents: bool = False,
    limit: int = 0,
    window: int | None = None,
    sinks: int | None = None,
    tokens: int | None = None,
    kv_bits: int = 16,
    recurrent: bool = False,
    faithful: bool = False,
    device: str = "auto",
    tokenizer: str | None = None,
    json: str | None = None,
) -> None:
    """Measure how well a model predicts a text: negative log-likelihood of a token, and perplexity.

    Args:
        model: A model file or folder, or demo.
        text: A file of UTF-8 text; - is standard input.
        context: Tokens of a window. By default the model's positions, at most 2048.
        stride: Tokens from one window to the next. By default half the context.
        documents: The text is documents, one a line (a doubled newline is within one), each cut at the context.
        limit: Only the first so many windows or documents. 0: all.
        window: Read the text as one stream without end, of which the first few and the last so many tokens are kept.
        sinks: With --window, how many of the first tokens are kept. By default 4.
        tokens: With --window, only the first so many tokens. By default all.
        kv_bits: 8 keeps keys and values as whole numbers with a scale per head.
        recurrent: Of a micro_rwkv run the recurrent part alone: an approximation that is not the model.
        faithful: Do as the program that the file comes from, where that differs: for comparison, on the CPU.
        device: auto, cuda, cuda:N or cpu.
        tokenizer: The tokenizer file, where the model does not hold it and it is not beside it.
        json: Write every figure to this file, too.
    """
    check_output("json", json)
    kept = window_and_sinks(window, sinks)
    of_windows = {"context": context, "stride": stride, "documents": documents, "limit": limit}
    if not kept[0] and tokens is not None:
        raise UsageError("--tokens is for --window: windows of a text are bounded by --limit")
    for name, given in of_windows.items():
        if kept[0] and given:
            raise UsageError(f"--{name} does not go with --window, which reads the text as one stream")
    content = read_text(text)
    llm = load(
        model, device, tokenizer,
        faithful=faithful, kv_bits=kv_bits, window=kept[0], sinks=kept[1], recurrent=recurrent,
    )  # fmt: skip
    if kept[0]:
        parts = [stream(llm.tokenizer, content, tokens, llm.quirks.adds_bos)]
    else:
        parts = cut(llm, content, llm.longest, context, stride, documents, limit)
    say_notes(llm)
    say(f"running on {llm.device.description}")
    if faithful:
        say(about_faithful(llm, *OF_A_TEXT))
    bar = bar_of(parts)
    scored = score(llm, parts, bar.advance)
    bar.close()
    print_row("nats a token", f"{scored.nll:.5f} +- {scored.nll_error:.5f}")
    print_row("perplexity", f"{scored.perplexity:.4f} +- {scored.perplexity_error:.4f}")
    of_parts = "one stream" if kept[0] else count_parts(parts, documents)
    print_row("tokens", f"{scored.n_scored} scored in {of_parts}")
    say(f"{scored.n_read / scored.seconds:.0f} tok/s")
    save(json, {**asdict(scored), "perplexity": scored.perplexity, "n_windows": len(parts)})


def compare(
    model_a: str,
    model_b: str,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    documents: bool = False,
    limit: int = 0,
    kv_bits: int = 16,
    recurrent: bool = False,
    faithful: bool = False,
    device: str = "auto",
    tokenizer: str | None = None,
    json: str | None = None,
) -> None:
    """Compare two models of one vocabulary on a text: what quantisation cost.

    Args:
        model_a: The model that is taken for the truth. Its tokenizer reads the text.
        model_b: The model that is judged.
        text: A file of UTF-8 text; - is standard input.
        context: Tokens of a window. By default the positions that both models have, at most 2048.
        stride: Tokens from one window to the next. By default half the context.
        documents: The text is documents, one a line (a doubled newline is within one), each cut at the context.
        limit: Only the first so many windows or documents. 0: all.
        kv_bits: Of MODEL_B: 8 keeps keys and values as whole numbers with a scale per head.
        recurrent: Of MODEL_B, a micro_rwkv, run the recurrent part alone: what the approximation costs.
        faithful: Of MODEL_B: compute as the program that the file comes from, on the CPU: what its rounding costs.
        device: auto, cuda, cuda:N or cpu.
        tokenizer: The tokenizer file, where MODEL_A does not hold it and it is not beside it.
        json: Write every figure to this file, too.
    """
    check_output("json", json)
    content = read_text(text)
    a = load(model_a, device, tokenizer)
    b = load(model_b, device, kv_bits=kv_bits, recurrent=recurrent, faithful=faithful)
    parts = cut(a, content, min(a.longest, b.longest), context, stride, documents, limit)
    say_notes(a, b)
    for description in dict.fromkeys((a.device.description, b.device.description)):
        say(f"running on {description}")
    if faithful:
        say(about_faithful(b, *OF_TOKENS))
    bar = bar_of(parts)
    found = compare_models(a, b, parts, bar.advance)
    bar.close()
    sizes = a.checkpoint.nbytes, b.checkpoint.nbytes
    print_row(
        "KL divergence", f"{found.kl:.5f} +- {found.kl_error:.5f} nats a token, 99th percentile {found.kl_99:.4f}"
    )
    print_row("same top token", f"{100 * found.same_top:.2f}%")
    for name, of_model, size in (("perplexity A", found.a, sizes[0]), ("perplexity B", found.b, sizes[1])):
        error = f"{of_model.perplexity:.4f} +- {of_model.perplexity_error:.4f}"
        print_row(name, f"{error}, {human_bytes(size)} of weights")
    print_row("tokens", f"{found.n_scored} scored in {count_parts(parts, documents)}")
    save(json, {**asdict(found), "bytes_a": sizes[0], "bytes_b": sizes[1], "n_windows": len(parts)})


def read_text(file: str) -> str:
    """The text of a file, which is not empty. Raises UsageError."""
    text = read_text_file(file)
    if not text:
        raise UsageError(f"{file}: is empty")
    return text


def cut(
    llm: LLM, text: str, longest: int, context: int | None, stride: int | None, documents: bool, limit: int
) -> list[Window]:
    """The text in windows; ``longest``: positions that there are. Raises UsageError."""
    size = min(llm.most_seen or longest, longest, LONGEST_WINDOW) if context is None else context
    check_whole("context", size, 2, longest)
    check_whole("limit", limit, 0, 1 << 40)
    if documents and stride is not None:
        raise UsageError("--stride is for windows of one text, not for documents")
    stride = max(1, size // 2) if stride is None else stride
    return windows(llm.tokenizer, text, size, stride, documents, limit, llm.quirks.adds_bos)


def say_notes(*models: LLM) -> None:
    for note in dict.fromkeys(note for llm in models for note in llm.notes):
        say(printable(note))


def bar_of(parts: Sequence[Window]) -> ProgressBar:
    return ProgressBar("reading the text", "tok", sum(len(window.ids) for window in parts))


def count_parts(parts: Sequence[Window], documents: bool) -> str:
    return f"{len(parts)} {'document' if documents else 'window'}{'' if len(parts) == 1 else 's'}"


def print_row(name: str, value: str) -> None:
    print(f"{name:<15} {value}")


def save(file: str | None, report: dict[str, Any]) -> None:
    if file is not None:
        write(file, json_format.dumps(report, indent=2) + "\n")
