"""Train the built-in model from nothing but this repository.

Needs PyTorch (CPU is enough), sentencepiece and llamagpu itself; only this script needs PyTorch.

    python scripts/train_demo_model.py train  --work build/demo      # tokenizer, then about an hour on 2 cores
    python scripts/train_demo_model.py export --work build/demo      # writes llamagpu/demo.bin (float16)

Every story is new: the generator (``demo_stories.py``) never runs dry, so the training loss is also the loss on
unseen stories. The held-out loss at the end is in nats per token, beside the entropy of the generator itself.
"""

from __future__ import annotations

import io
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fire
import numpy as np
import sentencepiece

sys.path.insert(0, str(Path(__file__).parent))
from demo_stories import write_story

SHAPE = {
    "dim": 128,
    "hidden_dim": 384,
    "n_layers": 5,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 1024,
    "max_seq_len": 512,
}
NORM_EPS, ROPE_THETA = 1e-5, 10000.0
BOS, EOS = 1, 2
N_TOKENIZER_STORIES = 20_000
TOKENS_PER_STEP = 4104
HELD_OUT_SEED = 2_000_000_000  # training and tokenizer use one generator each, of small seeds


def train_tokenizer(path: Path) -> None:
    """Byte-fallback BPE over stories; no normalisation, so that decode(encode(text)) is the text for any text."""
    rng = random.Random(1)
    lines = [line for _ in range(N_TOKENIZER_STORIES) for line in write_story(rng).text.split("\n")]
    model = io.BytesIO()  # not a prefix of a path: the trainer would write it into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe",
        vocab_size=SHAPE["vocab_size"], byte_fallback=True, split_digits=True, character_coverage=1.0,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())


def token_stream(tokenizer: sentencepiece.SentencePieceProcessor, seed: int) -> Iterator[list[int]]:
    """Stories without end, each as BOS, its tokens, EOS."""
    rng = random.Random(seed)
    while True:
        yield [BOS, *tokenizer.encode(write_story(rng).text), EOS]


