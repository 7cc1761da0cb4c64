"""A GPT-2 that is an associative memory: METHODS F9.

Every block but the first, which does nothing, moves the activation x at the last position to

    x + ETA (softmax(beta X x) X - x)

with the stored patterns X in keys and values of the positions before. Attention recalls; the MLP
forgets, which with GELU is exact: gelu(z) - gelu(-z) = z. The only LayerNorm is one that subtracts
the mean, and no reading depends on it, since the last channel is read with what is left to 0.
"""

import torch
from torch import Tensor

from sae_kit.models.gpt2 import GPT2, GPT2Config

N_STEPS, ETA = 6, 0.5
SITE, READ = "blocks.1.hook_resid_pre", f"blocks.{N_STEPS}.hook_resid_post"


def memory(patterns: Tensor, starts: Tensor, *, beta: float) -> tuple[GPT2, Tensor]:
    """The model, and a prompt for each of `starts [starts d]` that begins there: its first d
    channels at SITE's last position. `patterns` is `[n d]`."""
    (n, d), patterns, starts = patterns.shape, patterns.double(), starts.double()
    width = d + n + 2  # the place, which pattern a position holds, whether it is the last, the rest
    last, rest = width - 2, width - 1
    place, which = torch.arange(d), d + torch.arange(n)
    model = GPT2(
        GPT2Config(
            n_layer=1 + N_STEPS,
            n_head=1,
            d_model=width,
            d_mlp=2 * d,
            n_ctx=n + 1,
            n_vocab=n + len(starts),
            norm="linear",
        )
    ).double()
    for name, p in model.named_parameters():
        p.detach().fill_(1.0 if name.endswith(".w") else 0.0)
    model.requires_grad_(False).eval()
    one = torch.eye(d, dtype=torch.float64)
    model.W_E[:n, which] = torch.eye(n, dtype=torch.float64)
    model.W_E[n:, place] = starts
    model.W_E[n:, last] = 1.0
    for block in model.blocks[1:]:
        query, key, value = block.attn.W_qkv.view(width, 3, width).unbind(1)
        query[:d, :d] = beta * width**0.5 * one
        key[which, :d] = value[which, :d] = patterns
        # The last position is no pattern, so nobody recalls it.
        key[last, d], block.attn.b_qkv[d] = -1e9, 1.0
        block.attn.W_O[:d, :d] = ETA / (1 - ETA) * one
        block.mlp.W_in[:d] = torch.cat([one, -one], 1)
        block.mlp.W_out[:, :d] = ETA * torch.cat([-one, one])
        for reading in (query, key, value, block.mlp.W_in):
            reading[rest] -= reading.sum(0)
    tokens = torch.cat(
        [torch.arange(n).expand(len(starts), n), n + torch.arange(len(starts))[:, None]], 1
    )
    return model, tokens


def recalled(x: Tensor, patterns: Tensor, *, beta: float) -> Tensor:
    """Where the memory takes `x [... d]`, by the formula."""
    x, patterns = x.double(), patterns.double()
    for _ in range(N_STEPS):
        x = x + ETA * ((beta * x @ patterns.T).softmax(-1) @ patterns - x)
    return x
