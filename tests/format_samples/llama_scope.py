"""Files of Llama Scope, and of Llamascopium, in which the names of tensors differ."""

import json

import torch
from safetensors.torch import save_file

D_IN, D_SAE, NORM = 8, 24, 5.0
SITE = "blocks.7.hook_resid_post"
OUT = "blocks.7.hook_mlp_out"
NORM_NAME = f"dataset_average_activation_norm.{SITE}"

HYPER = {
    "d_model": D_IN,
    "d_sae": D_SAE,
    "hook_point_in": SITE,
    "hook_point_out": SITE,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.7,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": NORM, "out": NORM},
}
LATER = {
    "sae_type": "sae",
    "d_model": D_IN,
    "expansion_factor": D_SAE / D_IN,
    "hook_point_in": SITE,
    "hook_point_out": SITE,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
}


def contents():
    """W_enc, b_enc, W_dec, b_dec, log_threshold, all in the orientation of the formulas."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "W_enc": (D_IN, D_SAE),
        "b_enc": (D_SAE,),
        "W_dec": (D_SAE, D_IN),
        "b_dec": (D_IN,),
        "log_threshold": (D_SAE,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def modules(w):
    """As modules name them: weights transposed."""
    return {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.contiguous(),
        "decoder.bias": w["b_dec"],
    }


def letters(w):
    return {"W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]}


def threshold_of(w):
    return {"log_jumprelu_threshold": w["log_threshold"]}


def new_threshold_of(w):
    return {"activation_function.log_jumprelu_threshold": w["log_threshold"]}


def save_first(folder, tensors, config=HYPER):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(config))
    return folder


def save_later(folder, tensors, *, norm=NORM, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    norms = {} if norm is None else {NORM_NAME: torch.tensor(norm)}
    save_file(tensors | norms, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(LATER | changes))
    return folder


def _first(folder):
    half = {name: tensor.bfloat16() for name, tensor in contents().items()}
    return save_first(folder / "Llama3_1-8B-Base-L7R-8x", modules(half))


def _distill(folder):
    w = contents()
    return save_later(folder / "L7R", modules(w) | threshold_of(w))


def _jumprelu(folder):
    w = contents()
    held = letters(w) | new_threshold_of(w)
    return save_later(folder, held, sparsity_include_decoder_norm=True)


def _topk(folder):
    settings = {"act_fn": "topk", "top_k": 3, "sparsity_include_decoder_norm": True}
    return save_later(folder, letters(contents()), **settings)


def _relu(folder):
    settings = {"act_fn": "relu", "norm_activation": "token-wise", "use_decoder_bias": False}
    held = letters(contents())
    del held["b_D"]
    return save_later(folder, held, norm=None, **settings)


def _transcoder(folder):
    w = contents()
    norm_out = {f"dataset_average_activation_norm.{OUT}": torch.tensor(2.0)}
    held = letters(w) | new_threshold_of(w) | norm_out
    return save_later(folder, held, hook_point_out=OUT)


VARIANTS = {
    "first": _first,
    "r1-distill": _distill,
    "jumprelu": _jumprelu,
    "topk": _topk,
    "relu-by-row": _relu,
    "transcoder": _transcoder,
}
