"""Choose the next token from logits, in arithmetic that gives the same token on every machine.

Probabilities are never floats here. Each token gets a whole-number weight, 2^40 * exp(logit - largest logit),
computed from single float32 additions and multiplications only (no libm, no fused multiply-add), so its bits are the
same everywhere; sums of whole numbers do not depend on their order, so a GPU may add them up as it likes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamagpu.errors import LlamaGPUError
from llamagpu.sampling import (
    DAMAGED_LOGITS,
    LARGEST_INVERSE_TEMPERATURE,
    WEIGHT_BITS,
    SamplingParams,
    random_u64,
)

LOG2_E = np.float32(1.4426950408889634)
# 2^f on [0, 1): Chebyshev interpolant of degree 6 with float32 coefficients, relative error below 1e-7.
EXP2_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (
        1.0, 0.6931469440460205, 0.24023045599460602, 0.055480629205703735,
        0.009684186428785324, 0.0012391331838443875, 0.00021865784947294742,
    )
)  # fmt: skip


def exp_weights(
    logits: NDArray[np.float32], largest: np.float32, inverse_temperature: float = 1.0
) -> NDArray[np.int64]:
    """int64 weights floor(2^40 * 2^t) with t = (logit - largest) * inverse_temperature * log2(e), elementwise."""
    with np.errstate(over="ignore"):  # an enormous inverse temperature sends all but the best to -inf: meant
        t = (logits - largest) * np.float32(inverse_temperature) * LOG2_E
    t = np.maximum(t, np.float32(-63))
    t[t > -(2.0**-30)] = 0  # a GPU flushes subnormal differences to zero; so do we
    whole = np.floor(t)
    fraction = t - whole
    power = np.full_like(t, EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        power = power * fraction
        power = power + coefficient
    mantissa = (power * np.float32(1 << 23)).astype(np.int64)
    weights: NDArray[np.int64] = (mantissa << (WEIGHT_BITS - 23)) >> (-whole).astype(np.int64)
    return weights


def penalize(logits: NDArray[np.float32], counts: NDArray[np.int32], penalty: float) -> NDArray[np.float32]:
    """Logits of tokens with counts > 0: divided by ``penalty`` where positive, multiplied where negative."""
    p = np.float32(penalty)
    return np.where(counts > 0, np.where(logits > 0, logits / p, logits * p), logits)


def most_likely(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Ids of the k largest logits, largest first, lower id first among equals."""
    if k < logits.size:
        smallest_kept = np.partition(logits, logits.size - k)[logits.size - k]
        above = np.flatnonzero(logits > smallest_kept)
        equal = np.flatnonzero(logits == smallest_kept)[: k - above.size]
        ids = np.sort(np.concatenate([above, equal]))
    else:
        ids = np.arange(logits.size)
    return ids[np.argsort(-logits[ids], kind="stable")]


def candidates(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.int64]:
    """Ids that top-k, top-p and min-p leave, in rising order. Each sees what the steps before it have left."""
    ids, largest, inverse_temperature = np.arange(logits.size), logits.max(), 1.0
    for step in params.order:
        if step == "temperature":
            inverse_temperature = inverse_of(params.temperature)
        elif step == "top_k" and 0 < params.top_k < ids.size:
            ids = ids[most_likely(logits[ids], params.top_k)]
        elif step == "top_p" and params.top_p < 1:
            ids = ids[most_likely(logits[ids], ids.size)]
            sums = np.cumsum(exp_weights(logits[ids], largest, inverse_temperature))
            needed = (int(sums[-1]) * round(params.top_p * 2**32)) >> 32
            ids = ids[: int(np.searchsorted(sums, max(needed, 1))) + 1]
        elif step == "min_p" and params.min_p > 0:
            smallest_weight = round(params.min_p * 2**32) << (WEIGHT_BITS - 32)
            ids = ids[exp_weights(logits[ids], largest, inverse_temperature) >= smallest_weight]
    return np.sort(ids)


def inverse_of(temperature: float) -> float:
    return min(1 / temperature, LARGEST_INVERSE_TEMPERATURE)


def sample(logits: NDArray[np.float32], counts: NDArray[np.int32], params: SamplingParams, step: int) -> int:
    """The next token. logits: float32 [vocab_size]; counts: how often each token is in the context so far.

    Draw ``step`` of ``params.seed`` picks r in [0, sum of weights), and the token is the first, by id, at which the
    running sum passes r. Raises LlamaGPUError for logits that are not numbers.
    """
    largest = logits.max()
    if not np.isfinite(largest):  # max is NaN where any logit is; -inf alone is a masked token
        raise LlamaGPUError(DAMAGED_LOGITS)
    if params.repetition_penalty != 1:
        logits = penalize(logits, counts, params.repetition_penalty)
        largest = logits.max()
    if params.temperature == 0:
        return int(np.argmax(logits))
    ids = candidates(logits, params)
    sums = np.cumsum(exp_weights(logits[ids], largest, inverse_of(params.temperature)))
    assert params.seed is not None, "SamplingParams.with_seed() comes first"
    draw = (random_u64(params.seed, step) * int(sums[-1])) >> 64
    return int(ids[np.searchsorted(sums, draw, side="right")])
