"""Files of OpenAI's sparse_autoencoder: what its state_dict() holds."""

import torch

D_IN, D_SAE, K = 16, 40, 5


def contents(activation="TopK", *, seed=0):
    """What OpenAI's state_dict() holds, with weights in which every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "pre_bias": (D_IN,),
        "latent_bias": (D_SAE,),
        "encoder.weight": (D_SAE, D_IN),
        "decoder.weight": (D_IN, D_SAE),
    }
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    statistics = {
        "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.int64),
        "latents_activation_frequency": torch.ones(D_SAE),
        "latents_mean_square": torch.ones(D_SAE),
    }
    topk = {"activation_state_dict": {"k": K, "postact_fn": "ReLU"}} if activation == "TopK" else {}
    return state | statistics | {"activation": activation} | topk


def save(folder, held, name="6.pt"):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(held, folder / name)
    return folder / name


def _topk(folder):
    return save(folder / "resid_post_mlp_v5_32k" / "autoencoders", contents())


def _relu(folder):
    return save(folder / "mlp_post_act_v4" / "autoencoders", contents("ReLU"))


def _oldest(folder):
    held = contents("ReLU")
    del held["activation"]
    return save(folder, held)


def _saved_anew(folder):
    return save(folder, contents() | {"activation.k": K, "activation.postact_fn": "ReLU"})


VARIANTS = {"topk": _topk, "relu": _relu, "oldest": _oldest, "saved-anew": _saved_anew}
