"""A net that is linear throughout (METHODS §11, F19), in float64.

No LayerNorm scale, no attention, and MLPs whose neurons have so large a bias that their GELU is the
identity; the bias is taken off again behind them. The output is a sum over paths of products of
matrices.
"""

import torch

from circuits.compiler import Compiled
from sae_kit.models.gpt2 import GPT2, GPT2Config

CONFIG = GPT2Config(
    n_layer=3, n_head=2, d_model=12, d_mlp=10, n_ctx=4, n_vocab=9, tied=False, norm="linear"
)
BIAS = 32.0
"""A GELU is the identity from about 8 on, to the last bit of a float64."""


def linear(*, n_pairs: int = 5, seed: int = 0) -> Compiled:
    """Random weights and prompts; the answer is drawn too."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(CONFIG).double().requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if ".attn." in name or name.endswith(".b"):
            parameter.zero_()
        elif parameter.ndim == 2:
            parameter.normal_(0.0, 0.5 * parameter.shape[0] ** -0.5, generator=generator)
    for block in model.blocks:
        block.mlp.b_in.fill_(BIAS)
        block.mlp.b_out.copy_(-BIAS * block.mlp.W_out.sum(0))
    shape = (n_pairs, CONFIG.n_ctx)
    clean = torch.randint(CONFIG.n_vocab, shape, generator=generator)
    step = torch.randint(1, CONFIG.n_vocab, shape, generator=generator)
    senders = ["embed", *(f"m{i}" for i in range(CONFIG.n_layer))]
    edges = {(a, b) for i, a in enumerate(senders) for b in [*senders[i + 1 :], "logits"]}
    return Compiled(
        model=model,
        clean=clean,
        corrupt=(clean + step) % CONFIG.n_vocab,
        answers=tuple(range(n_pairs)),
        wrong=tuple((i + 1) % CONFIG.n_vocab for i in range(n_pairs)),
        edges=frozenset(edges),
    )
