"""The benchmark: what it counts, what it leaves out, what it refuses, what it writes. Never how long anything took."""

from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamagpu import bench_command, bench_kernels, bench_peer
from llamagpu.backends.cpu import CPUBackend, bandwidth
from llamagpu.backends.cuda import CUDABackend
from llamagpu.backends.cuda.cupy_device import CuPyDevice
from llamagpu.backends.cuda.device import Device as CUDADevice
from llamagpu.bench import BenchSettings, Measured, measure, weight_bytes_per_token
from llamagpu.bench_kernels import Recorded, kernel_rows, launch_bytes
from llamagpu.bench_peer import Peer, PeerRow, check_peer, run_peer
from llamagpu.bench_plot import Series, svg
from llamagpu.bench_report import Subject, report_dict, report_text
from llamagpu.bench_shapes import SHAPES, random_checkpoint
from llamagpu.checkpoint import Checkpoint
from llamagpu.devices import Device, OnWork
from llamagpu.errors import UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.models.llama import Llama
from llamagpu.sampling import SamplingParams
from tests.emulated_device import EmulatedDevice
from tests.fake_cupy import fake_cupy
from tests.kernels.harness import needs_emulator

# Matrices of the shape "tiny": two layers of wq, wo 64 x 64; wk, wv 32 x 64; w1, w2, w3 192 x 64; a head of 128 x 64
# beside the embedding, of which one row is read. Five norms of 64, always float32.
TINY_WEIGHTS = 2 * (2 * 4096 + 2 * 2048 + 3 * 12288) + 8192 + 64
TINY_NORM_BYTES = 5 * 64 * 4
TINY_KV_ELEMENTS = 2 * 2 * 2 * 16  # of a position: keys and values, layers, heads, head_dim
SETTINGS = BenchSettings(contexts=(16, 40), prompts=(3, 20), tokens=3, kernels=True, seed=0)
SVG = "{http://www.w3.org/2000/svg}"


def run_command(arguments: list[str]) -> int:
    """The command line, where fire is installed: on a GPU machine of gpu_check it is not."""
    pytest.importorskip("fire", reason="fire is not installed")
    from llamagpu.cli import run_command

    return run_command(arguments)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(bench_kernels, "SMALLEST_GRAPH", 4)
    monkeypatch.setattr(bench_kernels, "REPEATS", 2)


def tiny(max_seq_len: int = 100) -> Checkpoint:
    return random_checkpoint("tiny", 16, 16, 128, max_seq_len, seed=0)


def subject_of(checkpoint: Checkpoint) -> Subject:
    return Subject("tiny", checkpoint, Device("cuda:0", "the emulator", ""), 16, 16)


def check_arithmetic(measured: Measured) -> None:
    """What follows from other figures does follow from them."""
    for row in measured.decode:
        assert row.left_out is None
        assert row.p50_us is not None
        assert row.p99_us is not None
        assert row.bytes_per_token is not None
        assert row.weight_bytes is not None
        assert row.kv_bytes is not None
        assert row.tokens_per_s == pytest.approx(1e6 / row.p50_us)
        assert row.p99_us >= row.p50_us
        assert row.bytes_per_token == row.weight_bytes + row.kv_bytes
        assert row.gb_per_s == pytest.approx(row.bytes_per_token / row.p50_us / 1e3)
        assert row.gb_per_s is not None
        assert row.percent_of_bandwidth == pytest.approx(100 * row.gb_per_s / measured.bandwidth_gb_per_s)
    for prompt in measured.prompt:
        assert prompt.first_token_ms is not None
        assert prompt.tokens_per_s is not None
        assert prompt.first_token_ms >= 1e3 * prompt.tokens / prompt.tokens_per_s * 0.999


