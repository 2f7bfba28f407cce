"""The compile work of all kernels in units that processes can share: one family for one architecture."""

from __future__ import annotations

from llamagpu.backends.cuda.kernels import INSTANCES, source
from tests.nvrtc import ARCHITECTURES, Resources, compile_family

# families from the one that takes longest, so that no process is left with it at the end
ORDER = sorted(INSTANCES, key=lambda family: -len(INSTANCES[family]))


def units() -> list[tuple[str, int]]:
    return [(family, architecture) for family in ORDER for architecture in ARCHITECTURES]


def compile_unit(unit: tuple[str, int]) -> dict[str, Resources]:
    family, architecture = unit
    return compile_family(source(family), family, INSTANCES[family], architecture)
