"""Build CUDA sources with g++ and run their kernels on NumPy arrays. README.md beside this says what that can show."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
# -ffp-contract=off: single roundings stay single. -fno-strict-aliasing: kernels cast between vector types, as CUDA
# allows.
FLAGS = (
    "-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing",
    "-fno-threadsafe-statics", "-fno-gnu-unique", "-w",
)  # fmt: skip
CHECK_FLAGS = ("-fsanitize=thread", "--param=tsan-distinguish-volatile=0", "-fsanitize=alignment,bounds")


class EmulatorError(RuntimeError):
    """A kernel that does not compile, or what the emulator found wrong with it."""


def compiler() -> str:
    return os.environ.get("CXX", "g++")


@cache
def have_compiler() -> bool:
    """Whether there is a g++ (clang's -fsanitize=thread calls other functions)."""
    if not shutil.which(compiler()):
        return False
    return "Free Software Foundation" in compiler_version()


@cache
def compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout


@cache
def cache_folder() -> Path:
    """Where builds are kept: LLAMAGPU_EMULATOR_CACHE, else a folder of this user's in the system's temporary one."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    default = Path(tempfile.gettempdir()) / f"llamagpu-emulator-{user}"
    folder = Path(os.environ.get("LLAMAGPU_EMULATOR_CACHE", default))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise EmulatorError(f"{folder} belongs to another user: set LLAMAGPU_EMULATOR_CACHE")
    return folder


def built(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The cached file of this name and key, made by ``build`` where it is not there yet. Safe among processes."""
    digest = hashlib.sha256((key + compiler_version()).encode()).hexdigest()[:20]
    path = cache_folder() / f"{digest}-{name}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            temporary = Path(folder) / name
            build(temporary)
            temporary.rename(path)
    return path


def run_compiler(*arguments: str | Path) -> None:
    result = subprocess.run([compiler(), *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        raise EmulatorError(result.stderr[:4000])


@cache
def own_sources() -> str:
    """Text of all that is compiled here, for the keys of the cache."""
    files = sorted(path for path in HERE.rglob("*") if path.suffix in (".h", ".cpp"))
    return "".join(path.read_text() for path in files)


@cache
def runtime(name: str) -> Path:
    """scheduler.o or checker.o: never instrumented."""
    return built(
        f"{name}.o", own_sources() + str(FLAGS), lambda out: run_compiler(*FLAGS, "-c", HERE / f"{name}.cpp", "-o", out)
    )


def translated(source: str) -> str:
    """What is rewritten for g++: declarations of shared memory, of the launch's size and of a fixed one."""
    source = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w:]+)\s+(\w+)\[\];",
        r"\1* const \2 = reinterpret_cast<\1*>(emulator::dynamic_shared);",
        source,
    )
    count = itertools.count()

    def references(declaration: re.Match[str]) -> str:
        kind, names = declaration[1], declaration[2].split(", ")
        variables = [re.fullmatch(r"(\w+)((?:\[[^\]]+\])*)", name.strip()) for name in names]
        if None in variables:
            raise EmulatorError(f"a declaration of shared memory that is not understood: {declaration[0]}")
        return " ".join(
            f"{kind} (&{v[1]}){v[2]} = emulator::shared_variable<{kind}{v[2]}, {next(count)}>();"
            for v in variables
            if v
        )

    return re.sub(r"(?<!extern )__shared__\s+(?:__align__\(\d+\)\s+)?([\w:]+)\s+([^;]+);", references, source)


def symbol(instance: str) -> str:
    """A C name for ``linear<F16, 4>``."""
    return re.sub(r"\W+", "_", instance).strip("_")