def test_on_the_cpu() -> None:
    work: dict[str, list[int]] = {}
    totals = {}

    def on_work(title: str, n: int, total: int) -> None:
        work.setdefault(title, []).append(n)
        totals[title] = total

    measured = measure(tiny(), CPUBackend(), replace(SETTINGS, kernels=False), on_work)
    check_arithmetic(measured)
    assert [row.context for row in measured.decode] == [16, 40]
    assert [row.tokens for row in measured.prompt] == [3, 20]
    assert [row.weight_bytes for row in measured.decode] == [4 * TINY_WEIGHTS + TINY_NORM_BYTES] * 2
    assert [row.kv_bytes for row in measured.decode] == [4 * TINY_KV_ELEMENTS * n for n in (16, 40)]
    assert measured.load.bytes == tiny().nbytes
    assert measured.load.gb_per_s is None, "nothing is moved to the CPU"
    assert (measured.kernels, measured.kernels_left_out, measured.peak_device_bytes) == (None, None, None)
    for title in ("loading the weights", "measuring"):
        assert sum(work[title]) == totals[title]


def test_on_the_cuda_backend(device: CUDADevice) -> None:
    checkpoint = tiny()
    measured = measure(checkpoint, CUDABackend(device), SETTINGS)
    check_arithmetic(measured)
    assert [row.weight_bytes for row in measured.decode] == [2 * TINY_WEIGHTS + TINY_NORM_BYTES] * 2
    assert [row.kv_bytes for row in measured.decode] == [2 * TINY_KV_ELEMENTS * n for n in (16, 40)]
    assert measured.load.gb_per_s == pytest.approx(checkpoint.nbytes / measured.load.seconds / 1e9)
    assert measured.peak_device_bytes is not None
    assert measured.peak_device_bytes >= checkpoint.nbytes
    assert measured.kernels is not None
    assert measured.kernels_context == 16
    assert "attention" in report_text(
        subject_of(checkpoint), report_dict(subject_of(checkpoint), SETTINGS, measured, None)
    )


def test_a_tied_head_is_read_and_the_embedding_is_not(small_model: Path) -> None:
    """tests/small_files.py: two layers of dim 16, 24 inside, kv 8; 300 tokens; all float32."""
    model = Llama(open_checkpoint(small_model), CPUBackend())
    layer = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16
    assert weight_bytes_per_token(model) == 4 * (2 * layer + 300 * 16 + 5 * 16)


@needs_emulator
def test_kernel_table() -> None:
    device = EmulatedDevice()
    backend = CUDABackend(device)
    model = Llama(tiny(), backend)

    def launches(n_tokens: int) -> int:
        cache = backend.kv_cache(model.config, 20)
        sampler = backend.sampler(SamplingParams(temperature=0, seed=0), model.config.vocab_size)
        logits, before = model.forward([1], cache), device.n_launches
        assert len(list(backend.decode(model.forward, cache, sampler, logits, n_tokens))) == n_tokens
        return device.n_launches - before

    at_16, at_40 = ({row.kernel: row for row in kernel_rows(model, backend, n, 64)} for n in (16, 40))
    assert backend.device is device
    assert sum(row.launches for row in at_16.values()) == launches(9) - launches(8)
    for row in at_16.values():
        assert row.us > 0
        assert row.gb_per_s == pytest.approx(row.bytes / (row.us * row.launches) / 1e3)
    grown = {name: at_40[name].bytes - at_16[name].bytes for name in at_16}
    assert sum(grown.values()) == (40 - 16) * 2 * TINY_KV_ELEMENTS
    assert {name.split("<")[0] for name, n in grown.items() if n} == {"attention_decode"}
    assert sum(row.bytes for row in at_16.values()) == pytest.approx(2 * TINY_WEIGHTS, rel=0.2)


