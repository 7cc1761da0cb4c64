"""Files of EleutherAI's sparsify, as its documentation has them, and ours in its layout."""

import json

import torch
from safetensors.torch import save_file

from sae_kit.formats import save_sae
from sae_kit.sae.groupmax import GroupMaxConfig

D_IN, F = 4, 12
THEIRS = {
    "activation": "topk",
    "expansion_factor": 3,
    "normalize_decoder": True,
    "num_latents": F,
    "k": 3,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D_IN,
}
OLDER = dict.fromkeys(("activation", "multi_topk", "skip_connection", "transcode"))
"""Keys that older files lack."""


def theirs(folder, dtype=torch.float32, **changes):
    """A file of sparsify's; a value of None removes a key. Returns its tensors."""
    config = {key: value for key, value in (THEIRS | changes).items() if value is not None}
    draw = torch.Generator().manual_seed(3)
    shapes = {"encoder.weight": (F, D_IN), "encoder.bias": (F,), "W_dec": (F, D_IN)}
    shapes |= {"b_dec": (D_IN,)}
    shapes |= {"W_skip": (D_IN, D_IN)} if config.get("skip_connection") else {}
    tensors = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return {name: tensor.float() for name, tensor in tensors.items()}


def _variant(module="h.3", dtype=torch.float32, **changes):
    def write(folder):
        theirs(folder / module, dtype, **changes)
        return folder / module

    return write


def _ours(folder):
    config = GroupMaxConfig(d_sae=F, k=3, apply_b_dec_to_input=False)
    sae = config.build(D_IN, D_IN, generator=torch.Generator().manual_seed(0))
    save_sae(sae, folder, metadata={"hook_name": "blocks.3.hook_resid_pre"}, format="sparsify")
    return folder


VARIANTS = {
    "topk": _variant(),
    "groupmax": _variant(activation="groupmax"),
    "half": _variant("layers.3.mlp", torch.bfloat16),
    "transcoder": _variant("h.3.mlp", transcode=True),
    "skip": _variant("h.3", transcode=True, skip_connection=True),
    "old": _variant("h.3/seed1", num_latents=0, signed=False, **OLDER),
    "old-skip": _variant(**OLDER | {"skip_connection": True}),
    "ours": _ours,
}
