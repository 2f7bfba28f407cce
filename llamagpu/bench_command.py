"""The command ``bench``: checks its flags, runs the measurements, writes the report."""

from __future__ import annotations

import json as json_format
import os
import re
from pathlib import Path
from typing import Any

from llamagpu import bench_endless
from llamagpu.backends.cpu.bandwidth import available_bytes
from llamagpu.bench import BenchSettings, check_measurable, measure
from llamagpu.bench_peer import Peer, check_peer, run_peer
from llamagpu.bench_plot import Series, svg
from llamagpu.bench_report import Subject, report_dict, report_text
from llamagpu.bench_shapes import BITS, SHAPES, random_checkpoint
from llamagpu.config import LARGEST
from llamagpu.devices import Device, OnWork, choose_device
from llamagpu.errors import UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.formats.atomic import atomic_write
from llamagpu.llm import DEMO, LLM, model_path
from llamagpu.models.window import keeps_every_token, window_and_sinks
from llamagpu.sampling import MASK64, check_whole
from llamagpu.terminal import ProgressBar, human_bytes, say

GROUP_SIZE = 128
SMALLEST_GROUP = 16  # that kernels read with one scale
MOST_POSITIONS = LARGEST["max_seq_len"] // 2  # room for the steps after them
STEPS, MOST_STEPS = 64, 1 << 20
MOST_ENDLESS = 1 << 40


def bench(
    model: str | None = None,
    *,
    shape: str | None = None,
    bits: int | None = None,
    head_bits: int | None = None,
    group_size: int | None = None,
    device: str = "auto",
    contexts: str = "128,4096,32768",
    prompts: str = "512,2048,8192",
    tokens: int | None = None,
    endless: bool = False,
    window: int | None = None,
    sinks: int | None = None,
    kernels: bool | None = None,
    json: str | None = None,
    plot: str | None = None,
    peer: str | None = None,
    seed: int = 0,
) -> None:
    """Measure speed: tok/s, bandwidth, time to first token, loading, memory, kernels. stdout is the report.

    Args:
        model: A model file, or demo, which it is by default.
        shape: Random weights, no file: llama2-7b, -13b, -70b, llama3-8b, llama3.2-1b, rwkv7-0.4b, -1.5b, -2.9b, -7b.
        bits: Of the random weights, 4, 8 or 16. By default 4.
        head_bits: Of the embedding and the head. By default as bits; 16 leaves them float16.
        group_size: Random weights of 4 and 8 bits that share a scale: 16, 32, 64, ... By default 128.
        device: auto, cuda, cuda:N or cpu. auto takes a GPU where one can be used.
        contexts: Decode at these numbers of positions, with commas between; none leaves decode out.
        prompts: Read prompts of these numbers of tokens, with commas between; none leaves them out.
        tokens: Decode steps measured at each context, by default 64; with --endless all of them, by default 1000000.
        endless: Instead, decode a million tokens: time per token and memory after 1k, 32k, 100k and all of them.
        window: With --endless, the tokens that are kept behind the sinks. By default 124.
        sinks: With --endless, how many of the first tokens are kept. By default 4.
        kernels: Time each kernel of a step, at the first context. By default on a GPU; --kernels=false leaves it out.
        json: Write everything to this file, too.
        plot: Draw tok/s against context to this file, as SVG.
        peer: transformers runs PyTorch and transformers on the same shape, in float16 on a GPU, to compare with.
        seed: Of the random weights and prompts.
    """
    lengths = [read_lengths("contexts", contexts), read_lengths("prompts", prompts)]
    if tokens is not None:
        check_whole("tokens", tokens, 1, MOST_STEPS if not endless else MOST_ENDLESS)
    check_whole("seed", seed, 0, MASK64 >> 1)
    outputs = {"json": json, "plot": plot}
    for name, file in outputs.items():
        check_output(name, file)
    if json is not None and plot is not None and Path(json).resolve() == Path(plot).resolve():
        raise UsageError("--json and --plot name the same file")
    if endless:
        for name, given in {"shape": shape, "peer": peer, "kernels": kernels}.items():
            if given is not None:
                raise UsageError(f"--{name} does not go with --endless")
        return run_endless(model or DEMO, device, tokens or bench_endless.TOKENS, window, sinks, json, plot)
    if window is not None or sinks is not None:
        raise UsageError("--window and --sinks are for --endless: without it each context is measured by itself")
    if peer is not None:
        check_peer(peer)
    check_source(model, shape, {"bits": bits, "head_bits": head_bits, "group_size": group_size})
    chosen = choose_device(device)
    if kernels and chosen.name == "cpu":
        raise UsageError("--kernels: the CPU has no kernels (they are timed on a GPU)")
    with_kernels = chosen.name != "cpu" if kernels is None else kernels
    settings = BenchSettings(lengths[0], lengths[1], tokens or STEPS, with_kernels, seed)
    if shape is not None:
        subject = random_subject(shape, bits or 4, head_bits, group_size, chosen, settings)
    else:
        checkpoint = open_checkpoint(model_path(model or DEMO))
        subject = Subject(model or DEMO, checkpoint, chosen)
    if peer is not None and not subject.checkpoint.config.keeps_keys:
        raise UsageError(f"--peer: transformers has no {subject.checkpoint.config.architecture} to compare with")
    say(": ".join(filter(None, (f"measuring on {chosen.description}", chosen.why_not_gpu))))
    bars: dict[str, ProgressBar] = {}
    try:
        # the peer first: its process is gone, and its memory free, before ours begins
        found = run_the_peer(subject, settings) if peer is not None else None
        measured = measure(subject.checkpoint, chosen.backend(in_bars(bars)), settings, in_bars(bars))
    except KeyboardInterrupt:
        close_bars(bars)
        say("interrupted: nothing is written")
        raise
    finally:
        close_bars(bars)
    report = report_dict(subject, settings, measured, found)
    print(report_text(subject, report))
    if json is not None:
        write(json, json_format.dumps(report, indent=1, allow_nan=False) + "\n")
    if plot is not None:
        draw(plot, subject, report)


