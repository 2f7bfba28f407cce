"""Writes micro_rwkv.npz, logits of small MicroRWKVs by PyTorch: python -m tests.references.make_micro_rwkv

The model is written here from the description of it (docs/recurrent.md), token by token and view by view, and shares
nothing with llamagpu. float64, but for the decay, which MicroRWKV computes in float32. Made with torch 2.15.0; the
tests that read the file do not need torch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tests.micro_rwkv_files import MicroShape, micro_state

REFERENCE = Path(__file__).parent / "micro_rwkv.npz"
LENGTHS = (1, 20, 255, 256, 257, 600)
SHAPES = {
    "no bias": MicroShape(96, 3, 4, 640, 211, 4, 4, 40),
    "bias, idle experts": MicroShape(96, 2, 3, 640, 211, 5, 2, 33, bias=True),
    "wide": MicroShape(128, 2, 8, 640, 211, 3, 2, 50, bias=True),
    "cropped": MicroShape(32, 2, 2, 70, 211, 2, 1, 20),
    "small": MicroShape(48, 2, 3, 640, 61, 3, 2, 12, bias=True),
}


def ids_of(shape: MicroShape, n: int) -> list[int]:
    ids: list[int] = np.random.default_rng(11).integers(0, shape.vocab_size, 600).tolist()
    return ids[:n]


class Reference:
    """One model. ``logits``: after the last of some tokens."""

    def __init__(self, shape: MicroShape, seed: int = 0) -> None:
        import torch

        self.torch, self.shape = torch, shape
        self.w = {name: torch.from_numpy(values).double() for name, values in micro_state(shape, seed).items()}

    def linear(self, x: Any, name: str) -> Any:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def rms_norm(self, x: Any) -> Any:
        return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-8)

    def mixed(self, x: Any, name: str, letter: str) -> Any:
        torch = self.torch
        before = torch.zeros_like(x)
        before[1:] = x[:-1]
        return x + (before - x) * self.w[f"{name}.time_maa_{letter}"].reshape(-1)

    def time_mix(self, x: Any, name: str) -> Any:
        torch, n_heads = self.torch, self.shape.n_head
        t, c = x.shape
        r = self.linear(self.mixed(x, name, "r"), f"{name}.receptance").view(t, n_heads, c // n_heads)
        k = self.linear(self.mixed(x, name, "k"), f"{name}.key").view(t, n_heads, c // n_heads)
        v = self.linear(self.mixed(x, name, "v"), f"{name}.value").view(t, n_heads, c // n_heads)
        g = torch.nn.functional.silu(self.linear(self.mixed(x, name, "g"), f"{name}.gate"))
        decay = torch.exp(-torch.exp(self.w[f"{name}.time_decay"].float())).double().reshape(-1)
        bonus = self.w[f"{name}.time_faaaa"].reshape(-1)
        y = torch.zeros(t, n_heads, c // n_heads, dtype=x.dtype)
        for h in range(n_heads):
            state = torch.zeros(c // n_heads, c // n_heads, dtype=x.dtype)
            for i in range(t):
                now = torch.outer(k[i, h], v[i, h])
                y[i, h] = r[i, h] @ (state + bonus[h] * now)
                state = decay[h] * state + now
        weight, bias = self.w[f"{name}.ln_x.weight"], self.w[f"{name}.ln_x.bias"]
        y = torch.nn.functional.group_norm(y.reshape(t, c), n_heads, weight, bias, 6.4e-4)
        return self.linear(y * g, f"{name}.output")

    def channel_mix(self, x: Any, name: str) -> Any:
        torch = self.torch
        k = torch.relu(self.linear(self.mixed(x, name, "k"), f"{name}.key")) ** 2
        r = torch.sigmoid(self.linear(self.mixed(x, name, "r"), f"{name}.receptance"))
        return r * self.linear(k, f"{name}.value")

    def sliding(self, x: Any, name: str) -> Any:
        torch, n_heads = self.torch, self.shape.n_head
        t, c = x.shape
        n = c // n_heads
        q, k, v = self.linear(x, f"{name}.qkv").reshape(t, 3, n_heads, n).unbind(1)
        padded = 256 * math.ceil(t / 256)
        heads = []
        for h in range(n_heads):
            parts = []
            for part in (q[:, h] * n**-0.5, k[:, h], v[:, h]):
                whole = torch.zeros(padded, n, dtype=x.dtype)
                whole[:t] = part
                parts.append(whole.view(256, padded // 256 * n))
            scores = torch.softmax(parts[0] @ parts[1].T, dim=-1)
            heads.append((scores @ parts[2]).reshape(padded, n)[:t])
        return self.linear(torch.cat(heads, dim=1), f"{name}.proj")

    def grouped(self, x: Any, name: str) -> Any:
        torch, n_heads = self.torch, self.shape.n_head
        t, c = x.shape
        d = c // n_heads // 4
        y = self.linear(x, f"{name}.qkvw").view(t, 4, 4, c // 4)
        outputs, gates = [], []
        for s in range(4):
            q, k, v = (y[:, s, i].contiguous().view(n_heads, t, d) for i in range(3))
            out = torch.zeros(n_heads, t, d, dtype=x.dtype)
            for place in range(t):
                for h in range(n_heads):
                    scores = torch.softmax(k[:, place] @ q[h, place] * d**-0.5, dim=0)
                    out[h, place] = scores @ v[:, place]
            outputs.append(out.flatten())
            gates.append(y[:, s, 3].flatten())
        both = torch.cat(outputs).view(t, c) * torch.cat(gates).view(t, c)
        return self.linear(both, f"{name}.out")

    def experts(self, x: Any, name: str) -> Any:
        p = self.torch.softmax(self.linear(x, f"{name}.gate"), dim=-1)
        active = range(self.shape.num_active_experts)
        h = sum(p[:, a : a + 1] * self.linear(x, f"{name}.experts.{a}") for a in active)
        return self.linear(h, f"{name}.fc")

    def logits(self, ids: list[int]) -> Any:
        torch = self.torch
        ids = ids[-self.shape.block_size :]
        x = self.w["transformer.wte.weight"][torch.tensor(ids)] + self.w["transformer.wpe.weight"][: len(ids)]
        for i in range(self.shape.n_layer):
            block = f"transformer.h.{i}"
            x = x + self.time_mix(self.rms_norm(x), f"{block}.tmix")
            x = x + self.channel_mix(self.rms_norm(x), f"{block}.cmix")
            x = x + self.sliding(x, f"{block}.sliding_attn")
            x = x + self.grouped(self.time_mix(x, f"{block}.tmix"), f"{block}.grouped_attn")
            x = x + self.experts(x, f"{block}.moe")
        weight, bias = self.w["transformer.ln_f.weight"], self.w.get("transformer.ln_f.bias")
        x = torch.nn.functional.layer_norm(x[-1], (x.shape[-1],), weight, bias, 1e-5)
        return (self.w["lm_head.weight"] @ x).numpy()


def main() -> None:
    arrays = {}
    for name, shape in SHAPES.items():
        reference = Reference(shape)
        for n in LENGTHS:
            arrays[f"{name} {n}"] = reference.logits(ids_of(shape, n))
            print(name, n, float(np.abs(arrays[f"{name} {n}"]).max()), flush=True)
    np.savez_compressed(REFERENCE, **arrays)


if __name__ == "__main__":
    main()
