"""What ``run --json`` writes: one object with the text and all that is known of how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from llamagpu.errors import UsageError
from llamagpu.generation import Answer
from llamagpu.logprobs import TokenLogprob


def check_json(json: bool, logprobs: int | None, echo: bool) -> None:
    """Whether these flags go together. Raises UsageError."""
    if logprobs is not None and not json:
        raise UsageError("--logprobs is shown with --json: give both")
    if echo and json:
        raise UsageError("--echo does not go with --json, which holds the new text alone")


def json_of(answer: Answer, model: str) -> str:
    """One line, for an answer that is over or was closed.

    tokens: ids of the new tokens. stop_reason: eos, stop, max_tokens, context or unfinished. logprobs: null where they
    were not asked for; else one of each token, natural logarithms, null for a token that cannot come. timings: in
    seconds, see Answer; decode_tokens_per_second is null where one token or none was made. seed: gives the same tokens
    again.
    """
    n_steps, seconds = answer.decode_steps, answer.decode_seconds
    timings = {
        "prompt_tokens": len(answer.prompt_tokens),
        "prompt_seconds": answer.prompt_seconds,
        "first_token_seconds": answer.first_token_seconds,
        "decode_tokens": n_steps,
        "decode_seconds": seconds,
        "decode_tokens_per_second": n_steps / seconds if n_steps and seconds else None,
    }
    found: dict[str, Any] = {
        "text": answer.text,
        "tokens": answer.tokens,
        "stop_reason": answer.stop_reason,
        "logprobs": finite(answer.logprobs) if answer.logprobs is not None else None,
        "timings": timings,
        "model": model,
        "device": answer.session.llm.device.name,
        "seed": answer.params.seed,
    }
    return json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n"


def finite(rows: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """JSON has no word for minus infinity."""

    def known(row: Any) -> dict[str, Any]:
        return {**row, "logprob": row["logprob"] if math.isfinite(row["logprob"]) else None}

    return [{**known(row), "top": [known(candidate) for candidate in row["top"]]} for row in rows]
