"""A 70B model of 4 bits opens at once: a sparse file of its exact layout, in a process of its own."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamagpu.checkpoint import llama_shapes
from llamagpu.config import ModelConfig
from llamagpu.quantization import RandomMatrix
from llamagpu.quantization.affine import n_groups, tile_grid

LLAMA2_70B = ModelConfig("llama", 8192, 28672, 80, 64, 8, 128, 32000, 4096)
MAX_RESIDENT = 300 << 20
PROGRAM = """
import sys, time
start = time.perf_counter()
from llamagpu.cli import run_command
from llamagpu.devices import peak_memory_bytes
status = run_command(sys.argv[1:])
used = peak_memory_bytes()
print(time.perf_counter() - start, used, file=sys.stderr)
sys.exit(status)
"""


def sparse_native_file(path: Path, config: ModelConfig) -> int:
    """A model.bin of zeros with every matrix in 4 bits, group 128; its length. Raises OSError without sparse files."""
    entries: dict[str, Any] = {}
    affine: dict[str, Any] = {}
    offset = 0

    def add(name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        nonlocal offset
        end = offset + math.prod(shape) * size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end

    for name, shape in llama_shapes(config).items():
        if len(shape) == 1:
            add(name, "F32", shape, 4)
            continue
        tiles, blocks = tile_grid(shape)
        affine[name] = {"bits": 4, "group_size": 128, "shape": shape}
        add(f"{name}.tiles", "U8", (tiles, blocks, 1024), 1)
        add(f"{name}.params", "F16", (tiles, n_groups(shape[1], 128), 8, 2, 2), 2)
    metadata = {"llamagpu.format_version": "1", "config": json.dumps(config.to_dict()), "affine": json.dumps(affine)}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + offset)
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no sparse files")
    return 8 + len(header) + offset


def test_a_70b_file_of_4_bits(tmp_path: Path) -> None:
    """How long it takes is printed, not asserted: see docs/formats.md."""
    path = tmp_path / "70b.bin"
    try:
        size = sparse_native_file(path, LLAMA2_70B)
    except OSError as error:
        pytest.skip(f"no room for a sparse file: {error}")
    assert size > 36e9
    command = [sys.executable, "-c", PROGRAM, "info", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seconds, used = result.stderr.split()
    print(f"{seconds} s, {int(used) >> 20} MiB resident")
    assert int(used) < MAX_RESIDENT
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["parameters"].startswith("68,976,648,192 in 723 tensors")
    assert rows["weights"].startswith("4-bit (group 128) x 562, float32 x 161; ")
    assert rows["bits"].startswith("4.25 per parameter")
    assert RandomMatrix(8192, 8192).nbytes == 8192 * 8192 * 4.25 / 8
