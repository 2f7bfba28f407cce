"""RWKV-4, 5.2, 6 and 7 as their papers and RWKV's own files have them: names, shapes, and one token at a time.

Plain NumPy in float64, head by head, and nothing of llamagpu's: what every reader and backend is held against.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = dict[str, NDArray[np.float32]]

VERSIONS = (4, 5, 6, 7)
EPS, HEAD_EPS = 1e-5, 64e-5


def random_weights(
    version: int, dim: int = 32, n_layers: int = 3, head_dim: int = 8, hidden: int = 48, vocab: int = 70, rank: int = 5,
    seed: int = 0,
) -> Weights:  # fmt: skip
    """A model whose numbers are of the sizes that trained ones have, under the names and in the shapes of its files."""
    rng = np.random.default_rng(seed)
    n_heads, layer_weights = dim // head_dim, {4: layer_4, 5: layer_5, 6: layer_6, 7: layer_7}[version]

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Array:
        return mean + scale * rng.standard_normal(shape)

    def matrix(rows: int, columns: int) -> Array:
        return normal(rows, columns, scale=1 / np.sqrt(columns))

    def norm(name: str) -> dict[str, Array]:
        return {f"{name}.weight": normal(dim, scale=0.2, mean=1), f"{name}.bias": normal(dim, scale=0.1)}

    weights = {"emb.weight": normal(vocab, dim, scale=0.5)}
    for i in range(n_layers):
        block = f"blocks.{i}"
        for ln in ("ln0", "ln1", "ln2") if i == 0 else ("ln1", "ln2"):
            weights |= norm(f"{block}.{ln}")
        for kind in ("receptance", "key", "value", "output"):
            weights[f"{block}.att.{kind}.weight"] = matrix(dim, dim)
        if version > 4:
            weights |= norm(f"{block}.att.ln_x")
        own = layer_weights(rng, normal, matrix, dim, n_heads, head_dim, rank, i)
        weights |= {f"{block}.{name}": value for name, value in own.items()}
        weights[f"{block}.ffn.key.weight"] = matrix(hidden, dim)
        weights[f"{block}.ffn.value.weight"] = matrix(dim, hidden)
        if version < 7:
            weights[f"{block}.ffn.receptance.weight"] = matrix(dim, dim)
    weights |= norm("ln_out")
    weights["head.weight"] = matrix(vocab, dim)
    return {name: np.asarray(value, np.float32) for name, value in weights.items()}


def layer_4(
    rng: Any, normal: Any, matrix: Any, dim: int, n_heads: int, head_dim: int, rank: int, layer: int
) -> dict[str, Array]:
    mixes = {f"{place}.time_mix_{x}": rng.uniform(0, 1, (1, 1, dim)) for place, xs in (("att", "kvr"), ("ffn", "kr"))
             for x in xs}  # fmt: skip
    return {"att.time_decay": rng.uniform(-5, 3, dim), "att.time_first": normal(dim, scale=0.7), **mixes}


def layer_5(
    rng: Any, normal: Any, matrix: Any, dim: int, n_heads: int, head_dim: int, rank: int, layer: int
) -> dict[str, Array]:
    mixes = {f"{place}.time_mix_{x}": rng.uniform(0, 1, (1, 1, dim)) for place, xs in (("att", "kvrg"), ("ffn", "kr"))
             for x in xs}  # fmt: skip
    heads = {"time_decay": rng.uniform(-6, -1, (n_heads, head_dim)), "time_faaaa": normal(n_heads, head_dim, scale=0.4)}
    return {**{f"att.{name}": value for name, value in heads.items()}, "att.gate.weight": matrix(dim, dim), **mixes}


def layer_6(
    rng: Any, normal: Any, matrix: Any, dim: int, n_heads: int, head_dim: int, rank: int, layer: int
) -> dict[str, Array]:
    mixes = {f"{place}.time_maa_{x}": rng.uniform(0, 1, (1, 1, dim)) for place, xs in (("att", "xwkvrg"), ("ffn", "kr"))
             for x in xs}  # fmt: skip
    return {
        **mixes, "att.time_maa_w1": normal(dim, 5 * rank, scale=0.2), "att.gate.weight": matrix(dim, dim),
        "att.time_maa_w2": normal(5, rank, dim, scale=0.2), "att.time_decay": rng.uniform(-6, -1, (1, 1, dim)),
        "att.time_decay_w1": normal(dim, rank + 2, scale=0.2), "att.time_decay_w2": normal(rank + 2, dim, scale=0.3),
        "att.time_faaaa": normal(n_heads, head_dim, scale=0.4),
    }  # fmt: skip


def layer_7(
    rng: Any, normal: Any, matrix: Any, dim: int, n_heads: int, head_dim: int, rank: int, layer: int
) -> dict[str, Array]:
    """The first layer has v0, v1 and v2, as files of training have: nothing reads them."""
    weights = {f"att.x_{x}": rng.uniform(0, 1, (1, 1, dim)) for x in "rwkvag"}
    for x, width in zip("wavg", (rank, rank + 1, rank + 2, rank + 5), strict=True):
        weights |= {f"att.{x}1": normal(dim, width, scale=0.2), f"att.{x}2": normal(width, dim, scale=0.3)}
    return {
        **weights, "att.w0": rng.uniform(-6, 1, (1, 1, dim)), "att.a0": normal(1, 1, dim, scale=0.7),
        "att.v0": normal(1, 1, dim, scale=0.5, mean=0.7), "att.k_k": normal(1, 1, dim, scale=0.1, mean=0.85),
        "att.k_a": normal(1, 1, dim, scale=0.1, mean=1), "att.r_k": normal(n_heads, head_dim, scale=0.3),
        "ffn.x_k": rng.uniform(0, 1, (1, 1, dim)),
    }  # fmt: skip


def layernorm(x: Array, weight: Array, bias: Array, eps: float = EPS) -> Array:
    return np.asarray((x - x.mean()) / np.sqrt(x.var() + eps) * weight + bias)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class Reference:
    """A sequence of one model. head_eps: of the norm of each head. rescale_every: the stream, and all that is added to
    it, is halved after so many layers: then the eps of a norm is as if it were four times as large; 0: never."""

    def __init__(self, weights: Weights, version: int, head_eps: float = HEAD_EPS, rescale_every: int = 0) -> None:
        self.rescale_every = rescale_every
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.version, self.head_eps = version, head_eps
        self.n_layers = sum(name.endswith(".ln1.weight") for name in weights)
        dim = weights["emb.weight"].shape[1]
        zeros = np.zeros(dim)
        self.before = {(i, place): zeros for i in range(self.n_layers) for place in ("att", "ffn")}
        if version == 4:
            self.sums = [(zeros, zeros, zeros - 1e30) for _ in range(self.n_layers)]
        else:
            n_heads, head_dim = weights["blocks.0.att.r_k" if version == 7 else "blocks.0.att.time_faaaa"].shape
            self.states = np.zeros((self.n_layers, n_heads, head_dim, head_dim))  # [key, value]; RWKV-7 [value, key]
        self.first_value = zeros

    def logits(self, tokens: list[int]) -> Array:
        """After each of the tokens, [n, vocab]."""
        return np.stack([self.step(token) for token in tokens])

    def step(self, token: int) -> Array:
        w = self.weights
        x = layernorm(w["emb.weight"][token], w["blocks.0.ln0.weight"], w["blocks.0.ln0.bias"])
        time_mix = {4: self.time_mix_4, 5: self.time_mix_5, 6: self.time_mix_6, 7: self.time_mix_7}[self.version]
        for i in range(self.n_layers):
            for place, mix, ln in (("att", time_mix, "ln1"), ("ffn", self.channel_mix, "ln2")):
                h = layernorm(x, w[f"blocks.{i}.{ln}.weight"], w[f"blocks.{i}.{ln}.bias"], self.eps(i))
                previous, self.before[i, place] = self.before[i, place], h
                own = {name.removeprefix(f"blocks.{i}.{place}."): value for name, value in w.items()
                       if name.startswith(f"blocks.{i}.{place}.")}  # fmt: skip
                x = x + mix(own, h, previous, i)
        eps = self.eps(self.n_layers)
        return np.asarray(w["head.weight"] @ layernorm(x, w["ln_out.weight"], w["ln_out.bias"], eps))

    def eps(self, layer: int) -> float:
        return float(EPS * 4 ** (layer // self.rescale_every)) if self.rescale_every else EPS

    def channel_mix(self, w: dict[str, Array], x: Array, before: Array, i: int) -> Array:
        if self.version == 7:
            k = w["key.weight"] @ (x + (before - x) * w["x_k"].reshape(-1))
            return np.asarray(w["value.weight"] @ np.maximum(k, 0) ** 2)
        if self.version == 6:
            xk, xr = (x + (before - x) * w[f"time_maa_{name}"].reshape(-1) for name in "kr")
        else:
            xk, xr = (mixed(x, before, w[f"time_mix_{name}"]) for name in "kr")
        k = np.maximum(w["key.weight"] @ xk, 0) ** 2
        return np.asarray(sigmoid(w["receptance.weight"] @ xr) * (w["value.weight"] @ k))

    def time_mix_4(self, w: dict[str, Array], x: Array, before: Array, i: int) -> Array:
        k, v, r = (w[f"{kind}.weight"] @ mixed(x, before, w[f"time_mix_{kind[0]}"])
                   for kind in ("key", "value", "receptance"))  # fmt: skip
        a, b, p = self.sums[i]
        largest = np.maximum(p, w["time_first"] + k)
        old, new = np.exp(p - largest), np.exp(w["time_first"] + k - largest)
        wkv = (old * a + new * v) / (old * b + new)
        decayed = p - np.exp(w["time_decay"])
        largest = np.maximum(decayed, k)
        old, new = np.exp(decayed - largest), np.exp(k - largest)
        self.sums[i] = old * a + new * v, old * b + new, largest
        return np.asarray(w["output.weight"] @ (sigmoid(r) * wkv))

    def time_mix_5(self, w: dict[str, Array], x: Array, before: Array, i: int) -> Array:
        r, k, v, g = (w[f"{kind}.weight"] @ mixed(x, before, w[f"time_mix_{kind[0]}"])
                      for kind in ("receptance", "key", "value", "gate"))  # fmt: skip
        return self.heads(w, i, r, k, v, g, np.exp(-np.exp(w["time_decay"])))

    def time_mix_6(self, w: dict[str, Array], x: Array, before: Array, i: int) -> Array:
        step = before - x
        low = np.tanh((x + step * w["time_maa_x"].reshape(-1)) @ w["time_maa_w1"]).reshape(5, -1)
        xs = {name: x + step * (w[f"time_maa_{name}"].reshape(-1) + low[j] @ w["time_maa_w2"][j])
              for j, name in enumerate("wkvrg")}  # fmt: skip
        r, k, v, g = (w[f"{kind}.weight"] @ xs[kind[0]] for kind in ("receptance", "key", "value", "gate"))
        decay = w["time_decay"].reshape(-1) + np.tanh(xs["w"] @ w["time_decay_w1"]) @ w["time_decay_w2"]
        return self.heads(w, i, r, k, v, g, np.exp(-np.exp(decay)).reshape(self.states.shape[1], -1))

    def heads(self, w: dict[str, Array], i: int, r: Array, k: Array, v: Array, g: Array, decay: Array) -> Array:
        n_heads, n = self.states.shape[1:3]
        out = []
        for h in range(n_heads):
            part = slice(h * n, (h + 1) * n)
            kv = np.outer(k[part], v[part])
            y = r[part] @ (w["time_faaaa"][h][:, None] * kv + self.states[i, h])
            self.states[i, h] = decay[h][:, None] * self.states[i, h] + kv
            out.append(layernorm(y, w["ln_x.weight"][part], w["ln_x.bias"][part], self.head_eps))
        return np.asarray(w["output.weight"] @ (np.concatenate(out) * g * sigmoid(g)))

    def time_mix_7(self, w: dict[str, Array], x: Array, before: Array, i: int) -> Array:
        xr, xw, xk, xv, xa, xg = (x + (before - x) * w[f"x_{name}"].reshape(-1) for name in "rwkvag")
        r, k, v = w["receptance.weight"] @ xr, w["key.weight"] @ xk, w["value.weight"] @ xv
        decay = np.exp(-np.exp(-0.5) * sigmoid(w["w0"].reshape(-1) + np.tanh(xw @ w["w1"]) @ w["w2"]))
        a = sigmoid(w["a0"].reshape(-1) + xa @ w["a1"] @ w["a2"])
        g = sigmoid(xg @ w["g1"]) @ w["g2"]
        if i == 0:
            self.first_value = v
        else:
            v = v + (self.first_value - v) * sigmoid(w["v0"].reshape(-1) + xv @ w["v1"] @ w["v2"])
        removed = k * w["k_k"].reshape(-1)
        k = k * (1 + (a - 1) * w["k_a"].reshape(-1))
        n_heads, n = self.states.shape[1:3]
        out = []
        for h in range(n_heads):
            part = slice(h * n, (h + 1) * n)
            kk = removed[part] / max(np.sqrt((removed[part] ** 2).sum()), 1e-12)
            state = self.states[i, h]
            state = state * decay[part] + state @ np.outer(-kk, kk * a[part]) + np.outer(v[part], k[part])
            self.states[i, h] = state
            y = layernorm(state @ r[part], w["ln_x.weight"][part], w["ln_x.bias"][part], self.head_eps)
            out.append(y + (r[part] * k[part] * w["r_k"][h]).sum() * v[part])
        return np.asarray(w["output.weight"] @ (np.concatenate(out) * g))


def mixed(x: Array, before: Array, share: Array) -> Array:
    """share: of the token itself, as RWKV-4 and 5 have it."""
    return np.asarray(x * share.reshape(-1) + before * (1 - share.reshape(-1)))
