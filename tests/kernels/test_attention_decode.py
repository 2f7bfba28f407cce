"""kernels/attention_decode.cu, with attention_merge, against backends/cpu/attention.py."""

from __future__ import annotations

from llamagpu.backends.cuda.kernels import KV_TYPES
from tests.kernels.harness import twin_tests
from tests.kernels.test_attention import case
from tests.kernels.test_qkv_rope import heads

# (start, splits) of one new token: first position, less and more than a batch and a share, whole ones, more splits than
# shares
PLACES = ((0, 1), (0, 3), (30, 1), (62, 2), (63, 2), (64, 2), (200, 1), (200, 3), (319, 5), (319, 16))
CASES = [case(kv, heads(8, 4, 2, 16), 1, start, splits) for kv in KV_TYPES for start, splits in PLACES]
CASES += [
    case(kv, heads(8, n_heads, n_kv_heads, head_dim), 1, 300, 2)
    for kv in KV_TYPES
    for n_heads, n_kv_heads, head_dim in (
        (1, 1, 8), (2, 2, 64), (4, 1, 128), (8, 1, 32), (9, 3, 48), (7, 1, 20), (2, 1, 100), (2, 1, 256), (3, 3, 2),
    )
]  # fmt: skip
CASES += [
    case(kv, heads(8, 4, 2, 24), n, start, splits)
    for kv in KV_TYPES
    for n, start, splits in ((2, 0, 1), (3, 63, 1), (4, 130, 3))
]
CASES += [case("float", heads(8, 2, 1, 16), 1, 150, 2, scale=30.0)]  # softmax that is nearly one key
CASES += [
    case(kv, heads(8, 4, 2, 16), n, start, splits, window=window)
    for kv in KV_TYPES
    for n, start, splits, window in (
        (1, 0, 1, 1), (1, 62, 1, 63), (1, 63, 2, 63), (1, 200, 1, 1), (1, 200, 2, 65), (1, 319, 3, 300), (1, 5, 1, 600),
        (2, 130, 1, 3), (4, 130, 2, 100), (4, 1, 1, 2),
    )
]  # fmt: skip
CASES += [case("__half", heads(8, 6, 2, 20), n, 90, 3, form="split") for n in (1, 2)]
SMALL = [case(kv, heads(8, n_heads, 1, 10), 1, 130, 2, spare=0) for kv in KV_TYPES for n_heads in (1, 2, 3, 8)]
SMALL += [case("__half", heads(8, 2, 1, 80), 1, 70, 2)]  # lanes are left over
SMALL += [case("float", heads(8, 2, 1, 16), 3, 62, 3), case("float", heads(8, 2, 1, 4), 1, 3, 4)]
SMALL += [case("float", heads(8, 2, 1, 16), n, 90, 2, spare=0, window=7) for n in (1, 3)]
SMALL += [case("__half", heads(8, 1, 1, 256), 1, 600, 1), case("float", heads(8, 1, 1, 136), 1, 40, 1)]
test_twin, test_random_orders, test_checking_build, test_small = twin_tests(CASES, SMALL)
