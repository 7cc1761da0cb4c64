"""Normalisation of each row before an SAE reads it, undone on what it writes.

Public SAEs differ in this, and it is part of what they compute:

- `none`: rows are read as they are. What this toolkit trains is of this kind; the constant factor
  that rows are scaled by in training is folded into the weights.
- `layer_norm`: x -> (x - mean) / (std + 1e-5) over channels, with the *unbiased* standard deviation
  (n - 1), and back by recon * std + mean, without the 1e-5. OpenAI's TopK SAEs of GPT-2, and
  SAELens' mode of this name.
- `constant_norm_rescale`: x -> x * sqrt(d_in) / |x|, and back by the inverse. SAELens' mode of this
  name (Anthropic's rule with the norm of each row). A row of zeros stays one.

Names are SAELens'. A code is that of the normalised row.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)

EPS = 1e-5


def normalise(kind: Normalization, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
    """Rows as the SAE reads them."""
    if kind == "layer_norm":
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + EPS)
    if kind == "constant_norm_rescale":
        return x / _relative_norm(x)
    return x


def denormalise(
    kind: Normalization, recon: Float[Tensor, "rows d_out"], x: Float[Tensor, "rows d_in"]
) -> Float[Tensor, "rows d_out"]:
    """What was written for normalised rows, in the units of the rows `x` that these were."""
    if kind == "layer_norm":
        return recon * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
    if kind == "constant_norm_rescale":
        return recon * _relative_norm(x)
    return recon


def _relative_norm(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > 0, norm / math.sqrt(x.shape[-1]), 1.0)
