"""Pre-activations above a floor: what ReLU-like architectures compute with.

Such an SAE starts with half of its latents active and ends with a few in a thousand. While they are
many, matrices are the faster way; once they are few, a list of (row, latent) pairs is, and the
gradients then never touch the silent ones. `encode` looks and takes the faster way; everything an
architecture does with pre-activations one by one is the same in both.

    active = encode(x, encoder_rows, b_enc, floor)
    code = active.values.relu()
    recon = active.decode(code, W_dec)

Below the floor there is no gradient, so the floor must lie no higher than the lowest
pre-activation whose gradient matters.

Limits: first derivatives only.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.products import linear
from sae_kit.sae import ragged
from sae_kit.sae.code import SparseCode
from sae_kit.sae.ops import CHUNK
from sae_kit.sae.ragged import Pairs

INITIAL_SHARE = 1 / 32
"""Of the latents, active in the mean row at the start. Half of them, as a bias of 0 makes it, cost
much of a run to silence, and time: measured in docs/training.md."""

N_INIT_ROWS = 1024
"""Rows by which biases start."""

DENSE_FROM = 1 / 20
"""The share of active latents from which on matrices are faster (measured on CPU). It changes no
result beyond rounding."""


@final
@dataclass(frozen=True)
class Active:
    """Pre-activations, of which those above a floor matter."""

    values: Float[Tensor, " n"] | Float[Tensor, "rows d_sae"]
    """The listed ones, or all of them; differentiable."""

    pairs: Pairs | None
    """Whose values are listed; None = they are a matrix."""

    def per_latent(
        self, parameter: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, " n"] | Float[Tensor, " d_sae"]:
        """A parameter of every latent, in a shape that goes with `values`; differentiable."""
        return parameter if self.pairs is None else parameter.index_select(0, self.pairs.latents)

    def decode(
        self, activations: Tensor, W_dec: Float[Tensor, "d_sae d_out"]
    ) -> Float[Tensor, "rows d_out"]:
        """The weighted sums of decoder rows, for activations in the shape of `values`."""
        if self.pairs is None:
            return linear(activations, W_dec.T)
        return ragged.decode(activations, self.pairs, W_dec)

    def code(self, activations: Tensor) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """The activations as a code."""
        return activations if self.pairs is None else ragged.as_code(activations, self.pairs)


def encode(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    floor: Float[Tensor, " d_sae"] | None = None,
) -> Active:
    """The pre-activations `x @ encoder_rows.T + b_enc` that exceed each latent's floor; None = 0.

    As a matrix, what lies at or below the floor is set to it, without a gradient.
    """
    floor = torch.zeros_like(b_enc) if floor is None else floor
    found = _few_above(x.detach(), encoder_rows.detach(), b_enc.detach(), floor.detach())
    if found is None:
        pre = linear(x, encoder_rows, b_enc)
        return Active(torch.where(pre > floor, pre, floor.detach()), None)
    values, pairs = found
    return Active(ragged.pre_activations(x, encoder_rows, b_enc, pairs, values), pairs)


def start_level(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
) -> Float[Tensor, ""]:
    """The pre-activation that INITIAL_SHARE of all exceed: what biases are to be lowered by."""
    some = x[:: max(1, len(x) // N_INIT_ROWS)]
    pre = linear(some, encoder_rows, b_enc).flatten()
    return pre.topk(max(1, round(INITIAL_SHARE * len(pre)))).values[-1]


@torch.no_grad()
def _few_above(
    x: Tensor, encoder_rows: Tensor, b_enc: Tensor, floor: Tensor
) -> tuple[Tensor, Pairs] | None:
    """The values above the floor and whose they are; None if they are many.

    Some rows at a time, so that the matrix of all pre-activations never exists.
    """
    d_sae = len(b_enc)
    values, rows, latents, n_done, n_active = [], [], [], 0, 0
    for some in x.split(max(1, CHUNK // d_sae)):
        pre = linear(some, encoder_rows, b_enc)
        row, latent = (pre > floor).nonzero(as_tuple=True)
        n_active += len(row)
        n_done += len(some)
        if n_active > DENSE_FROM * n_done * d_sae:
            return None
        values.append(pre[row, latent])
        rows.append(row + (n_done - len(some)))
        latents.append(latent)
    return torch.cat(values), Pairs(torch.cat(rows), torch.cat(latents), len(x), d_sae)
