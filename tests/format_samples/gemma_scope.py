"""Files of Gemma Scope, archives of numpy's, and of Gemma Scope 2, safetensors."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

D_IN, D_OUT, D_SAE = 9, 7, 20
RES = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
EMBEDDING = "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
SECOND = "google/gemma-scope-2-1b-it/resid_post/layer_9_width_16k_l0_small"
TRANSCODER = "google/gemma-scope-2-270m-pt/transcoder/layer_5_width_16k"


def contents(d_out=D_IN, *, skip=False):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "W_enc": (D_IN, D_SAE),
        "b_enc": (D_SAE,),
        "W_dec": (D_SAE, d_out),
        "b_dec": (d_out,),
        "threshold": (D_SAE,),
    } | ({"affine_skip_connection": (D_IN, d_out)} if skip else {})
    w = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return w | {"threshold": w["threshold"].abs()}


def save_npz(folder, w, save=np.savez):
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "params.npz", **{name: tensor.numpy() for name, tensor in w.items()})
    return folder


def save_second(folder, w, **config):
    folder.mkdir(parents=True, exist_ok=True)
    lower = {name.lower(): tensor.contiguous() for name, tensor in w.items()}
    save_file(lower, folder / "params.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _transcoder(folder):
    settings = {"architecture": "jump_relu", "hf_hook_point_in": "a.b"}
    return save_second(folder / TRANSCODER, contents(D_OUT, skip=True), **settings)


def _half(folder):
    w = {name: tensor.bfloat16() for name, tensor in contents().items()}
    return save_second(folder / SECOND, w)


VARIANTS = {
    "first": lambda folder: save_npz(folder / RES, contents()),
    "first-compressed": lambda folder: save_npz(folder / RES, contents(), np.savez_compressed),
    "first-embedding": lambda folder: save_npz(folder / EMBEDDING, contents()),
    "second": lambda folder: save_second(folder / SECOND, contents(), architecture="jump_relu"),
    "second-half": _half,
    "second-transcoder": _transcoder,
}
