"""PyTorch and transformers on the same shape, for comparison: random weights, a static cache, greedy decode.

It runs in a process of its own, so that its memory is free again before ours is measured, and so that nothing else of
llamagpu imports torch: ``python -m llamagpu.bench_peer`` reads a request as JSON from stdin and answers on stdout.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from llamagpu.config import ModelConfig
from llamagpu.errors import UsageError, first_line

NEEDED = ("torch", "transformers")
DROPPED_STEPS = 8


@dataclass(frozen=True)
class PeerRow:
    """Decode at one context. tokens_per_s: of the median step; p50_us: that step. None with ``left_out``."""

    context: int
    tokens_per_s: float | None = None
    p50_us: float | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class Peer:
    """name: what ran, with versions. dtype: of its weights. left_out: why nothing ran."""

    name: str
    dtype: str | None = None
    rows: list[PeerRow] = field(default_factory=list)
    left_out: str | None = None

    def tokens_per_s(self, context: int) -> float | None:
        return next((row.tokens_per_s for row in self.rows if row.context == context), None)


def check_peer(name: str) -> None:
    """Raises UsageError for a peer that is not known or not installed."""
    if name != "transformers":
        raise UsageError(f"--peer must be transformers, not {name!r}")
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"--peer transformers needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def run_peer(
    config: ModelConfig,
    device: str,
    contexts: tuple[int, ...],
    tokens: int,
    seed: int,
    timeout: float | None = None,
) -> Peer:
    """Measure the peer in a new process. device: as torch names it ("cuda:0", "cpu"). timeout: in seconds."""
    request = {"config": config.to_dict(), "device": device, "contexts": contexts, "tokens": tokens, "seed": seed}
    package = Path(__file__).parent.parent
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    more = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}  # transformers may fetch kernels otherwise
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "llamagpu.bench_peer"], input=json.dumps(request), capture_output=True,
            text=True, check=False, env={**os.environ, **more}, timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Peer("transformers", left_out=f"it took more than {timeout:.0f} s")
    if done.returncode == 130:
        raise KeyboardInterrupt
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        return Peer("transformers", left_out=lines[-1])
    rows = [PeerRow(**row) for row in answer.pop("rows")]
    return Peer(**answer, rows=rows)


def main() -> None:
    """The process: one request, one answer."""
    try:
        request = json.load(sys.stdin)
        try:
            answer = measure(ModelConfig(**request.pop("config")), **request)
        except Exception as error:  # out of memory, no CUDA: whatever it is, our own figures do not depend on it
            answer = Peer("transformers", left_out=first_line(error))
        print(json.dumps(asdict(answer)))
    except KeyboardInterrupt:
        sys.exit(130)


def measure(config: ModelConfig, device: str, contexts: list[int], tokens: int, seed: int) -> Peer:
    import torch
    import transformers

    on_gpu = device.startswith("cuda")
    dtype = torch.float16 if on_gpu else torch.float32  # as ours on either; a CPU multiplies float16 slowly
    shape = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_seq_len,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied_head,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = transformers.LlamaForCausalLM(shape).eval()
    finally:
        torch.set_default_dtype(before)
    rows = []
    for context in contexts:
        try:
            p50 = median(step_seconds(model, context, tokens, device))
            rows.append(PeerRow(context, 1 / p50, p50 * 1e6))
        except torch.OutOfMemoryError as error:
            rows.append(PeerRow(context, left_out=first_line(error)))
        if on_gpu:
            torch.cuda.empty_cache()
    name = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return Peer(name, str(dtype).removeprefix("torch."), rows)


def step_seconds(model: Any, context: int, tokens: int, device: str) -> list[float]:
    """Seconds of each of ``tokens`` decode steps from ``context`` positions on, each token read by the host.

    As with ours, no prompt is run: the positions hold zeros, which does not matter to speed.
    """
    import torch
    from transformers import StaticCache

    n_steps = DROPPED_STEPS + tokens
    cache = StaticCache(config=model.config, max_cache_len=context + n_steps)
    times = []
    with torch.inference_mode():

        def forward(token: Any, position: int) -> Any:
            """The most likely token after ``token``: [1, 1]."""
            positions = torch.full((1, 1), position, device=device)
            logits = model(input_ids=token, past_key_values=cache, position_ids=positions, use_cache=True).logits
            return logits[:, -1:].argmax(dim=-1)

        token = forward(torch.ones((1, 1), dtype=torch.long, device=device), 0)  # makes the memory of the cache
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)  # how many positions it holds, as the layer counts them
        for step in range(n_steps):
            start = time.perf_counter()
            token = forward(token, context + step)
            token.item()  # whoever shows the token must wait for it
            times.append(time.perf_counter() - start)
    return times[DROPPED_STEPS:]


if __name__ == "__main__":
    main()
