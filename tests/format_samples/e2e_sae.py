"""Files of Apollo's e2e_sae: a run's folder, and a pair of files as published."""

import torch
import yaml

D_IN, RATIO = 12, 3
SITE = "blocks.6.hook_resid_pre"
CONFIG = {
    "tlens_model_name": "gpt2-small",
    "tlens_model_path": None,
    "saes": {"dict_size_to_input_ratio": float(RATIO), "sae_positions": [SITE]},
    "train_data": {"dataset_name": "apollo-research/openwebtext", "n_ctx": 1024},
    "loss": {"sparsity": {"coeff": 1.5, "p_norm": 1.0}, "logits_kl": {"coeff": 1.0}},
}


def contents(site=SITE, *, seed=0):
    """A run's weights. The decoder's columns have norms far from 1."""
    generator = torch.Generator().manual_seed(seed)
    stem, d_sae = site.replace(".", "-"), RATIO * D_IN
    return {
        f"{stem}.encoder.0.weight": torch.randn(d_sae, D_IN, generator=generator),
        f"{stem}.encoder.0.bias": torch.randn(d_sae, generator=generator),
        f"{stem}.decoder.weight": torch.randn(D_IN, d_sae, generator=generator),
        f"{stem}.decoder.bias": torch.randn(D_IN, generator=generator),
    }


def save_pair(folder, name="e2e_layer_6", *, held=None, config=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(contents() if held is None else held, folder / f"{name}.pt")
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder / f"{name}.pt"


def save_run(folder, *samples):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "final_config.yaml").write_text(yaml.safe_dump(CONFIG))
    for n in samples:
        torch.save(contents(seed=n), folder / f"samples_{n}.pt")
    return folder


def _published(folder):
    """As on the hub: no site in the names of tensors."""
    stem = SITE.replace(".", "-")
    held = {
        name.removeprefix(f"{stem}.").replace(".0.", "."): tensor
        for name, tensor in contents().items()
    }
    return save_pair(folder, held=held)


def _alone(folder):
    torch.save(contents(), folder / "alone.pt")
    return folder / "alone.pt"


VARIANTS = {
    "published": _published,
    "pair": save_pair,
    "run": lambda folder: save_run(folder, 400),
    "alone": _alone,
}
