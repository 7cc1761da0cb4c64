"""GPT-2s whose output is a known function of the activation at their last position.

All have two blocks, of which the first does nothing, so that `blocks.1.hook_resid_pre` is the
embedding. They have no LayerNorm but one that subtracts the mean, which planted readings ignore.
"""

import torch
from torch import Tensor

from sae_kit.models.gpt2 import GPT2, GPT2Config

SITE, READ = "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"
STATE = slice(0, 2)
"""Channels of an activation's place in the plane."""
_KEYS, _HOST, _OUT, _REST = slice(2, 5), 5, slice(6, 9), 9
D, N_CELLS, FIRST_PLACE = 10, 3, 3
"""Tokens 0, 1, 2 hold the cells' keys and make up every prompt but for its last token; those from
FIRST_PLACE on are places in the plane."""


def _empty(n_vocab: int, *, d_mlp: int = 4) -> GPT2:
    sizes = {"n_layer": 2, "n_head": 1, "d_model": D, "d_mlp": d_mlp, "n_ctx": 8}
    model = GPT2(GPT2Config(**sizes, n_vocab=n_vocab, norm="linear")).double()
    for name, p in model.named_parameters():
        p.detach().fill_(1.0 if name.endswith(".w") else 0.0)
    return model.requires_grad_(False).eval()


def _reading(*columns: tuple[int, Tensor]) -> Tensor:
    """`[D columns]`: each reads channels from its number on with these weights, and the mean of the
    stream not at all."""
    W = torch.zeros(D, len(columns), dtype=torch.float64)
    for i, (first, weights) in enumerate(columns):
        W[first : first + len(weights), i] = weights
        W[_REST, i] = -weights.sum()
    return W


def places(xy: Tensor, *, d_mlp: int = 4) -> tuple[GPT2, Tensor]:
    """A model that passes activations on as they are, and prompts that end at the places xy.

    Its embedding of token FIRST_PLACE + i has xy[i] in the channels STATE.
    """
    model = _empty(FIRST_PLACE + len(xy), d_mlp=d_mlp)
    model.W_E[:N_CELLS, _KEYS] = torch.eye(N_CELLS, dtype=torch.float64)
    model.W_E[FIRST_PLACE:, STATE] = xy.double()
    model.W_E[FIRST_PLACE:, _HOST] = 1.0
    last = FIRST_PLACE + torch.arange(len(xy))
    keys = torch.arange(N_CELLS).expand(len(xy), N_CELLS)
    return model, torch.cat([keys, last[:, None]], 1)


def cells(xy: Tensor, directions: Tensor, *, gain: float, size: float = 1e6) -> tuple[GPT2, Tensor]:
    """A model whose output at x is x + size * softmax(gain * directions @ x), and prompts as above.

    Attention is the softmax: the keys are those of the first three positions. The output channels
    are so large that x itself does not count.
    """
    model, tokens = places(xy)
    attention = model.blocks[1].attn
    query, key, value = attention.W_qkv.view(D, 3, D).unbind(1)
    scale = gain * D**0.5
    query[:, :2] = scale * _reading((0, torch.tensor([1.0])), (1, torch.tensor([1.0])))
    attention.b_qkv[2] = 1.0
    for i, direction in enumerate(directions.double()):
        key[:, :2] += _reading((_KEYS.start + i, torch.ones(1))) * direction
        value[:, i : i + 1] = _reading((_KEYS.start + i, torch.ones(1)))
    # Keys beyond the directions there are, and that of the last position itself, are never chosen.
    key[_HOST, 2], key[_REST, 2] = -1e9, 1e9
    for i in range(len(directions), N_CELLS):
        key[_KEYS.start + i, 2], key[_REST, 2] = -1e9, key[_REST, 2] + 1e9
    attention.W_O[:N_CELLS, _OUT] = size * torch.eye(N_CELLS, dtype=torch.float64)
    return model, tokens


def gates(xy: Tensor, normals: Tensor, thresholds: Tensor) -> tuple[GPT2, Tensor]:
    """A model whose last MLP's neuron k is on where normals[k] @ x > thresholds[k], and prompts as
    above. The neurons change nothing."""
    model, tokens = places(xy, d_mlp=len(normals))
    model.blocks[1].mlp.W_in[:] = _reading(*((0, normal) for normal in normals.double()))
    model.blocks[1].mlp.b_in[:] = -thresholds.double()
    return model, tokens
