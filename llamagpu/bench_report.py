"""What a benchmark found, as text for people and as a dictionary for JSON: the same numbers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from llamagpu import __version__
from llamagpu.bench import DROPPED_STEPS, BenchSettings, Measured
from llamagpu.bench_kernels import KernelRow
from llamagpu.bench_peer import Peer
from llamagpu.checkpoint import Checkpoint
from llamagpu.devices import Device
from llamagpu.errors import printable
from llamagpu.terminal import human_bytes


@dataclass(frozen=True)
class Subject:
    """What is measured. bits, head_bits, group_size: of random weights; None for those of a file."""

    name: str
    checkpoint: Checkpoint
    device: Device
    bits: int | None = None
    head_bits: int | None = None
    group_size: int | None = None

    @property
    def weights(self) -> str:
        if self.bits is None:
            return self.checkpoint.format
        groups = f" in groups of {self.group_size}" if self.group_size else ""
        head = f", head and embedding of {self.head_bits} bits" if self.head_bits != self.bits else ""
        return f"random weights of {self.bits} bits{groups}{head}"


def report_dict(subject: Subject, settings: BenchSettings, measured: Measured, peer: Peer | None) -> dict[str, Any]:
    """Everything, ready for JSON. What was not measured is None."""
    figures = asdict(measured)
    for row in figures["decode"]:
        row["peer_tokens_per_s"] = theirs = peer.tokens_per_s(row["context"]) if peer else None
        row["times_peer"] = row["tokens_per_s"] / theirs if theirs and row["tokens_per_s"] else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "llamagpu": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": asdict(subject.device),
        "model": {
            "name": subject.name,
            "format": subject.checkpoint.format,
            "bits": subject.bits,
            "head_bits": subject.head_bits,
            "group_size": subject.group_size,
            "parameters": subject.checkpoint.n_parameters,
            "config": subject.checkpoint.config.to_dict(),
        },
        "settings": {**asdict(settings), "dropped_steps": DROPPED_STEPS},
        **figures,
        "peer": asdict(peer) if peer else None,
    }


def report_text(subject: Subject, report: dict[str, Any]) -> str:
    """The report on a screen, made of what ``report_dict`` gave."""
    load, settings = report["load"], report["settings"]
    speed = f" ({load['gb_per_s']:.2f} GB/s)" if load["gb_per_s"] is not None else ""
    how = "made" if subject.bits is not None else "loaded" if speed else "mapped, to be read as they are used,"
    device_memory, host_memory = report["peak_device_bytes"], report["peak_host_bytes"]
    memory = [
        f"{human_bytes(device_memory)} of the GPU in use" if device_memory is not None else "",
        f"{human_bytes(host_memory)} of the host" if host_memory is not None else "",
    ]
    facts = [
        ("llamagpu", f"{report['llamagpu']}, {report['date']}"),
        ("device", subject.device.description),
        ("model", f"{printable(subject.name)}: {subject.weights}; {report['model']['parameters']:,} parameters"),
        ("bandwidth", f"{report['bandwidth_gb_per_s']:.1f} GB/s copied (read and written)"),
        ("weights", f"{load['bytes'] / 1e6:.1f} MB {how} in {load['seconds']:.3f} s{speed}"),
        ("peak memory", "; ".join(filter(None, memory)) or "not known"),
    ]
    if report["dependent_launch"] is not None:
        facts.append(("launches", "dependent, in a graph" if report["dependent_launch"] else "plain, in a graph"))
    blocks = ["\n".join(f"{name:<13} {value}" for name, value in facts)]
    if report["decode"]:
        rows = decode_lines(report["decode"], with_peer=report["peer"] is not None)
        blocks.append(f"decode, median of {settings['tokens']} steps\n{rows}")
    if report["peer"]:
        peer = report["peer"]
        about = f"left out: {peer['left_out']}" if peer["left_out"] else f"{peer['name']}, {peer['dtype']}"
        blocks[-1] += f"\npeer: {about}"
    if report["prompt"]:
        rows = table(
            ["tokens", "first token ms", "prompt tok/s"],
            [
                [str(row["tokens"]), *figure(row["first_token_ms"], 2), *figure(row["tokens_per_s"], 1)]
                if row["left_out"] is None
                else [str(row["tokens"]), f"left out: {row['left_out']}"]
                for row in report["prompt"]
            ],
        )
        blocks.append(f"prompt, one run each\n{rows}")
    if report["kernels"] is not None:
        kernels = [KernelRow(**row) for row in report["kernels"]]
        blocks.append(f"kernels of a decode step at context {report['kernels_context']}\n{kernel_lines(kernels)}")
    elif report["kernels_left_out"]:
        blocks.append(f"kernels left out: {report['kernels_left_out']}")
    return "\n\n".join(blocks)


def decode_lines(rows: Sequence[dict[str, Any]], with_peer: bool) -> str:
    titles = ["context", "tok/s", "p50 us", "p99 us", "MB/token", "GB/s", "% of bandwidth"]
    lines = []
    for row in rows:
        if row["left_out"] is not None:
            lines.append([str(row["context"]), f"left out: {row['left_out']}"])
            continue
        line = [
            str(row["context"]),
            *figure(row["tokens_per_s"], 2),
            *figure(row["p50_us"], 1),
            *figure(row["p99_us"], 1),
            *figure(row["bytes_per_token"] / 1e6, 3),
            *figure(row["gb_per_s"], 2),
            *figure(row["percent_of_bandwidth"], 1),
        ]
        lines.append(
            [*line, *figure(row["peer_tokens_per_s"], 2), *figure(row["times_peer"], 2)] if with_peer else line
        )
    return table([*titles, "peer tok/s", "times peer"] if with_peer else titles, lines)


def kernel_lines(rows: Sequence[KernelRow]) -> str:
    """One line a kernel and one for all; us are per launch, of a step where it says so."""
    lines = [
        [row.kernel, f"{row.us:.2f}", str(row.launches), f"{row.us * row.launches:.1f}", f"{row.bytes / 1e6:.3f}",
         f"{row.gb_per_s:.1f}"]
        for row in rows
    ]  # fmt: skip
    step_us, n_bytes = sum(row.us * row.launches for row in rows), sum(row.bytes for row in rows)
    launches = str(sum(row.launches for row in rows))
    lines.append(["all", "", launches, f"{step_us:.1f}", f"{n_bytes / 1e6:.3f}", f"{n_bytes / step_us / 1e3:.1f}"])
    return table(["kernel", "us", "launches", "us/step", "MB/step", "GB/s"], lines, left=1)


def figure(value: float | None, decimals: int) -> list[str]:
    """One cell; a dash for what was not measured."""
    return ["-" if value is None else f"{value:.{decimals}f}"]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Columns set to the right, the first ``left`` ones to the left. The last cell of a short row runs on as text."""
    whole = [row for row in rows if len(row) == len(titles)]
    widths = [max(len(row[i]) for row in [titles, *whole]) for i in range(len(titles))]
    widths[0] = max(len(row[0]) for row in [titles, *rows])
    lines = []
    for row in [titles, *rows]:
        n_cells = len(row) if len(row) == len(titles) else len(row) - 1
        cells = [f"{row[i]:<{widths[i]}}" if i < left else f"{row[i]:>{widths[i]}}" for i in range(n_cells)]
        lines.append("  " + "  ".join([*cells, *row[n_cells:]]).rstrip())
    return "\n".join(lines)
