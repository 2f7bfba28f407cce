"""Writes the two small files of this folder with torch itself: python tests/references/make_torch_files.py

state_dict.pth: tensors of many types, some of them parts of one storage, and more objects than one byte counts.
training.pt: what train.py of llama2.c saves of a small model (names with the prefix of torch.compile, tied head, Adam).
Made with torch 2.15.0. Needs torch and NumPy; the tests that read the files do not need torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATE_DICT, TRAINING = Path(__file__).parent / "state_dict.pth", Path(__file__).parent / "training.pt"
MODEL_ARGS = {
    "dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 20, "multiple_of": 4, "max_seq_len": 16,
    "dropout": 0.1,
}  # fmt: skip


def state_values() -> dict[str, NDArray[Any]]:
    """Name to values, of the types that NumPy has; those of "bfloat16" are still float32."""
    rng = np.random.default_rng(7)
    values: dict[str, NDArray[Any]] = {
        "float32": rng.standard_normal((3, 5)).astype(np.float32),
        "float16": rng.standard_normal((4, 2)).astype(np.float16),
        "bfloat16": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "int64": rng.integers(-(2**40), 2**40, 6),
        "int32": rng.integers(-(2**20), 2**20, (2, 2)).astype(np.int32),
        "uint8": rng.integers(0, 255, 9).astype(np.uint8),
        "bool": rng.random(5) > 0.5,
        "scalar": np.array(rng.standard_normal(), np.float32),
        "shared": rng.standard_normal((6, 4)).astype(np.float32),
    }
    return values | {f"many.{i}": rng.standard_normal(2).astype(np.float32) for i in range(30)}


def model_values() -> dict[str, NDArray[np.float32]]:
    """Meta's names and float32 values of a model of MODEL_ARGS, without its head, which is the embedding."""
    rng = np.random.default_rng(8)
    shapes = {
        "tok_embeddings": (20, 8), "layers.0.attention.wq": (8, 8), "layers.0.attention.wk": (4, 8),
        "layers.0.attention.wv": (4, 8), "layers.0.attention.wo": (8, 8), "layers.0.feed_forward.w1": (24, 8),
        "layers.0.feed_forward.w2": (8, 24), "layers.0.feed_forward.w3": (24, 8), "layers.0.attention_norm": (8,),
        "layers.0.ffn_norm": (8,), "norm": (8,),
    }  # fmt: skip
    return {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_state_dict(path: Path) -> None:
    import torch

    tensors = {name: torch.from_numpy(values) for name, values in state_values().items()}
    tensors["bfloat16"] = tensors["bfloat16"].to(torch.bfloat16)
    tensors["tied"] = tensors["shared"]  # the same storage
    tensors["part"] = tensors["shared"][2:5]  # from its element 8 on
    tensors["parameter"] = torch.nn.Parameter(tensors["float32"])
    tensors["transposed"] = tensors["shared"].t()
    torch.save(tensors, path)


def write_training(path: Path) -> None:
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, values in model_values().items():
                self.register_module_at(name, torch.nn.Parameter(torch.from_numpy(values)))
            self.register_module_at("output.weight", self.tok_embeddings.weight)

        def register_module_at(self, name: str, parameter: torch.nn.Parameter) -> None:
            module: torch.nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if not hasattr(module, folder):
                    module.add_module(folder, torch.nn.Module())
                module = getattr(module, folder)
            module.register_parameter(last, parameter)

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    sum(p.sum() for p in [model.norm.weight, model.layers.get_submodule("0").ffn_norm.weight]).backward()
    optimizer.step()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(model_values()[name]))
    state = model.state_dict()  # carries _metadata
    for name in list(state):
        state[f"_orig_mod.{name}"] = state.pop(name)
    checkpoint = {
        "model": state, "optimizer": optimizer.state_dict(), "model_args": MODEL_ARGS, "iter_num": 100_000,
        "best_val_loss": torch.tensor(1.5), "config": {"device": "cuda", "compile": True, "wandb": None, "lr": 5e-4},
    }  # fmt: skip
    torch.save(checkpoint, path)


if __name__ == "__main__":
    write_state_dict(STATE_DICT)
    write_training(TRAINING)