def run_endless(
    model: str,
    device: str,
    n_tokens: int,
    window: int | None,
    sinks: int | None,
    json: str | None,
    plot: str | None,
) -> None:
    """``bench --endless``: an ordinary model gets a window, one that has no end by itself none."""
    bars: dict[str, ProgressBar] = {}
    try:
        checkpoint = open_checkpoint(model_path(model))
        check_measurable(checkpoint.config)
        if window is None and keeps_every_token(checkpoint.config):
            window = bench_endless.WINDOW
        kept = window_and_sinks(window, sinks)
        llm = LLM(checkpoint, device, on_work=in_bars(bars), window=kept[0], sinks=kept[1])
        say(": ".join(filter(None, (f"measuring on {llm.device.description}", llm.device.why_not_gpu))))
        bar = bars["endless"] = ProgressBar("measuring", "tok", n_tokens)
        samples = bench_endless.measure_endless(llm, n_tokens, bar.advance)
    finally:
        close_bars(bars)
    report = bench_endless.report_endless(model, llm, samples)
    print(bench_endless.text_endless(report))
    if json is not None:
        write(json, json_format.dumps(report, indent=1, allow_nan=False) + "\n")
    if plot is not None:
        write(plot, bench_endless.plot_endless(report))


def read_lengths(name: str, text: str) -> tuple[int, ...]:
    """The whole numbers of a flag such as --contexts. Raises UsageError."""
    if text == "none":
        return ()
    words = text.split(",")
    if not all(re.fullmatch(r"\s*\d{1,10}\s*", word) for word in words):
        raise UsageError(f"--{name} must be whole numbers with commas between, such as 128,4096, or none, not {text!r}")
    lengths = tuple(map(int, words))
    for length in lengths:
        check_whole(name, length, 1, MOST_POSITIONS)
    if len(set(lengths)) < len(lengths):
        raise UsageError(f"--{name} names a length twice: {text}")
    return lengths