class Module:
    """A compiled source. instances: C++ names of kernels, such as ``attention_merge`` or ``linear<F16, 4>``.

    check: the checking build. Raises EmulatorError where the source does not compile.
    """

    def __init__(self, name: str, source: str, instances: Sequence[str], *, check: bool = False) -> None:
        exports = "".join(f"EMULATOR_EXPORT({symbol(i)}, {i})\n" for i in instances)
        text = f'#include "cuda_on_cpu.h"\n#line 1 "{name}"\n{translated(source)}\n{exports}'
        flags = (*FLAGS, *(CHECK_FLAGS if check else ()))
        parts = [runtime("scheduler"), *([runtime("checker")] if check else [])]

        def build(out: Path) -> None:
            kernel = out.with_suffix(".cpp")
            kernel.write_text(text)
            run_compiler(*flags, f"-I{HERE}", f"-I{HERE / 'include'}", "-c", kernel, "-o", out.with_suffix(".o"))
            run_compiler("-shared", "-o", out, out.with_suffix(".o"), *parts)

        self.path = built(f"{Path(name).stem}.so", text + str(flags) + own_sources(), build)
        self.check = check
        self.seed = self.first_block = 0
        self.library = ctypes.CDLL(str(self.path))
        self.library.launch.restype = ctypes.c_char_p
        self.library.launch.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_size_t, ctypes.c_uint64, ctypes.c_size_t]

    def configure(self, seed: int = 0, first_block: int = 0) -> None:
        """seed: order of threads and blocks; 0 is first come, first served, every other number is a random order.
        first_block: blocks before it, x counting fastest, are not run."""
        self.seed, self.first_block = seed, first_block

    @cache  # noqa: B019  modules live as long as the tests
    def function(self, instance: str) -> EmulatedFunction:
        return EmulatedFunction(self, instance)

    def with_lines(self, message: str) -> str:
        """A program counter of the checker as file:line."""
        found = re.search(r" pc (0x[0-9a-f]+)", message)
        if not found:
            return message
        maps = Path("/proc/self/maps").read_text().splitlines()
        base = min(int(line.split("-")[0], 16) for line in maps if line.endswith(str(self.path)))
        where = hex(int(found[1], 16) - base - 1)  # inside the call that returns there
        result = subprocess.run(["addr2line", "-i", "-e", self.path, where], capture_output=True, text=True).stdout
        lines = [Path(line.split(" ")[0]).name for line in result.splitlines() if ".h:" not in line]
        return message.replace(found[0], f" at {lines[0] if lines else 'an unknown line'}")


class EmulatedFunction:
    """A kernel: call it as CuPy's are called."""

    def __init__(self, module: Module, instance: str) -> None:
        self.module, self.instance = module, instance
        self.entry = ctypes.cast(getattr(module.library, f"call_{symbol(instance)}"), ctypes.c_void_p)
        sizes = (ctypes.c_int * 64)()
        n = getattr(module.library, f"sizes_{symbol(instance)}")(sizes)
        self.sizes = list(sizes[:n])

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_memory: int = 0
    ) -> None:
        """args: NumPy arrays (passed as pointers), NumPy scalars, None (a null pointer). Raises EmulatorError."""
        if len(args) != len(self.sizes):
            raise EmulatorError(f"{self.instance}: {len(args)} arguments given, {len(self.sizes)} expected")
        library = self.module.library
        try:
            values = [self._value(i, arg) for i, arg in enumerate(args)]
            pointers = (ctypes.c_void_p * max(len(values), 1))(*map(ctypes.addressof, values))
            sizes = [(ctypes.c_uint * 3)(*(*shape, 1, 1)[:3]) for shape in (grid, block)]
            how = (shared_memory, self.module.seed, self.module.first_block)
            problem = library.launch(self.entry, pointers, *sizes, *how)
        finally:
            if self.module.check:
                library.forget_memory()
        if problem:
            raise EmulatorError(f"{self.instance}: {self.module.with_lines(problem.decode())}")

    def _value(self, index: int, arg: Any) -> Any:
        value: Any
        if arg is None:
            value = ctypes.c_void_p(0)
        elif isinstance(arg, np.ndarray):
            if not arg.flags.c_contiguous:
                raise EmulatorError(f"{self.instance}: argument {index} is not contiguous")
            value = ctypes.c_void_p(arg.ctypes.data)
            if self.module.check:
                self.module.library.register_memory(value, ctypes.c_size_t(arg.nbytes), index)
        elif isinstance(arg, np.generic):
            value = (ctypes.c_char * arg.nbytes).from_buffer_copy(arg.tobytes())
        else:
            raise EmulatorError(f"{self.instance}: argument {index} is a {type(arg).__name__}: no size in C")
        if ctypes.sizeof(value) != self.sizes[index]:
            raise EmulatorError(
                f"{self.instance}: argument {index} has {ctypes.sizeof(value)} bytes, the kernel takes"
                f" {self.sizes[index]}"
            )
        return value
