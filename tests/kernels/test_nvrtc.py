"""Every kernel compiles for every GPU that is supported, without spills, as docs/kernel_resources.json has it."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from llamagpu.backends.cuda.kernels import INSTANCES
from tests.nvrtc import ARCHITECTURES, Resources, compile_family, find, version
from tests.nvrtc_units import compile_unit, units

TABLE = Path(__file__).parent.parent.parent / "docs" / "kernel_resources.json"
pytestmark = pytest.mark.skipif(not find(), reason="NVRTC is not installed: pip install the extra llamagpu[test]")


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, int], dict[str, Resources]]:
    """Over all cores; processes are spawned, since forking a process with threads is no longer allowed."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return dict(zip(units(), pool.map(compile_unit, units()), strict=True))


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(TABLE.read_text())
    return loaded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", INSTANCES)
def test_compiles_without_local_memory(
    family: str, architecture: int, compiled: dict[tuple[str, int], dict[str, Resources]]
) -> None:
    resources = compiled[family, architecture]
    assert set(resources) == set(INSTANCES[family])
    for instance, taken in resources.items():
        assert taken.registers > 0
        assert (taken.spilled_bytes, taken.stack_bytes) == (0, 0), instance


@pytest.mark.parametrize("family", INSTANCES)
def test_takes_what_the_table_says(
    family: str, table: dict[str, Any], compiled: dict[tuple[str, int], dict[str, Resources]]
) -> None:
    """Where this fails because a kernel was changed: run scripts/kernel_table, look at the difference, commit it."""
    if version() != table["nvrtc"]:
        pytest.skip(f"the table is of NVRTC {table['nvrtc']}, this is {version()}: registers may differ")
    assert table["architectures"] == list(ARCHITECTURES)
    for instance in INSTANCES[family]:
        expected = dict(zip(ARCHITECTURES, table["kernels"][instance], strict=True))
        for architecture, row in expected.items():
            r = compiled[family, architecture][instance]
            assert [r.registers, r.spilled_bytes, r.stack_bytes, r.shared_bytes] == row, (instance, architecture)


def test_the_table_holds_no_kernel_that_is_gone(table: dict[str, Any]) -> None:
    assert set(table["kernels"]) == {instance for instances in INSTANCES.values() for instance in instances}


def test_an_error_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"broken\.cu does not compile for sm_90: broken\.cu\(2\).*nothing_such"):
        compile_family('extern "C" __global__ void k() {\nnothing_such(); }', "broken", ["k"], 90)
