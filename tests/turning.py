"""Models turned: the same function, written in another basis of the residual stream."""

import torch
from conftest import random_gpt2

from sae_kit.models.gpt2 import GPT2, GPT2Config


def model_with_plain_norms(config: GPT2Config) -> GPT2:
    """Random; LayerNorms have no gain and no bias of their own, which would single channels out."""
    model = random_gpt2(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".ln" in name or name.startswith("ln"):
                p.fill_(1.0 if name.endswith(".w") else 0.0)
    return model


def turn(d_model: int, *, seed: int = 0) -> torch.Tensor:
    """`[d_model d_model]`, a random rotation that leaves (1, ..., 1), the mean's direction."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.full((d_model, 1), d_model**-0.5)
    others = torch.randn(d_model, d_model - 1, generator=generator)
    plane = torch.linalg.qr(torch.cat([ones, others], 1)).Q[:, 1:]
    turned = torch.linalg.qr(torch.randn(d_model - 1, d_model - 1, generator=generator)).Q
    return ones @ ones.T + plane @ turned @ plane.T


def turned(model: GPT2, q: torch.Tensor) -> GPT2:
    """The same function with the residual stream turned by q."""
    copy = GPT2(model.config).requires_grad_(False)
    state = {name: p.clone() for name, p in model.state_dict().items()}
    for name, p in state.items():
        if name.startswith("W_") or name.endswith(("W_O", "W_out", "b_O", "b_out")):
            state[name] = p @ q
        elif name.endswith(("W_qkv", "W_in")):
            state[name] = q.T @ p
    copy.load_state_dict(state)
    return copy.eval()