def test_bytes_of_a_launch() -> None:
    """Each array as a whole; of the cache, the angles and the embedding the part that is visited."""
    keys, values = np.zeros((2, 3, 50, 16), np.float16), np.zeros((2, 3, 50, 16), np.float16)
    cache = SimpleNamespace(keys=keys, values=values, angles=np.zeros((50, 8), np.float32), capacity=50)
    data, x = np.zeros((100, 64), np.float16), np.zeros((1, 64), np.float32)
    table = SimpleNamespace(data=data, out_features=100)

    def n_bytes(family: str, *arrays: NDArray[Any]) -> int:
        return launch_bytes(Recorded(family, family, arrays, lambda: None), cache, table, 20)

    assert n_bytes("linear", data, x) == 100 * 64 * 2 + 64 * 4
    assert n_bytes("embedding", data, x) == 64 * 2 + 64 * 4
    assert n_bytes("attention", x, keys[1], values[1]) == 64 * 4 + 2 * 3 * 20 * 16 * 2
    assert n_bytes("qkv_rope", x, keys[0], values[0], cache.angles) == 64 * 4 + 2 * 3 * 16 * 2 + 8 * 4


def test_timing_kernels_out_of_order_breaks_nothing(device: CUDADevice) -> None:
    backend = CUDABackend(device)
    model = Llama(tiny(), backend)

    def tokens() -> list[int]:
        cache = backend.kv_cache(model.config, 40)
        sampler = backend.sampler(SamplingParams(temperature=0, seed=0), model.config.vocab_size)
        return list(backend.decode(model.forward, cache, sampler, model.forward([1, 2, 3], cache), 30))

    before = tokens()
    kernel_rows(model, backend, 8, 9)
    assert tokens() == before
    assert all(0 <= token < 128 for token in before)


@needs_emulator
def test_through_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's own ways to time, to copy and to tell of memory, with a CuPy of our own making."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1 << 26))
    monkeypatch.setenv("LLAMAGPU_DEPENDENT_LAUNCH", "0")  # there is no driver behind it
    measured = measure(tiny(), CUDABackend(CuPyDevice()), SETTINGS)
    check_arithmetic(measured)
    assert measured.kernels is not None
    assert measured.peak_device_bytes is not None


@pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=needs_emulator)])
def test_what_does_not_fit_is_left_out_with_its_reason(backend: str) -> None:
    checkpoint = tiny(max_seq_len=30)
    on = CPUBackend() if backend == "cpu" else CUDABackend(EmulatedDevice())
    measured = measure(checkpoint, on, replace(SETTINGS, contexts=(40, 30), prompts=(31, 3)))
    reason = "the model has 30 positions"
    assert [row.left_out for row in measured.decode] == [reason, None]
    assert [row.left_out for row in measured.prompt] == [reason, None]
    assert measured.decode[0].tokens_per_s is None
    assert measured.kernels_context == (30 if backend == "cuda" else None)
    report = report_dict(subject_of(checkpoint), SETTINGS, measured, None)
    text = report_text(subject_of(checkpoint), report)
    assert text.count(f"left out: {reason}") == 2
    row = report["decode"][0]
    assert row.pop("context") == 40
    assert row.pop("left_out") == reason
    assert set(row.values()) == {None}


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "available_bytes", lambda: 50_000)
    measured = measure(tiny(), CPUBackend(), SETTINGS)
    assert [row.left_out is None for row in measured.decode] == [True, True]
    measured = measure(tiny(), CPUBackend(), replace(SETTINGS, contexts=(90,), prompts=()))
    assert measured.decode[0].left_out == "keys and values need 55.0 KiB of memory, 48.8 KiB are free"
    monkeypatch.setattr(bench_command, "available_bytes", lambda: 50_000)
    assert run_command(["bench", "--shape", "tiny", "--bits", "16", "--device", "cpu"]) == 2


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise AssertionError("work before the flags are checked")

    monkeypatch.setattr(bench_command, "measure", fail)
    monkeypatch.setattr(bench_command, "run_peer", fail)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--shape", "llama9-1b"], "--shape must be llama2-7b, "),
        (["demo", "--shape", "tiny"], "not both"),
        (["--bits", "8"], "--bits is for random weights"),
        (["demo", "--head_bits", "8"], "--head_bits is for random weights"),
        (["demo", "--group_size", "64"], "--group_size is for random weights"),
        (["--shape", "tiny", "--bits", "5"], "--bits must be 4, 8 or 16, not 5"),
        (["--shape", "tiny", "--bits", "0"], "--bits must be 4, 8 or 16, not 0"),
        (["--shape", "tiny", "--head_bits", "2"], "--head_bits must be"),
        (["--shape", "tiny", "--group_size", "96"], "--group_size must be a power of two"),
        (["--shape", "tiny", "--group_size", "8"], "--group_size must be a power of two"),
        (["--shape", "tiny", "--bits", "16", "--group_size", "64"], "--group_size is for weights of 4 and 8 bits"),
        (["--contexts", "128,x"], "--contexts must be whole numbers"),
        (["--contexts", ""], "--contexts must be whole numbers"),
        (["--contexts", "-1"], "--contexts must be whole numbers"),
        (["--contexts", "0"], "contexts must be a whole number from 1"),
        (["--contexts", "8,8"], "names a length twice"),
        (["--prompts", "9999999999"], "prompts must be a whole number from 1"),
        (["--tokens", "0"], "tokens must be"),
        (["--tokens", "1.5"], "--tokens must be a whole number"),
        (["--seed", "-1"], "seed must be"),
        (["--device", "tpu"], "device must be"),
        (["--device", "cpu", "--kernels"], "the CPU has no kernels"),
        (["--json", "/nonexistent/folder/x.json"], "there is no folder"),
        (["--json", ""], "--json"),
        (["--plot", "/"], "is a folder"),
        (["--plot", "/dev/null"], "no regular file"),
        (["--json", "same.svg", "--plot", "./same.svg"], "the same file"),
        (["--peer", "vllm"], "--peer must be transformers, not 'vllm'"),
        (["--peers", "transformers"], "did you mean --peer?"),
        (["/nonexistent/model.bin"], "no file or folder"),
    ],
    ids=str,
)
def test_wrong_flags_are_refused_before_any_work(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert problem in error
    assert error.startswith("llamagpu: error: ")
    assert error.count("\n") == 1


COMMAND = ["bench", "--shape", "tiny", "--bits", "16", "--device", "cpu", "--tokens", "4"]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    files = ["--json", str(json_file), "--plot", str(picture)]
    assert run_command([*COMMAND, "--contexts", "8,32", "--prompts", "5", *files]) == 0
    text, notices = capsys.readouterr()
    report = json.loads(json_file.read_text())
    assert set(report) == {
        "date", "llamagpu", "python", "numpy", "system", "device", "model", "settings", "bandwidth_gb_per_s", "load",
        "decode", "prompt", "kernels_context", "kernels", "kernels_left_out", "peak_device_bytes", "peak_host_bytes",
        "peer", "dependent_launch",
    }  # fmt: skip
    assert report["model"]["config"]["dim"] == 64
    assert (report["model"]["bits"], report["model"]["head_bits"], report["model"]["group_size"]) == (16, 16, None)
    assert report["settings"]["contexts"] == [8, 32]
    for name in ("kernels", "kernels_context", "peak_device_bytes", "peer"):
        assert report[name] is None
    # the text's numbers are the file's
    lines = text.splitlines()
    for row in report["decode"]:
        expected = [
            str(row["context"]), f"{row['tokens_per_s']:.2f}", f"{row['p50_us']:.1f}", f"{row['p99_us']:.1f}",
            f"{row['bytes_per_token'] / 1e6:.3f}", f"{row['gb_per_s']:.2f}", f"{row['percent_of_bandwidth']:.1f}",
        ]  # fmt: skip
        assert expected in [line.split() for line in lines]
    (prompt,) = report["prompt"]
    expected = ["5", f"{prompt['first_token_ms']:.2f}", f"{prompt['tokens_per_s']:.1f}"]
    assert expected in [line.split() for line in lines]
    assert f"{report['bandwidth_gb_per_s']:.1f} GB/s copied" in text
    assert "random weights of 16 bits" in text
    assert "measuring on the CPU" in notices
    # the picture is one, and shows the points
    root = ElementTree.fromstring(picture.read_text())
    assert root.tag == f"{SVG}svg"
    assert len(root.findall(f"{SVG}circle")) == 2
    shown = [element.text for element in root.iter(f"{SVG}text")]
    assert {"8", "32", "tiny: decode speed"} <= set(shown)
    assert any("random weights of 16 bits on the CPU" in (words or "") for words in shown)


class EmulatedGPU(Device):
    def backend(self, on_work: OnWork = lambda title, n, total: None) -> CUDABackend:
        return CUDABackend(EmulatedDevice())


@needs_emulator
@pytest.mark.parametrize("kernels", [True, False])
def test_command_on_a_gpu(
    kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernels are timed unless they are left out; the table's numbers are the file's."""
    monkeypatch.setattr(bench_command, "choose_device", lambda name: EmulatedGPU("cuda:0", "GPU 0 (emulated)", ""))
    json_file = tmp_path / "bench.json"
    flags = ["--contexts", "8", "--prompts", "9", "--json", str(json_file), *([] if kernels else ["--kernels=false"])]
    assert run_command(["bench", "--shape", "tiny", "--bits", "16", "--tokens", "2", *flags]) == 0
    text = capsys.readouterr().out
    report = json.loads(json_file.read_text())
    assert "GPU 0 (emulated)" in text
    assert "of the GPU in use" in text
    assert ("kernels of a decode step at context 8" in text) == kernels
    if not kernels:
        assert report["kernels"] is None
        return
    words = [line.split() for line in text.splitlines()]
    for row in report["kernels"]:
        figures = [f"{row['us']:.2f}", str(row["launches"]), f"{row['us'] * row['launches']:.1f}"]
        assert [*row["kernel"].split(), *figures, f"{row['bytes'] / 1e6:.3f}", f"{row['gb_per_s']:.1f}"] in words
    launches = sum(row["launches"] for row in report["kernels"])
    assert next(line for line in words if line[:1] == ["all"])[1] == str(launches)


def test_a_model_file(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 32 positions. A context of all of them is measured: where a step is does not matter to its speed."""
    flags = ["--device", "cpu", "--contexts", "32,33", "--prompts", "none", "--tokens", "2"]
    assert run_command(["bench", str(small_model), *flags]) == 0
    text = capsys.readouterr().out
    assert "33  left out: the model has 32 positions" in text
    assert "llama2.c version 0" in text
    assert "mapped" in text
    assert "prompt" not in text


def test_nothing_measured_is_nothing_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.svg"
    assert run_command([*COMMAND, "--contexts", "none", "--prompts", "none", "--plot", str(picture)]) == 0
    out, notices = capsys.readouterr()
    assert "bandwidth" in out
    assert "is not written: decode was measured at no context" in notices
    assert not picture.exists()


def test_ctrl_c_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_command, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):  # llamagpu/__main__.py makes it exit status 130
        run_command([*COMMAND, "--json", str(tmp_path / "b.json")])
    out, notices = capsys.readouterr()
    assert out == ""
    assert notices.splitlines()[1:] == ["llamagpu: interrupted: nothing is written"]
    assert not list(tmp_path.iterdir())


def test_shapes() -> None:
    """Parameters of the models, as their makers count them."""
    billions = {name: random_checkpoint(name, 16, 16, 128, 8, 0).n_parameters / 1e9 for name in SHAPES}
    expected = {
        "llama2-7b": 6.738,
        "llama2-13b": 13.016,
        "llama2-70b": 68.977,
        "llama3-8b": 8.030,
        "llama3.2-1b": 1.236,
        "rwkv7-0.4b": 0.450767872,
        "rwkv7-1.5b": 1.527404544,
        "rwkv7-2.9b": 2.947735040,
        "rwkv7-7b": 7.2,
    }
    assert billions == pytest.approx({**expected, "tiny": 115_008 / 1e9, "tiny-rwkv": 126_528 / 1e9}, rel=1e-3)
    tensors = random_checkpoint("llama2-7b", 4, 16, 64, 8, 3).tensors
    head, wq = tensors["output.weight"], tensors["layers.0.attention.wq.weight"]
    assert (head.bits, wq.bits, wq.group_size) == (16, 4, 64)  # type: ignore[union-attr]
    assert "output.weight" not in random_checkpoint("llama3.2-1b", 4, 4, 64, 8, 3).tensors


def test_random_weights_are_those_of_the_seed() -> None:
    def matrix(seed: int) -> Any:
        stored: Any = random_checkpoint("tiny", 16, 16, 128, 8, seed).tensors["layers.1.feed_forward.w2.weight"]
        return stored.materialize()

    assert np.array_equal(matrix(1), matrix(1))
    assert not np.array_equal(matrix(1), matrix(2))


def test_a_missing_peer_is_one_line_before_any_work(
    no_work: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in bench_peer.NEEDED else find_spec(name)
    )
    with pytest.raises(UsageError, match="needs torch and transformers: pip install torch transformers"):
        check_peer("transformers")
    assert run_command([*COMMAND, "--peer", "transformers"]) == 2
    assert "needs torch and transformers" in capsys.readouterr().err


def test_a_peer_that_does_not_run_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_peer(SHAPES["tiny"], "cpu", (8,), 2, 0) == Peer("transformers", left_out="libtorch is broken")
    (tmp_path / "torch.py").write_text("import os\nos._exit(9)\n")
    assert run_peer(SHAPES["tiny"], "cpu", (8,), 2, 0).left_out == "it ended with status 9"
    (tmp_path / "torch.py").write_text("import os; raise ImportError('offline: ' + os.environ['HF_HUB_OFFLINE'])")
    assert run_peer(SHAPES["tiny"], "cpu", (8,), 2, 0).left_out == "offline: 1"


def test_transformers_itself() -> None:
    for package in bench_peer.NEEDED:
        pytest.importorskip(package, reason=f"{package} is not installed")
    peer = run_peer(SHAPES["tiny"], "cpu", (8, 40), 3, 0)
    assert peer.left_out is None
    assert peer.dtype == "float32"
    assert [row.context for row in peer.rows if row.tokens_per_s] == [8, 40]


def test_peer_beside_ours() -> None:
    checkpoint = tiny()
    measured = measure(checkpoint, CPUBackend(), replace(SETTINGS, prompts=(), kernels=False))
    peer = Peer("transformers 5", "float16", [PeerRow(16, 2.0, 5e5), PeerRow(40, left_out="out of memory")])
    report = report_dict(subject_of(checkpoint), SETTINGS, measured, peer)
    first, second = report["decode"]
    assert first["times_peer"] == pytest.approx(first["tokens_per_s"] / 2)
    assert (second["peer_tokens_per_s"], second["times_peer"]) == (None, None)
    text = report_text(subject_of(checkpoint), report)
    assert "peer: transformers 5, float16" in text
    assert "times peer" in text
    assert [line.split()[-1] for line in text.splitlines() if line.split()[:1] == ["40"]] == ["-"]


@pytest.mark.parametrize("points", [[(128, 0.0123)], [(1, 5.0), (2, 4.9)], [(128, 1e5), (4096, 99.0), (32768, 3.0)]])
def test_plot_of_any_speeds(points: list[tuple[int, float]]) -> None:
    root = ElementTree.fromstring(svg("<model> & more", "device", [Series("ours", points), Series("peer", points)]))
    circles = root.findall(f"{SVG}circle")
    assert len(circles) == 2 * len(points)
    places = [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in circles[: len(points)]]
    assert sorted(places) == places, "x grows with the context"
    assert [y for _, y in places] == sorted(y for _, y in places), "slower is further down"
    for x, y in places:
        assert 0 < x < 760
        assert 0 < y < 440
