"""AuxK: dead latents learn to reconstruct what the live ones left over.

    loss = variance(target) / variance(residual) * mean over rows of |decoded - residual|^2
    decoded = relu(top_k(pre-activations of the dead latents)) @ W_dec of the dead latents

Source: Gao et al. 2024 (2406.04093), section A.2. The error is taken relative to the variance of
what is to be fitted, as theirs is, and then given the units of the main term (the variance of the
target), so that a coefficient weighs the two as in the paper, where it is 1/32.

The dead latents are encoded again, by themselves: they are few as a rule, and keeping everybody's
pre-activations for their sake would cost `[rows d_sae]` of memory at every step.

Limits: a dead latent whose pre-activations are all negative stays out of reach. Batches cannot be
merged exactly while latents are dead, as the variances are those of the batch.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.products import linear
from sae_kit.sae import ops

DENSE_UP_TO = 16
"""Up to this many dead latents for each active one, matrix products over all of them are faster
than sparse ones (measured on CPU), and their matrices stay small. It changes no result."""


@final
@dataclass(frozen=True)
class Layer:
    """The weights of some latents."""

    encoder_rows: Float[Tensor, "n d_in"]
    b_enc: Float[Tensor, " n"]
    W_dec: Float[Tensor, "n d_out"]

    @staticmethod
    def of(
        encoder_rows: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        latents: Int[Tensor, " n"],
    ) -> "Layer":
        """The chosen latents' part of a dictionary; gradients flow back."""
        return Layer(*(table.index_select(0, latents) for table in (encoder_rows, b_enc, W_dec)))


def auxiliary_loss(
    x: Float[Tensor, "rows d_in"],
    residual: Float[Tensor, "rows d_out"],
    dead: Layer,
    *,
    variance: Float[Tensor, ""],
    k: int,
) -> Float[Tensor, ""]:
    """See the module's docstring.

    Args:
        x: the encoder's input, centred as the SAE does it; held constant by the caller.
        residual: target less reconstruction; held constant by the caller.
        dead: the dead latents' weights.
        variance: that of the target, as `ops.variance`.
        k: how many dead latents may be active in a row, at most.
    """
    error = ops.squared_error(_decode(x, dead, min(k, len(dead.b_enc))), residual)
    left = ops.variance(residual)
    # One row, or a perfect reconstruction, leaves nothing to be relative to.
    eps = torch.finfo(left.dtype).eps
    return torch.where(left > eps * variance, variance / left, 0.0).detach() * error


def _decode(x: Tensor, dead: Layer, k: int) -> Tensor:
    """What the k strongest dead latents of each row write, without b_dec."""
    n_dead = len(dead.b_enc)
    if n_dead > DENSE_UP_TO * k:
        values, indices = ops.top_pre_activations(x, dead.encoder_rows, dead.b_enc, k)
        return ops.sparse_decode(values.relu(), indices, dead.W_dec)
    pre = linear(x, dead.encoder_rows, dead.b_enc)
    if k < n_dead:
        pre = ops.keep_top(pre, k)
    return linear(pre.relu(), dead.W_dec.T)
