"""The command as a user runs it: in a process of its own, stdout and stderr apart."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamagpu.formats import open_checkpoint
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes

COMMAND = [sys.executable, "-m", "llamagpu"]


def llamagpu(*arguments: str | Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def fails(*arguments: str | Path, status: int | None = None) -> str:
    """The command must fail with one line on stderr and nothing on stdout; that line."""
    result = llamagpu(*arguments)
    message = result.stderr.decode()
    assert result.returncode not in (0, -6, -11), message
    assert status is None or result.returncode == status
    assert result.stdout == b""
    assert message.startswith("llamagpu: error: ")
    assert message.count("\n") == 1, message
    return message


GREEDY = ("--temperature", "0", "--max_tokens", "12", "--device", "cpu")


def test_stdout_is_the_text_alone(small_model: Path) -> None:
    import llamagpu as package

    expected = "".join(package.load(small_model).generate("on the", max_tokens=12, temperature=0))
    result = llamagpu("run", small_model, "on the", *GREEDY)
    assert result.returncode == 0
    assert result.stdout.decode() == expected
    notices = result.stderr.decode()
    assert "running on the CPU" in notices
    for part in ("prompt 3 tokens", "tok/s", "first token after", "generated 12 tokens", "peak memory"):
        assert part in notices
    assert llamagpu("run", small_model, "on the", *GREEDY, "--echo").stdout.decode() == "on the" + expected


def test_expected_text_of_stories260k(data: Path) -> None:
    folder = data / "llama2c"
    arguments = ("--tokenizer", folder / "tok512.bin", "--device", "cpu", "--temperature", "0", "--max_tokens", "220")
    result = llamagpu("run", folder / "stories260K.bin", "", *arguments)
    assert result.stdout.startswith((folder / "stories260K.expected_stdout_200.txt").read_bytes())


def test_without_a_gpu_auto_says_why(small_model: Path) -> None:
    notices = llamagpu("run", small_model, "a", "--max_tokens", "1").stderr.decode()
    assert "running on the CPU" in notices
    assert any(reason in notices for reason in ("driver", "device", "CuPy", "no CUDA kernels yet"))


def test_cuda_without_a_gpu_is_an_error(small_model: Path) -> None:
    assert "--device cuda cannot be used: " in fails("run", small_model, "a", "--device", "cuda", status=1)
    assert "--device cuda:7 cannot be used: " in fails("run", small_model, "a", "--device", "cuda:7", status=1)
    assert "must be auto, cuda" in fails("run", small_model, "a", "--device", "tpu", status=2)


# fire's first trap: arguments read as Python literals
@pytest.mark.parametrize(
    "prompt", ["1984", "None", "True", "[1, 2]", "{'a': 1}", "0x10", "1e5", "'quoted'", "a=b", "", "x,y"]
)
def test_a_prompt_that_looks_like_python_stays_text(prompt: str, small_model: Path) -> None:
    result = llamagpu("run", small_model, prompt, *GREEDY, "--echo")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode().startswith(prompt)
    assert llamagpu("run", small_model, f"--prompt={prompt}", *GREEDY, "--echo").stdout == result.stdout


def test_a_prompt_that_begins_with_a_dash(small_model: Path) -> None:
    assert "goes after --" in fails("run", small_model, "-item", status=2)
    for prompt in ("-item", "--help", "--seed"):
        result = llamagpu("run", small_model, *GREEDY, "--echo", "--", prompt)
        assert result.stdout.decode().startswith(prompt)


# fire's second trap: an unknown flag is noticed after the work
@pytest.mark.parametrize("flag", ["--temprature", "--temprature=1", "-x", "--interactive", "--trace", "--noecho"])
def test_an_unknown_flag_is_refused_before_any_work(flag: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source.bin", tmp_path / "out.bin"
    source.write_bytes(v0_bytes(Shape(), random_weights(Shape())))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    assert "there is no flag " in fails("convert", source, out, flag, status=2)
    assert not out.exists()
    assert "did you mean --temperature?" in fails("run", source, "a", "--temprature", "1")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a", "b"], "one argument too many: 'b'"),
        (["a", "--seed"], "--seed needs a value"),
        (["a", "--seed", "--echo"], "--seed needs a value"),
        (["a", "--seed", "1", "--seed", "2"], "seed is given 2 times"),
        (["a", "--prompt", "b"], "prompt is given 2 times"),
        (["a", "--seed", "x"], "--seed must be a whole number"),
        (["a", "--seed", "1.5"], "--seed must be a whole number"),
        (["a", "--temperature", "warm"], "--temperature must be a number"),
        (["a", "--temperature", "nan"], "temperature must be a number from 0"),
        (["a", "--temperature", "-1"], "temperature must be a number from 0"),
        (["a", "--temperature=inf"], "temperature must be a number from 0"),
        (["a", "--top_p", "1.5"], "top_p must be a number from 0 to 1"),
        (["a", "--top-p", "nan"], "top_p must be a number from 0 to 1"),
        (["a", "--min_p", "-0.5"], "min_p must be"),
        (["a", "--top_k", "-1"], "top_k must be"),
        (["a", "--repetition_penalty", "0"], "repetition_penalty must be"),
        (["a", "--max_tokens", "0"], "max_tokens must be"),
        (["a", "--max_tokens", "-3"], "max_tokens must be"),
        (["a", "--seed", "-2"], "seed must be"),
        (["a", "--seed", "-n", "3"], "--seed needs a value"),
        (["a", "-t", "4"], "-t: the number of threads is not a flag yet"),
        (["a", "--threads=4"], "OPENBLAS_NUM_THREADS=N"),
        (["a", "--no-echo=true"], "--no-echo takes no value"),
        (["a", "--no-seed"], "there is no flag --no-seed"),
        (["a", "--memory", "x", "--session", "y"], "session is given 2 times"),
        (["a", "--context", "0"], "context must be"),
        (["a", "--context", "33"], "context must be"),
        (["a", "--stop", ""], "stop must be"),
        (["a", "--echo=maybe"], "--echo must be true or false"),
        (["a", "--prompt_file", "x"], "not both"),
        (["--prompt_file", "/nonexistent/file"], "No such file"),
        (["--prompt_file", "/"], "directory"),
        (["x" * 100], "the prompt is 102 tokens, the context 32"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line(arguments: list[str], problem: str, small_model: Path) -> None:
    assert problem in fails("run", small_model, *arguments, status=2)


def test_wrong_commands_and_files_are_one_line(tmp_path: Path) -> None:
    assert "there is no command 'rum'" in fails("rum", status=2)
    assert "no file or folder" in fails("run", "Once upon a time", status=2)
    assert "no file or folder" in fails("info", "x" * 5000, status=2)
    assert "is a folder" in fails("run", tmp_path, "a", status=1)
    (tmp_path / "text.bin").write_text("hello" * 100)
    assert "text.bin: header: " in fails("run", tmp_path / "text.bin", "a", status=1)
    assert "SRC is missing" in fails("convert", status=2)
    assert "OUT is missing" in fails("convert", "demo", status=2)
    assert "TEXT is missing" in fails("tokenize", "demo", status=2)


# fire's third trap: tracebacks
def test_a_bug_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.py").write_text("raise RuntimeError('broken on purpose')")
    result = llamagpu("run", "demo", "a", PYTHONPATH=str(tmp_path), LLAMAGPU_DEBUG="")
    assert result.returncode == 1
    assert "internal error" in result.stderr.decode()
    assert "broken on purpose" in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()
    result = llamagpu("run", "demo", "a", PYTHONPATH=str(tmp_path), LLAMAGPU_DEBUG="1")
    assert "Traceback" in result.stderr.decode()


def test_prompt_from_a_file_and_from_stdin(small_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("on the 猫", encoding="utf-8")
    expected = llamagpu("run", small_model, "on the 猫", *GREEDY).stdout
    assert llamagpu("run", small_model, "--prompt_file", path, *GREEDY).stdout == expected
    assert llamagpu("run", small_model, "--prompt-file", "-", *GREEDY, stdin=path.read_bytes()).stdout == expected
    path.write_bytes(b"caf\xe9")
    assert "no UTF-8" in fails("run", small_model, "--prompt_file", path, status=2)


def test_text_is_utf8_in_any_locale(small_model: Path) -> None:
    result = llamagpu("run", small_model, "猫🙂", *GREEDY, "--echo", LC_ALL="C", PYTHONUTF8="1")
    assert result.stdout.decode().startswith("猫🙂")
    result = llamagpu("run", small_model, "a", *GREEDY, "--echo", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert result.returncode == 0


def test_a_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "demo", "--max_tokens", "400", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    notices = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=30) == 141
    assert "rror" not in notices
    assert "Traceback" not in notices


def test_ctrl_c_keeps_the_text_and_ends_with_130(tmp_path: Path) -> None:
    import llamagpu as package

    shape = Shape(dim=64, hidden_dim=256, n_layers=8, max_seq_len=100_000)
    path = tmp_path / "slow.bin"
    path.write_bytes(v0_bytes(shape, random_weights(shape)))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    flags = ["--max_tokens", "99000", "--temperature", "2", "--min_p", "0", "--seed", "3", "--stop", "never comes"]
    process = subprocess.Popen(
        [*COMMAND, "run", path, "a", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None
    first = b"".join(process.stdout.read(1) for _ in range(20))
    process.send_signal(signal.SIGINT)
    rest, notices = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in notices.decode()
    assert "Traceback" not in notices.decode()
    found = re.search(r"generated (\d+) tokens", notices.decode())
    assert found
    # Every token that was made is on stdout, but for a last character of which not all bytes were there.
    generation = package.load(path).generate("a", max_tokens=int(found[1]), temperature=2, min_p=0, seed=3)
    expected = "".join(generation)
    assert (first + rest).decode() in (expected, expected.removesuffix("\ufffd"))


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_an_interruption_anywhere_ends_quietly(error: type[BaseException], status: int, tmp_path: Path) -> None:
    """During the imports, say: raised where the command line is first imported."""
    (tmp_path / "fire.py").write_text(f"raise {error.__name__}")
    result = llamagpu("run", "demo", PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (status, b"", b"")


def test_streams_that_the_caller_closed(tmp_path: Path) -> None:
    def shell(redirection: str) -> subprocess.CompletedProcess[bytes]:
        command = f"{sys.executable} -m llamagpu run demo --temperature 0 --max_tokens 5 --device cpu {redirection}"
        return subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)

    text = shell("").stdout
    assert len(text) > 5
    assert shell("2>&-").stdout == text
    assert (shell(">&-").returncode, shell(">&- 2>&-").returncode) == (0, 0)
    result = shell("--prompt_file - <&-")
    assert result.returncode == 0
    if Path("/dev/full").exists():
        result = shell("> /dev/full")
        assert result.returncode == 1
        assert "llamagpu: error: No space left on device" in result.stderr.decode()
        assert "Traceback" not in result.stderr.decode()


def test_info(small_model: Path) -> None:
    lines = dict(line.split(maxsplit=1) for line in llamagpu("info", small_model).stdout.decode().splitlines())
    assert lines["format"] == "llama2.c version 0 (float32)"
    assert lines["dim"] == "16 (feed-forward 24)"
    assert lines["layers"] == "2"
    assert lines["tokenizer"].startswith("llama2c, 300 tokens, from ")
    assert lines["positions"] == "32"
    # 2 (keys, values) * 2 layers * 2 heads * 4 elements * 4 bytes * 10 positions = 1280
    at_10 = llamagpu("info", small_model, "--context", "10").stdout.decode()
    assert "1.2 KiB at 10 positions" in at_10
    assert "float16" in llamagpu("info", "demo").stdout.decode()


def test_tokenize(small_model: Path) -> None:
    assert llamagpu("tokenize", small_model, "on the").stdout.decode() == "1 272 270\n"
    assert llamagpu("tokenize", small_model.parent / "tokenizer.bin", "on the").stdout.decode() == "1 272 270\n"
    assert llamagpu("tokenize", small_model, "on the", "--bos=false").stdout.decode() == "272 270\n"
    assert llamagpu("tokenize", small_model, "on", "--pieces").stdout.decode() == "1\t<s>\n272\t' on'\n"


def test_tokenize_llama2(data: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.bin"):
        result = llamagpu("tokenize", data / "tokenizer" / name, "I believe the meaning of life is")
        assert result.stdout.decode() == "1 306 4658 278 6593 310 2834 338\n"


def test_convert_then_run_gives_the_same_text(small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "model.bin"
    out.parent.mkdir()
    result = llamagpu("convert", small_model, out)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout == b""
    assert "tokenizer inside" in result.stderr.decode()
    assert llamagpu("run", out, "on the", *GREEDY).stdout == llamagpu("run", small_model, "on the", *GREEDY).stdout
    assert "exists: --force replaces it" in fails("convert", small_model, out, status=2)
    assert llamagpu("convert", small_model, out, "--force").returncode == 0
    assert "is a folder" in fails("convert", small_model, tmp_path, status=2)
    assert "no regular file" in fails("convert", small_model, "/dev/null", "--force", status=2)
    assert "name too long" in fails("convert", small_model, "x" * 300)
    link = tmp_path / "link.bin"
    link.symlink_to(out)
    assert llamagpu("convert", small_model, link, "--force").returncode == 0
    assert link.is_symlink()
    (tmp_path / "other.bin").write_bytes(tokenizer_bin(301))
    assert "vocab_size" in fails("convert", small_model, tmp_path / "x.bin", "--tokenizer", tmp_path / "other.bin")
    assert not (tmp_path / "x.bin").exists()
    (small_model.parent / "tokenizer.bin").unlink()
    assert "--tokenizer none" in fails("convert", small_model, tmp_path / "bare.bin", status=2)
    assert llamagpu("convert", small_model, tmp_path / "bare.bin", "--tokenizer", "none").returncode == 0
    assert open_checkpoint(tmp_path / "bare.bin").tokenizer is None


def test_doctor() -> None:
    result = llamagpu("doctor")
    report = result.stdout.decode()
    assert result.returncode == 0
    assert "self-test     passed" in report
    assert "CuPy" in report
    assert "will run on   the CPU" in report


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["run", "--help"], ["convert", "-h"], ["tokenize", "--help"], ["--version"]]
)
def test_help_goes_to_stdout(arguments: list[str]) -> None:
    result = llamagpu(*arguments)
    assert result.returncode == 0
    assert len(result.stdout) > 10
    assert result.stderr == b""


def test_help_names_every_flag() -> None:
    text = llamagpu("run", "--help").stdout.decode()
    for flag in ("device", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed",
                 "prompt_file", "tokenizer", "context", "stop"):  # fmt: skip
        assert f"--{flag} " in text


def test_a_gguf_file_in_every_command(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.formats.gguf_files import small_model, small_vocabulary

    file, _ = small_model("qwen3", ["Q4_K", "Q6_K"])
    file.keys |= small_vocabulary()
    path, out = tmp_path / "small.gguf", tmp_path / "model.bin"
    path.write_bytes(file.to_bytes())
    shown = llamagpu("info", path).stdout.decode()
    assert "GGUF version 3" in shown
    assert "Q4_K x " in shown
    assert "gguf, 300 tokens, inside the file" in shown
    assert llamagpu("tokenize", path, "the th").stdout.decode() == "1 266 267\n"
    arguments = ("the th", "--device", "cpu", "--temperature", "0", "--max_tokens", "9")
    text = llamagpu("run", path, *arguments).stdout
    assert text
    assert llamagpu("convert", path, out).returncode == 0
    assert llamagpu("run", out, *arguments).stdout == text