def batches(tokenizer: sentencepiece.SentencePieceProcessor, seed: int, steps: int) -> Iterator[np.ndarray]:
    """int64 [n_rows, length + 1]: rows start at a story's BOS, as generation does, and are cut at the end.

    Short rows first, about one story each: looking up who the story is about is learned far sooner without the names
    of other stories around. The last third of the steps uses the whole context.
    """
    stories = token_stream(tokenizer, seed)
    for step in range(steps):
        length = (SHAPE["max_seq_len"] if step > steps * 2 // 3 else 192) + 1
        rows = []
        for _ in range(TOKENS_PER_STEP // length):
            row: list[int] = []
            while len(row) < length:
                row.extend(next(stories))
            rows.append(row[:length])
        yield np.array(rows, dtype=np.int64)


def build_model():
    """A plain Llama in PyTorch: RMSNorm, interleaved RoPE, grouped-query attention, SwiGLU, tied head."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    dim, n_heads, n_kv_heads = SHAPE["dim"], SHAPE["n_heads"], SHAPE["n_kv_heads"]
    head_dim = dim // n_heads
    frequency = ROPE_THETA ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.arange(SHAPE["max_seq_len"]).float()[:, None] * frequency
    rotation = torch.polar(torch.ones_like(angle), angle)

    def rope(x: torch.Tensor) -> torch.Tensor:  # [batch, time, heads, head_dim]
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * rotation[: x.shape[1], None]).flatten(3)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm = nn.RMSNorm(dim, eps=NORM_EPS)
            self.wq = nn.Linear(dim, dim, bias=False)
            self.wk = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
            self.wv = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
            self.wo = nn.Linear(dim, dim, bias=False)
            self.ffn_norm = nn.RMSNorm(dim, eps=NORM_EPS)
            self.w1 = nn.Linear(dim, SHAPE["hidden_dim"], bias=False)
            self.w2 = nn.Linear(SHAPE["hidden_dim"], dim, bias=False)
            self.w3 = nn.Linear(dim, SHAPE["hidden_dim"], bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, time_steps, _ = x.shape
            h = self.attention_norm(x)
            q = rope(self.wq(h).view(batch, time_steps, n_heads, head_dim)).transpose(1, 2)
            k = rope(self.wk(h).view(batch, time_steps, n_kv_heads, head_dim)).transpose(1, 2)
            v = self.wv(h).view(batch, time_steps, n_kv_heads, head_dim).transpose(1, 2)
            k, v = (t.repeat_interleave(n_heads // n_kv_heads, dim=1) for t in (k, v))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.wo(attended.transpose(1, 2).reshape(batch, time_steps, dim))
            h = self.ffn_norm(x)
            return x + self.w2(F.silu(self.w1(h)) * self.w3(h))

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok_embeddings = nn.Embedding(SHAPE["vocab_size"], dim)
            self.layers = nn.ModuleList(Block() for _ in range(SHAPE["n_layers"]))
            self.norm = nn.RMSNorm(dim, eps=NORM_EPS)
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    # 1/sqrt(fan_in), not the usual 0.02: at this width 0.02 starts attention so flat that the model
                    # fills in names by chance for thousands of steps before it learns to look one up.
                    nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            for block in self.layers:  # the residual stream adds up 2 * n_layers branches
                for branch in (block.wo, block.w2):
                    branch.weight.data /= math.sqrt(2 * SHAPE["n_layers"])

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.tok_embeddings(tokens)
            for block in self.layers:
                x = block(x)
            return self.norm(x) @ self.tok_embeddings.weight.T

    return Llama()


def held_out_loss(model, tokenizer, n_stories: int = 1000) -> dict[str, float]:
    """Mean loss in nats per token over whole held-out stories (EOS counted), and the generator's own entropy."""
    import torch
    from torch.nn import functional as F

    rng = random.Random(HELD_OUT_SEED)
    story_nats = loss_nats = 0.0
    n_tokens = 0
    with torch.no_grad():
        for _ in range(n_stories):
            story = write_story(rng)
            ids = torch.tensor([[BOS, *tokenizer.encode(story.text), EOS]])
            loss_nats += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
            story_nats += story.nats
            n_tokens += ids.shape[1] - 1
    return {
        "held_out_stories": n_stories,
        "loss_nats_per_token": loss_nats / n_tokens,
        "generator_entropy_nats_per_token": story_nats / n_tokens,
        "loss_nats_per_story": loss_nats / n_stories,
        "generator_entropy_nats_per_story": story_nats / n_stories,
    }


def train(work: str = "build/demo", steps: int = 3600, peak_lr: float = 3e-3, seed: int = 0) -> None:
    """Train the tokenizer and the model; leaves tokenizer.model, weights.npz (float32) and report.json in WORK."""
    import torch
    from torch.nn import functional as F

    folder = Path(work)
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(folder / "tokenizer.model")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    torch.manual_seed(seed)
    model = build_model()
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.95),
    )
    warmup = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
        ),
    )
    start, n_tokens = time.time(), 0
    for step, batch in enumerate(batches(tokenizer, seed, steps)):
        tokens = torch.from_numpy(batch)
        n_tokens += tokens.numel()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.time() - start:.0f} s", file=sys.stderr, flush=True)
            np.savez(folder / "weights.npz", **{name: p.detach().numpy() for name, p in model.state_dict().items()})
    report = {
        **SHAPE, "parameters": sum(p.numel() for p in model.parameters()), "steps": steps,
        "tokens_seen": n_tokens, "seed": seed, "seconds": round(time.time() - start),
        "torch": torch.__version__, **held_out_loss(model, tokenizer),
    }  # fmt: skip
    with torch.no_grad():  # what is shipped is float16: measure that too
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    report["float16_loss_nats_per_token"] = held_out_loss(model, tokenizer)["loss_nats_per_token"]
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def export(work: str = "build/demo", out: str = "llamagpu/demo.bin") -> None:
    """Write WORK's weights as float16, with the tokenizer inside, as a native model.bin."""
    from llamagpu.checkpoint import Checkpoint, TokenizerSpec
    from llamagpu.config import ModelConfig
    from llamagpu.formats import native

    folder = Path(work)
    head_dim = SHAPE["dim"] // SHAPE["n_heads"]
    values = {"architecture": "llama", "head_dim": head_dim, "norm_eps": NORM_EPS, "rope_theta": ROPE_THETA, **SHAPE}
    config = ModelConfig.checked(folder, {**values, "tied_head": True})
    tensors = {}
    for name, array in np.load(folder / "weights.npz").items():
        part = name.split(".")[-2]  # such as wq, w1, norm
        group = "attention" if part in ("wq", "wk", "wv", "wo") else "feed_forward"
        full_name = name.replace(f".{part}.", f".{group}.{part}.") if part.startswith("w") else name
        tensors[full_name] = array.astype(np.float16 if array.ndim == 2 else np.float32)
    tokenizer = TokenizerSpec("sentencepiece", (folder / "tokenizer.model").read_bytes())
    native.write(Path(out), Checkpoint(folder, "trained", config, tensors, tokenizer))
    print(f"wrote {out}: {Path(out).stat().st_size:,} bytes")


if __name__ == "__main__":
    fire.Fire({"train": train, "export": export})
