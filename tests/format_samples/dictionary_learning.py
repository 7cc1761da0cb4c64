"""Files of dictionary_learning: its seven classes, and those of a run that was stopped."""

import json

import torch

from sae_kit.formats import save_sae
from sae_kit.formats.dictionary_learning_config import CLASSES
from sae_kit.sae.batch_topk import BatchTopKConfig

D, F, K = 4, 12, 3


def theirs(folder, dict_class, *, dtype=torch.float32, norm_factor=None, threshold=0.3):
    """Files of dictionary_learning's; with a norm_factor, those of a run that was stopped.

    Returns the tensors by the names that formulas have for them, as they are saved.
    """
    draw = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,), "r_mag": (F,)}
    shapes |= dict.fromkeys(("b_enc", "b_mag", "threshold"), (F,))
    w = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    w["threshold"] = w["threshold"].abs()
    state = {}
    for ours, name in CLASSES[dict_class].names.items():
        state[name] = w[ours].T.contiguous() if name.endswith(".weight") else w[ours]
    settings = {"dict_class": dict_class, "activation_dim": D, "dict_size": F, "lm_name": "gpt2"}
    if CLASSES[dict_class].has_k:
        w["threshold"] = torch.tensor(threshold)
        state |= {"k": torch.tensor(K, dtype=torch.int), "threshold": w["threshold"]}
        settings["k"] = K
    if dict_class == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([4, 8])
        settings["group_sizes"] = [4, 8]
    folder.mkdir(parents=True, exist_ok=True)
    if norm_factor is not None:
        optimizer = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3}]}
        state = {"ae": state, "step": 7, "optimizer": optimizer, "config": settings}
        state["norm_factor"] = norm_factor
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": settings}))
    return {name: tensor.float() for name, tensor in w.items()}


def _variant(dict_class, **settings):
    def write(folder):
        theirs(folder / "resid_post_layer_3" / "trainer_0", dict_class, **settings)
        return folder / "resid_post_layer_3" / "trainer_0"

    return write


def _ours(folder):
    config = BatchTopKConfig(d_sae=F, k=K, apply_b_dec_to_input=False)
    sae = config.build(D, generator=torch.Generator().manual_seed(0))
    metadata = {"hook_name": "blocks.3.hook_resid_post"}
    save_sae(sae, folder, metadata=metadata, format="dictionary_learning")
    return folder


VARIANTS = {dict_class: _variant(dict_class) for dict_class in CLASSES} | {
    "half": _variant("AutoEncoderTopK", dtype=torch.bfloat16),
    "stopped": _variant("GatedAutoEncoder", norm_factor=2.5),
    "ours": _ours,
}
