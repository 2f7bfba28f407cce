"""The CUDA sources: where they are, their text as one piece, and every instance of every template.

A family is one file of kernels/; an instance is a C++ name such as ``linear<F16, 4>``. Whoever compiles kernels (CuPy
on a GPU, g++ in the emulator, NVRTC in the tests) takes the text and the names from here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from llamagpu.errors import LlamaGPUError

FLOATS = ("F32", "F16", "BF16")  # structs of kernels/weights.cuh
OFFSETS = ("Q4Offset", "Q4OffsetShortest", "Q8Offset")
TILES = (*(f"Q{bits}{kind}" for bits in (4, 8) for kind in ("", "Short", "Shortest", "F")), *OFFSETS)  # of tiles.cuh
WEIGHTS = FLOATS + TILES
KV_TYPES = ("float", "__half", "signed char")
COLUMNS = {**dict.fromkeys(FLOATS, (1, 2, 4, 8)), **dict.fromkeys(TILES, (4, 8))}  # of one pass over the weights
ROWS = (1, 2, 4, 8)  # queries of one attention block
WKV_HEADS = (32, 64, 128)  # that a block of wkv5 and wkv7 has room for

PRODUCTS = tuple(f"{w}, {c}" for w in WEIGHTS for c in COLUMNS[w])
INSTANCES: dict[str, tuple[str, ...]] = {
    "embedding": tuple(f"embedding<{w}>" for w in WEIGHTS),
    "rmsnorm": ("add_rmsnorm",),
    "linear": tuple(f"{kernel}<{product}>" for kernel in ("linear", "linear_add") for product in PRODUCTS),
    "qkv_rope": tuple(
        f"qkv_rope<{w}, {kv}, {c}>"
        for w in WEIGHTS
        for kv in (("float", "__half") if w in ("F32", "F16") else ("__half",))
        for c in COLUMNS[w]
    ),
    "attention": (*(f"attention_split<{kv}, {rows}>" for kv in KV_TYPES for rows in ROWS), "attention_merge"),
    "attention_decode": tuple(f"attention_decode<{kv}, {rows}>" for kv in KV_TYPES for rows in ROWS),
    "attention_window": tuple(f"attention_window<{kv}, {rows}>" for kv in KV_TYPES[:2] for rows in ROWS),
    "gate_up": tuple(f"gate_up<{product}>" for product in PRODUCTS),
    "linear_group": tuple(f"linear_group<{product}>" for product in PRODUCTS),
    "squared_relu": tuple(f"linear_squared_relu<{product}>" for product in PRODUCTS),
    "split_halves": ("split_halves",),
    "split_bf16": ("split_bf16",),
    "linear_prompt": tuple(f"linear_prompt<{w}>" for w in WEIGHTS),
    "rope": tuple(f"rope_append<{kv}>" for kv in KV_TYPES),
    "swiglu": ("swiglu",),
    "layernorm": ("layernorm",),
    "token_shift": ("norm_shift_mix",),
    "activate": ("activate",),
    "gated_add": ("gated_add",),
    "wkv4": ("wkv4",),
    "wkv5": tuple(f"wkv5<{head}>" for head in WKV_HEADS),
    "wkv7": tuple(f"wkv7<{head}>" for head in WKV_HEADS),
    "linear_sparse": tuple(f"linear_sparse<{w}>" for w in FLOATS),
    "sliding_attention": ("sliding_attention",),
    "grouped_attention": ("grouped_attention",),
    "mix_experts": ("mix_experts",),
    "sample": ("sample_scan", "sample_pick"),
}


def kernel_folder() -> Path | None:
    """The CUDA sources: LLAMAGPU_KERNELS, else inside an installed package, or at the top of a checkout."""
    if "LLAMAGPU_KERNELS" in os.environ:
        return Path(os.environ["LLAMAGPU_KERNELS"])
    package = Path(__file__).parent.parent.parent
    return next((folder for folder in (package / "kernels", package.parent / "kernels") if folder.is_dir()), None)


def read_kernel_file(name: str) -> str:
    folder = kernel_folder()
    if folder is None:
        raise LlamaGPUError("the folder of CUDA kernels is missing: reinstall llamagpu")
    return (folder / name).read_text()


@cache
def source(family: str) -> str:
    """Text of kernels/{family}.cu with our own headers put in where they are included."""
    return assemble(family, read_kernel_file)


def assemble(family: str, read: Callable[[str], str]) -> str:
    """The same from files that ``read`` gives by name.

    One piece, because CuPy's kernel cache does not look at the content of included files: an edited header would be
    answered with the old machine code. #line directives keep the compiler's messages true.
    """
    seen: set[str] = set()

    def text(name: str) -> str:
        lines = []
        for number, line in enumerate(read(name).splitlines(), start=1):
            included = re.fullmatch(r'#include "([\w.]+)"', line)
            if included and included[1] not in seen:
                seen.add(included[1])
                lines += [f'#line 1 "{included[1]}"', text(included[1]), f'#line {number + 1} "{name}"']
            else:
                lines.append("" if included or line == "#pragma once" else line)
        return "\n".join(lines)

    return f'#line 1 "{family}.cu"\n{text(f"{family}.cu")}\n'
