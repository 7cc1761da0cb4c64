"""Connor Kissane's files: weights, and a config of the same name beside them."""

import json

import torch

D_IN, D_SAE = 6, 10
SHAPES = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
NAME = "gpt2-small_L{}_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_v9"
CONFIG = {"act_size": D_IN, "dict_size": D_SAE, "seq_len": 128, "model_name": "gpt2-small"}


def contents(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def save(folder, layer=3, *, held=None, name=None, **changes):
    name = name or NAME.format(layer)
    torch.save(held or contents(layer), folder / f"{name}.pt")
    config = CONFIG | {"act_name": f"blocks.{layer}.attn.hook_z"} | changes
    (folder / f"{name}_cfg.json").write_text(json.dumps(config))
    return folder / f"{name}.pt"


VARIANTS = {"published": save, "renamed": lambda folder: save(folder, name="mine")}
