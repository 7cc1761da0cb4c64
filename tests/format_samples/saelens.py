"""Files of SAELens, of version 6, of older ones and of checkpoints, and ours in its layout."""

import json
import math
from functools import partial

import torch
from safetensors.torch import save_file

from sae_kit.formats import save_sae
from sae_kit.sae.gated import GatedConfig
from sae_kit.sae.groupmax import GroupMaxConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig
from sae_kit.sae.topk import TopKConfig

D_IN, D_OUT, D_SAE, K = 4, 5, 8, 2
SITE = "blocks.8.hook_resid_pre"
OWN = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}

CONTENTS = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "sae_lens_version": "6.54.12",
        "model_name": "gpt2-small",
        "hook_name": SITE,
        "context_size": 128,
        "prepend_bos": True,
    },
}
OLD = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "model_name": "gpt2-small",
    "hook_point": SITE,
    "hook_point_layer": 8,
    "hook_point_head_index": None,
    "context_size": 128,
    "l1_coefficient": 8e-5,
    "dtype": "torch.float32",
    "device": "mps",
}


def tensors(architecture, d_out=D_IN):
    draw = torch.Generator().manual_seed(4)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, d_out), "b_dec": (d_out,)}
    shapes |= dict.fromkeys(OWN.get(architecture.split("_")[0], ("b_enc",)), (D_SAE,))
    shapes |= {"W_skip": (d_out, D_IN)} if "skip" in architecture else {}
    w = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return w | ({"threshold": w["threshold"].abs()} if "threshold" in w else {})


def save(folder, contents, w):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(contents))
    save_file(w, folder / "sae_weights.safetensors")
    return folder


def save_6(folder, architecture, **changes):
    contents = {"architecture": architecture} | CONTENTS | changes
    d_out = D_IN
    if "transcoder" in architecture:
        d_out = D_OUT
        contents |= {"d_out": D_OUT, "apply_b_dec_to_input": False}
    return save(folder, contents, tensors(architecture, d_out))


def save_old(folder, architecture="standard", **changes):
    changes |= {} if architecture == "standard" else {"architecture": architecture}
    return save(folder / SITE, OLD | changes, tensors(architecture))


def save_batch_topk_checkpoint(folder):
    """As in the checkpoints of a run under way: one threshold, inputs that are scaled."""
    changes = {"k": float(K), "rescale_acts_by_decoder_norm": True}
    changes["normalize_activations"] = "expected_average_only_in"
    w = tensors("batchtopk") | {"topk_threshold": torch.tensor(0.4, dtype=torch.float64)}
    save(folder, {"architecture": "batchtopk"} | CONTENTS | changes, w)
    (folder / "activation_scaler.json").write_text(
        json.dumps({"scaling_factor": math.sqrt(D_IN) / 3})
    )
    return folder


def save_ours(folder, config, d_out=None, *, normalization="none", sparsity=None):
    sae = config.build(D_IN, d_out, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    sae.normalization = normalization
    save_sae(sae, folder, metadata={"hook_name": SITE, "l0": [1.5, 2]}, sparsity=sparsity)
    return folder


VARIANTS = {
    "standard": partial(save_6, architecture="standard"),
    "topk-rescaled": partial(save_6, architecture="topk", k=K, rescale_acts_by_decoder_norm=True),
    "topk-layer-norm": partial(
        save_6, architecture="topk", k=K, normalize_activations="layer_norm"
    ),
    "standard-by-row": partial(
        save_6, architecture="standard", normalize_activations="constant_norm_rescale"
    ),
    "jumprelu-hook-z": partial(save_6, architecture="jumprelu", reshape_activations="hook_z"),
    "gated": partial(save_6, architecture="gated"),
    "transcoder": partial(save_6, architecture="transcoder"),
    "skip-transcoder": partial(save_6, architecture="skip_transcoder"),
    "jumprelu-skip-transcoder": partial(save_6, architecture="jumprelu_skip_transcoder"),
    "checkpoint": save_batch_topk_checkpoint,
    "old": save_old,
    "old-jumprelu": partial(save_old, architecture="jumprelu"),
    "old-topk": partial(save_old, activation_fn_str="topk", activation_fn_kwargs={"k": K}),
    "ours-topk": partial(
        save_ours,
        config=TopKConfig(d_sae=D_SAE, k=K, k_aux=2),
        normalization="layer_norm",
        sparsity=torch.full((D_SAE,), 0.25),
    ),
    "ours-matryoshka": partial(
        save_ours, config=MatryoshkaConfig(d_sae=D_SAE, k=K, group_fractions=(0.25, 0.75))
    ),
    "ours-gated": partial(save_ours, config=GatedConfig(d_sae=D_SAE)),
    "ours-groupmax-transcoder": partial(
        save_ours,
        config=GroupMaxConfig(d_sae=D_SAE, k=K, apply_b_dec_to_input=False, skip=True),
        d_out=D_OUT,
    ),
}
