"""Dependent launch in machine code: weights are loaded before the wait for the previous kernel, its results after it.

The source says so, but the assembler may move a wait that stands in no branch. An emulator cannot see this.
"""

from __future__ import annotations

import pytest

from llamagpu.backends.cuda.kernels import COLUMNS, FLOATS, INSTANCES, WEIGHTS, source
from tests.nvrtc import find, find_disassembler, machine_code

pytestmark = pytest.mark.skipif(
    not (find() and find_disassembler()), reason="NVRTC or nvdisasm is not installed: pip install llamagpu[test]"
)
WAIT, DEPENDENTS_MAY_BEGIN = "ACQBULK", "PREEXIT"  # griddepcontrol.wait, griddepcontrol.launch_dependents
FIRST_LOADS = {"F32": 8, "F16": 8, "Q4": 12, "Q4Short": 4, "Q4Shortest": 4, "Q4F": 4}  # of 16 bytes; 8 bits: 8
FIRST_LOADS |= {"Q4Offset": 4, "Q4OffsetShortest": 4}
PARTS = {"wkv5<64>": 2, "wkv7<64>": 2, "wkv7<128>": 4}  # outputs that a thread writes at a time
KERNELS = [
    (family, kernel, weights)
    for family, kernel in (
        ("linear", "linear<{}, {}>"),
        ("linear", "linear_add<{}, {}>"),
        ("gate_up", "gate_up<{}, {}>"),
        ("linear_group", "linear_group<{}, {}>"),
        ("squared_relu", "linear_squared_relu<{}, {}>"),
        ("qkv_rope", "qkv_rope<{}, __half, {}>"),
    )
    # all products begin alike (products.cuh): one kernel shows it for every type, the others for a type of each layout
    for weights in (WEIGHTS if kernel.startswith("linear_add") else ("F16", "Q4", "Q8F"))
]


def before_and_after(family: str, instance: str) -> tuple[list[str], list[str]]:
    """Instructions before the wait, and from it on."""
    assert instance in INSTANCES[family]
    code = machine_code(source(family), family, instance, 90)
    assert code.count(WAIT) == 1
    assert code.count(DEPENDENTS_MAY_BEGIN) == 1
    return code[: code.index(WAIT)], code[code.index(WAIT) :]


@pytest.mark.parametrize(("family", "kernel", "weights"), KERNELS)
def test_weights_are_on_their_way_before_the_wait(family: str, kernel: str, weights: str) -> None:
    before, after = before_and_after(family, kernel.format(weights, COLUMNS[weights][0]))
    assert sum(op.startswith("LDG.E.NA.128") for op in before) == FIRST_LOADS.get(weights, 8)
    assert DEPENDENTS_MAY_BEGIN in after
    others = [op for op in before if op.startswith(("LD", "ST")) and not op.startswith(("LDC", "LDG.E.NA"))]
    # what nobody writes (CONSTANT): scales, norms, biases, tables; and the residual, older, from L2 (STRONG)
    assert all("CONSTANT" in op or "STRONG.GPU" in op for op in others), others


@pytest.mark.parametrize(
    ("family", "instance"),
    [
        ("attention_decode", "attention_decode<__half, 1>"),
        ("attention_decode", "attention_decode<__half, 4>"),
        ("attention", "attention_merge"),
        ("attention", "attention_split<__half, 8>"),
        ("rope", "rope_append<__half>"),
        ("sample", "sample_scan"),
        ("layernorm", "layernorm"),
        ("gated_add", "gated_add"),
        ("linear_sparse", "linear_sparse<BF16>"),
        ("sliding_attention", "sliding_attention"),
        ("grouped_attention", "grouped_attention"),
        ("mix_experts", "mix_experts"),
    ],
)
def test_the_others_read_nothing_before_it(family: str, instance: str) -> None:
    before, _ = before_and_after(family, instance)
    assert not [op for op in before if op.startswith(("LDG", "STG", "LDS", "STS"))]


def test_a_token_shift_has_its_weights_before_the_wait() -> None:
    """LayerNorm's and six mixes of the first channel; after it those of later channels, and no more from the cache."""
    before, after = before_and_after("token_shift", "norm_shift_mix")
    assert [op for op in before if op.startswith(("LDG", "STG", "LDS", "STS"))] == ["LDG.E.CONSTANT"] * 8
    assert sum("CONSTANT" in op for op in after) == 8
    assert sum(op.startswith("LDG") for op in after) > 16


@pytest.mark.parametrize(
    ("family", "instance", "n_loads"),
    [("wkv4", "wkv4", 3), ("wkv5", "wkv5<64>", 4), ("wkv7", "wkv7<64>", 4), ("wkv7", "wkv7<128>", 8)],
)
def test_a_state_is_on_its_way_before_the_wait(family: str, instance: str, n_loads: int) -> None:
    """The position and the state, a step old and so from L2, and constants, which nobody writes."""
    before, after = before_and_after(family, instance)
    wide = "LDG.E.128.STRONG.GPU" if "<" in instance else "LDG.E.STRONG.GPU"
    assert before.count(wide) == n_loads + (wide == "LDG.E.STRONG.GPU")
    others = [op for op in before if op.startswith(("LDG", "STG"))]
    assert all("CONSTANT" in op or "STRONG.GPU" in op for op in others), others
    constant = [op for op in after if op.startswith("LDG") and "CONSTANT" in op]
    assert len(constant) <= PARTS.get(instance, 1), "only the place of an output"


def test_nothing_that_a_kernel_wrote_is_read_through_the_read_only_cache() -> None:
    """Weights, scales, norms and angles may be; x, sums of squares, the residual, keys and values may not."""
    _, after = before_and_after("attention_decode", "attention_decode<__half, 1>")
    loads = [op for op in after if op.startswith("LDG")]
    assert len(loads) > 16
    assert not any("CONSTANT" in op for op in loads)
    assert FLOATS == ("F32", "F16", "BF16")
