"""Under a limit of address space: the text, or one line that says what was wanted and exit status 1. Nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llamagpu.address_space import LEAST, MIB, PER_THREAD, count_threads, needed
from llamagpu.errors import ModelFormatError
from tests.small_files import Shape, tokenizer_bin
from tests.test_cli import COMMAND

resource = pytest.importorskip("resource", reason="this system has no limits of a process")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to RLIMIT_AS")

RUN = ("--device", "cpu", "--max_tokens", "3", "--temperature", "0")


def limited(n_bytes: int, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command with so much address space. It must not hang."""
    result = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes)),
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


def judge(status: int, stdout: str, stderr: str) -> bool:
    """Whether there was a text; else there was one line of error, the last, and before it notices alone."""
    lines = stderr.splitlines()
    assert all(line.startswith("llamagpu: ") for line in lines), stderr
    n_errors = sum(line.startswith("llamagpu: error: ") for line in lines)
    if status == 0:
        assert stdout
        assert n_errors == 0
        return True
    assert (status, stdout, n_errors) == (1, "", 1), stderr
    assert lines[-1].startswith("llamagpu: error: ")
    assert any(word in lines[-1] for word in ("memory", "address space")), stderr
    return False


@pytest.mark.parametrize("mib", [40, 100, 200, 300])
def test_below_the_least_it_is_one_line_before_anything_is_imported(mib: int) -> None:
    status, stdout, stderr = limited(mib * MIB, "run", "demo", "a", *RUN)
    least = needed(count_threads())
    expected = (
        f"may use {mib} MiB of address space, and needs {least // MIB} MiB before it opens a model: raise the limit"
    )
    assert (status, stdout, stderr.count("\n")) == (1, "", 1), stderr
    assert expected in stderr
    assert f"(ulimit -v {least // 1024})" in stderr


@pytest.mark.parametrize("more", [0, 64, 1024])
def test_from_the_least_on_the_built_in_model_runs(more: int) -> None:
    assert judge(*limited(needed(count_threads()) + more * MIB, "run", "demo", "a", *RUN))


def test_one_thread_needs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert needed(count_threads()) == LEAST
    assert judge(*limited(LEAST, "run", "demo", "a", *RUN))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "0")  # which OpenBLAS takes for none
    assert needed(count_threads()) == LEAST + (count_threads() - 1) * PER_THREAD


@pytest.fixture(scope="module")
def sparse_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 256 MiB of zeros that take no place, and a cache of as much."""
    shape = Shape(dim=1024, hidden_dim=4096, n_layers=4, n_heads=8, n_kv_heads=8, vocab_size=300, max_seq_len=8192)
    n_matrices = 4 * shape.dim**2 + 3 * shape.dim * shape.hidden_dim
    n_floats = shape.n_layers * (n_matrices + 2 * shape.dim) + shape.dim * (shape.vocab_size + 1)
    path = tmp_path_factory.mktemp("sparse") / "model.bin"
    with open(path, "wb") as file:
        file.write(shape.header(shape.vocab_size))
        file.truncate(28 + 4 * (n_floats + shape.max_seq_len * shape.dim // shape.n_heads))
    path.with_name("tokenizer.bin").write_bytes(tokenizer_bin())
    return path


def test_at_any_step_on_the_way(sparse_model: Path) -> None:
    """Memory ends while the file is mapped, as the cache is made, or not at all; and each says what was wanted."""
    least = needed(count_threads())
    said = []
    for more in (0, 250, 350, 600):
        more_arguments = RUN if more == 600 else ("--max_tokens", "8000", "--device", "cpu")
        status, stdout, stderr = limited(least + more * MIB, "run", str(sparse_model), "a", *more_arguments)
        if not judge(status, stdout, stderr):
            said.append(stderr.splitlines()[-1])
    assert any("more than this process may still map" in line for line in said)
    assert any("a context of 8192 tokens needs" in line for line in said)


def test_weights_that_are_made_say_what_they_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llamagpu import cli

    for error, expected in {
        MemoryError("Unable to allocate 3.0 GiB for an array"): "Unable to allocate 3.0 GiB",
        MemoryError(): "the system gives no more",
        ImportError("x.so: failed to map segment from shared object"): "failed to map segment",
        RuntimeError("can't start new thread"): "can't start new thread",
    }.items():

        def fail(*arguments: object, error: Exception = error, **options: object) -> None:
            raise error

        monkeypatch.setattr("fire.Fire", fail)
        assert cli.run_command(["run", "demo"]) == 1
        line = capsys.readouterr().err
        assert line.startswith("llamagpu: error: not enough memory (")
        assert expected in line
        assert line.count("\n") == 1


def test_a_file_that_cannot_be_mapped_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The safetensors library maps it too."""
    import numpy as np
    from safetensors.numpy import save_file

    from llamagpu.formats import safetensors_file

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError("os error 12")

    save_file({"a": np.ones(3)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(safetensors_file, "safe_open", fail)
    with pytest.raises(ModelFormatError, match="more than this process may still map"):
        safetensors_file.SafetensorsFile(tmp_path / "a.safetensors", "")
