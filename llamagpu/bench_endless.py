"""Whether it is flat for ever: time per token and resident memory along a sequence of a million tokens."""

from __future__ import annotations

import itertools
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from llamagpu import __version__
from llamagpu.backends.cuda import CUDABackend
from llamagpu.bench_plot import Series, stacked, svg
from llamagpu.bench_report import figure, table
from llamagpu.errors import LlamaGPUError
from llamagpu.llm import LLM
from llamagpu.sampling import SamplingParams

MARKS = (1_000, 32_000, 100_000, 1_000_000)  # tokens before a measurement
TOKENS = MARKS[-1]
SPAN_SHARE = 100  # a measurement is this part of all tokens long
SHORTEST_SPAN = 10
WINDOW = 124  # of an ordinary model, where none is given
TIMES = {"p50_us": "p50 us", "p10_us": "p10 us", "cpu_us": "CPU us"}  # per token
MOST_SLOWER, MOST_GROWTH = 0.05, 1_000_000  # what we ask for: of the last against the first; bytes
GREEDY = SamplingParams(temperature=0, seed=0)


@dataclass(frozen=True)
class Sample:
    """The tokens after the first ``tokens``: microseconds from one to the next, and what is in memory then.

    p50_us, p10_us: by the clock on the wall, the median, and what the fastest tenth took at most, which other programs
    disturb least. cpu_us: processor time of this process, mean of the whole measurement. Bytes: resident in the host's
    memory, and taken of the GPU's; None where the system does not tell.
    """

    tokens: int
    p50_us: float
    p10_us: float
    cpu_us: float
    host_bytes: int | None
    device_bytes: int | None


def measure_endless(llm: LLM, n_tokens: int, done: Callable[[int], None] = lambda n: None) -> list[Sample]:
    """Decode greedily, n_tokens and a measurement more, and measure after 1k, 32k, 100k, ..., n_tokens of them.

    Nothing is kept per token but the times of one measurement. Raises LlamaGPUError where the model's text would end.
    """
    span = max(SHORTEST_SPAN, n_tokens // SPAN_SHARE)
    marks = [*(mark for mark in MARKS if mark + span <= n_tokens), n_tokens]
    state = llm.model.new_state(llm.state_options(1))
    if state.room is not None:
        raise LlamaGPUError("this model's context ends: give it a --window")
    times, samples = np.zeros(span + 1), list[Sample]()
    sampler = llm.backend.sampler(GREEDY, llm.config.vocab_size)
    bos = llm.tokenizer.bos_id if llm.checkpoint.tokenizer is not None else None
    logits = llm.model.forward([bos or 0], state)
    made = llm.model.decode(state, sampler, logits, n_tokens + span + 1)
    at = 0
    for mark in marks:
        for _ in itertools.islice(made, mark - at):
            done(1)
        start = time.process_time()
        for i in range(span + 1):
            next(made)
            times[i] = time.perf_counter()
            done(1)
        cpu = (time.process_time() - start) / (span + 1)
        at = mark + span + 1
        device = llm.backend.device.memory_in_use() if isinstance(llm.backend, CUDABackend) else None
        p50, p10 = np.percentile(np.diff(times), [50, 10]).tolist()
        samples.append(Sample(mark, 1e6 * p50, 1e6 * p10, 1e6 * cpu, resident_bytes(), device))
    return samples


def resident_bytes() -> int | None:
    """Of this process now; None where the system does not tell."""
    try:
        found = re.search(r"^VmRSS:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def report_endless(name: str, llm: LLM, samples: Sequence[Sample]) -> dict[str, Any]:
    """What ``--json`` writes: the figures, and whether they are as flat as we ask for. None: not known."""
    first, last = samples[0], samples[-1]

    def growth(of: str) -> int | None:
        before, after = getattr(first, of), getattr(last, of)
        return None if before is None or after is None else after - before

    slower = {of: getattr(last, of) / getattr(first, of) - 1 for of in TIMES}
    grown = [n for n in (growth("host_bytes"), growth("device_bytes")) if n is not None]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "llamagpu": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": asdict(llm.device),
        "model": {"name": name, "format": llm.checkpoint.format, "parameters": llm.checkpoint.n_parameters},
        "window": llm.window,
        "sinks": llm.sinks if llm.window else 0,
        "samples": [asdict(sample) for sample in samples],
        "slower": slower,
        "host_growth_bytes": growth("host_bytes"),
        "device_growth_bytes": growth("device_bytes"),
        "flat": {of: share <= MOST_SLOWER for of, share in slower.items()},
        "flat_memory": max(grown) < MOST_GROWTH if grown else None,
    }


def text_endless(report: dict[str, Any]) -> str:
    """The report on a screen."""
    rows = [
        [f"{row['tokens']:,}", *(figure(row[of], 1)[0] for of in TIMES), *megabytes(row["host_bytes"]),
         *megabytes(row["device_bytes"])]
        for row in report["samples"]
    ]  # fmt: skip
    titles = ["after tokens", *TIMES.values(), "resident MB", "GPU MB"]
    kept = (
        f"{report['sinks']} sinks and a window of {report['window']} tokens" if report["window"] else "its own memory"
    )
    growth, slower = report["host_growth_bytes"], report["slower"]
    times = [f"{TIMES[of]} {100 * share:+.1f}% ({verdict(report['flat'][of])})" for of, share in slower.items()]
    memory = "not known" if growth is None else f"{growth / 1e6:+.2f} MB ({verdict(report['flat_memory'])})"
    lines = [
        f"{report['model']['name']}, {kept}, on {report['device']['description']}",
        table(titles, rows),
        f"last against first: {', '.join(times)}; memory {memory};"
        f" asked for: within {100 * MOST_SLOWER:g}%, under {MOST_GROWTH / 1e6:g} MB",
    ]
    return "\n\n".join(lines)


def megabytes(n_bytes: int | None) -> list[str]:
    return figure(None if n_bytes is None else n_bytes / 1e6, 2)


def verdict(flat: bool | None) -> str:
    return "not known" if flat is None else "flat" if flat else "not flat"


def plot_endless(report: dict[str, Any]) -> str:
    """An SVG document: time per token above resident memory."""
    samples = report["samples"]

    def points(of: str, unit: float = 1.0) -> list[tuple[int, float]]:
        return [(row["tokens"], row[of] / unit) for row in samples if row[of] is not None]

    title, about = f"{report['model']['name']}: an endless sequence", report["device"]["description"]
    times = [Series("median", points("p50_us")), Series("processor time", points("cpu_us"))]
    pictures = [svg(title, about, times, "microseconds per token", "tokens so far (logarithmic)")]
    memory = [Series(name, points(of, 1e6)) for name, of in (("host", "host_bytes"), ("GPU", "device_bytes"))]
    memory = [one for one in memory if one.points]
    if memory:
        pictures.append(svg("Resident memory", about, memory, "megabytes", "tokens so far (logarithmic)"))
    return stacked(pictures)
