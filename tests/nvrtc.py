"""NVRTC by ctypes: compile a kernel family for any GPU on a machine with none, and tell what each kernel takes.

The compiler comes from pip wheels (the test extra), the one that CuPy uses on a GPU machine. What it says of registers
and spills is ptxas's, for the machine code that would run.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
OPTIONS = ("-std=c++17", "-ftz=true", "--ptxas-options=-v")  # CuPy's, and the report


@dataclass(frozen=True)
class Resources:
    """registers per thread; bytes of local memory that spills and arrays take; static shared memory in bytes."""

    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int


@cache
def find() -> tuple[Path, tuple[Path, ...]] | None:
    """libnvrtc and the folders of CUDA's headers, where the wheels are installed."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    libraries = [p for root in roots for p in sorted(root.rglob("libnvrtc.so.*")) if "alt" not in p.name]
    headers = {p.parent for root in roots for p in root.rglob("cuda_fp16.h")}
    headers |= {p.parent.parent for root in roots for p in root.rglob("nv/target")}
    return (libraries[-1], tuple(sorted(headers))) if libraries and headers else None


@cache
def library() -> ctypes.CDLL:
    found = find()
    assert found, "NVRTC is not installed"
    for builtins in sorted(found[0].parent.glob("libnvrtc-builtins.so.*")):
        if "alt" not in builtins.name:  # some wheels do not say where these are: loaded first, they are found
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(found[0]))


@cache
def version() -> str:
    """Such as "13.0". Different versions allocate different registers."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_family(source: str, family: str, instances: Sequence[str], architecture: int) -> dict[str, Resources]:
    """Resources of each instance. Raises RuntimeError with the compiler's words. Results are kept (by source)."""
    key = json.dumps([source, list(instances), architecture, OPTIONS, version(), 1])
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"llamagpu-nvrtc-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if kept.exists():
        return {name: Resources(**fields) for name, fields in json.loads(kept.read_text()).items()}
    resources = _compile(source, family, instances, architecture)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump({name: asdict(r) for name, r in resources.items()}, file)
    os.replace(file.name, kept)
    return resources


def _compile(source: str, family: str, instances: Sequence[str], architecture: int) -> dict[str, Resources]:
    with _program(source, family, instances, architecture) as (program, log):
        reports = dict(
            re.findall(r"Compiling entry function '(\w+)'[^\n]*\n(.*?)(?=ptxas info\s+: Comp|\Z)", log, re.S)
        )
        return {instance: _resources(reports[_lowered(library(), program, instance)]) for instance in instances}


@contextmanager
def _program(
    source: str, family: str, instances: Sequence[str], architecture: int
) -> Iterator[tuple[ctypes.c_void_p, str]]:
    """A compiled program and what the compiler said."""
    found, nvrtc, program = find(), library(), ctypes.c_void_p()
    assert found
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), f"{family}.cu".encode(), 0, None, None)
    try:
        for instance in instances:
            nvrtc.nvrtcAddNameExpression(program, instance.encode())
        options = [f"-arch=sm_{architecture}", *OPTIONS, *(f"-I{folder}" for folder in found[1])]
        status = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        )
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        if status:
            raise RuntimeError(f"{family}.cu does not compile for sm_{architecture}: {log[:4000]}")
        yield program, log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def find_disassembler() -> Path | None:
    """nvdisasm, where its wheel is installed."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return next((path for root in roots for path in sorted(root.rglob("bin/nvdisasm"))), None)


def machine_code(source: str, family: str, instance: str, architecture: int) -> list[str]:
    """The instructions of one kernel in their order, such as "LDG.E.128"."""
    disassembler = find_disassembler()
    assert disassembler
    with _program(source, family, [instance], architecture) as (program, _), tempfile.TemporaryDirectory() as folder:
        size = ctypes.c_size_t()
        library().nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        library().nvrtcGetCUBIN(program, code)
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(code.raw)
        text = subprocess.run([disassembler, "-c", file], capture_output=True, text=True, check=True).stdout
        name = _lowered(library(), program, instance)
    text = text.partition(f".section\t.text.{name},")[2].partition(".section\t")[0]  # of this kernel alone
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", text)


def _text(get_size: ctypes._NamedFuncPointer, get: ctypes._NamedFuncPointer, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.value.decode()


def _lowered(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, instance: str) -> str:
    """The name that the machine code has for ``linear<F16, 4>``."""
    name = ctypes.c_char_p()
    nvrtc.nvrtcGetLoweredName(program, instance.encode(), ctypes.byref(name))
    assert name.value
    return name.value.decode()


def _resources(report: str) -> Resources:
    def number(pattern: str) -> int:
        found = re.search(pattern, report)
        return int(found[1]) if found else 0

    return Resources(
        registers=number(r"Used (\d+) registers"),
        spilled_bytes=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        stack_bytes=number(r"(\d+) bytes stack frame"),
        shared_bytes=number(r"(\d+) bytes smem"),
    )