def check_output(name: str, file: str | None) -> None:
    """Refuse a file that could not be written, before there is anything to write. Raises UsageError."""
    if file is None:
        return
    path = Path(file)
    if not file or path.is_dir():
        raise UsageError(f"--{name} {file} is a folder: name the file to write")
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"--{name} {file} is there and is no regular file: name another")
    if not path.resolve().parent.is_dir() or not os.access(path.resolve().parent, os.W_OK):
        raise UsageError(f"--{name} {file}: there is no folder {path.resolve().parent} that can be written")
    if name == "plot" and path.suffix.lower() != ".svg":
        raise UsageError(f"--plot {file}: the picture is SVG, so the name must end in .svg")


def check_source(model: str | None, shape: str | None, of_shape: dict[str, int | None]) -> None:
    """A model or a shape; what is said of random weights fits a shape and the kernels. Raises UsageError."""
    if shape is None:
        for name, value in of_shape.items():
            if value is not None:
                raise UsageError(f"--{name} is for random weights (--shape): a model file has its own")
        return
    if model is not None:
        raise UsageError("give a model or --shape, not both")
    if shape not in SHAPES:
        raise UsageError(
            f"--shape must be {', '.join(name for name in SHAPES if not name.startswith('tiny'))}, not {shape!r}"
        )
    for name in ("bits", "head_bits"):
        value = of_shape[name]
        if value is not None and value not in BITS:
            raise UsageError(f"--{name} must be 4, 8 or 16, not {value}")
    size = of_shape["group_size"]
    if size is not None and (size < SMALLEST_GROUP or size & (size - 1)):
        raise UsageError(f"--group_size must be a power of two from {SMALLEST_GROUP}, not {size}")
    if size is not None and (of_shape["bits"] or 4) == 16 == (of_shape["head_bits"] or 16):
        raise UsageError("--group_size is for weights of 4 and 8 bits")


def random_subject(
    shape: str, bits: int, head_bits: int | None, group_size: int | None, device: Device, settings: BenchSettings
) -> Subject:
    """Random weights of a shape, with positions for all that is asked. Raises UsageError where memory is too small."""
    head_bits, group_size = head_bits or bits, group_size or GROUP_SIZE
    checkpoint = random_checkpoint(shape, bits, head_bits, group_size, settings.positions, settings.seed)
    if device.name == "cpu":
        needed = checkpoint.nbytes * (2 if bits == 16 else 1)  # the CPU backend widens float16
        free = available_bytes()
        if free is not None and needed > 0.9 * free:
            raise UsageError(
                f"--shape {shape} at {bits} bits needs {human_bytes(needed)} of memory, {human_bytes(free)} are free:"
                " a smaller shape or fewer bits need less"
            )
    return Subject(shape, checkpoint, device, bits, head_bits, group_size if min(bits, head_bits) < 16 else None)


def run_the_peer(subject: Subject, settings: BenchSettings) -> Peer:
    config = subject.checkpoint.config
    contexts = tuple(context for context in settings.contexts if context <= config.max_seq_len)
    say("measuring the peer: transformers")
    return run_peer(config, subject.device.name, contexts, settings.tokens, settings.seed)


def in_bars(bars: dict[str, ProgressBar]) -> OnWork:
    """Progress as bars on the terminal, kept in ``bars`` by title."""

    def on_work(title: str, n: int, total: int) -> None:
        if title not in bars:
            unit = "tok" if title == "measuring" else "B" if total else "kernel"
            bars[title] = ProgressBar(title, unit, total)
        bars[title].advance(n)

    return on_work


def close_bars(bars: dict[str, ProgressBar]) -> None:
    for bar in bars.values():
        bar.close()


def draw(file: str, subject: Subject, report: dict[str, Any]) -> None:
    """The picture of --plot: ours, and the peer's where it ran."""
    ours, theirs = (
        [(row["context"], row[name]) for row in report["decode"] if row[name] is not None]
        for name in ("tokens_per_s", "peer_tokens_per_s")
    )
    if not ours:
        say(f"{file} is not written: decode was measured at no context")
        return
    series = [Series("llamagpu", ours)]
    if theirs:
        series.append(Series(f"{report['peer']['name']}, {report['peer']['dtype']}", theirs))
    title = f"{Path(subject.name).name}: decode speed"
    write(file, svg(title, f"{subject.weights} on {subject.device.description}", series))


def write(file: str, content: str) -> None:
    with atomic_write(Path(file).resolve()) as out:  # behind a link, the file that it names
        out.write(content.encode())
