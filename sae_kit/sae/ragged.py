"""Codes whose rows have any number of active latents, as a list of (row, latent) pairs.

Where a whole batch shares its budget of active latents, one row may have five and the next five
hundred. Padded to the fullest row, such a code is mostly padding; as a list it costs what its
active latents cost. `ops` says the rest: everything is a weighted sum of table rows, and gradients
of weights are the same sums over the transposed list.

    values = pre_activations(...)       # differentiable
    recon  = decode(values, pairs, W_dec)
    code   = as_code(values, pairs)     # for everything that does not know of lists

Limits: first derivatives only. The gradient of b_enc is summed in no fixed order on accelerators.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kit.sae.code import SparseCode

DENSE_FROM = 1 / 3
"""A padded code as wide as this share of d_sae takes no less memory than the matrix."""


@final
@dataclass(frozen=True)
class Pairs:
    """(row, latent) pairs, ordered by row. No pair is listed twice."""

    rows: Int[Tensor, " n"]
    """Row of each pair, ascending."""

    latents: Int[Tensor, " n"]
    """Latent of each pair, in [0, d_sae)."""

    n_rows: int
    d_sae: int

    @staticmethod
    def of(mask: Bool[Tensor, "rows d_sae"]) -> "Pairs":
        """The places where the matrix is true."""
        rows, latents = mask.nonzero(as_tuple=True)
        return Pairs(rows, latents, *mask.shape)

    def take(self, chosen: Int[Tensor, " m"]) -> "Pairs":
        """The pairs of the given (ascending) numbers."""
        return Pairs(self.rows[chosen], self.latents[chosen], self.n_rows, self.d_sae)

    @cached_property
    def first(self) -> Int[Tensor, " rows_and_1"]:
        """Number of the first pair of each row, and the number of pairs."""
        return _starts(self.rows, self.n_rows)

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " d_sae_and_1"]]:
        """The pairs' numbers in the order of their latents, and the first of each latent there."""
        # int32 halves the sort; stable, so that each latent adds its rows up in their order.
        order = self.latents.int().sort(stable=True).indices
        return order, _starts(self.latents, self.d_sae)


def pre_activations(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    pairs: Pairs,
    values: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """The pre-activations of the pairs, which the caller has at hand already, with their gradients.

    Differentiable in `x`, `encoder_rows` and `b_enc`; the choice of pairs is held constant.
    """
    return _PreActivations.apply(x, encoder_rows, b_enc, pairs, values)


def scores(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    pairs: Pairs,
) -> Float[Tensor, " n"]:
    """The pre-activations of the pairs, computed one by one; not differentiable."""
    return _products(x.detach(), encoder_rows.detach(), pairs) + b_enc.detach()[pairs.latents]


def decode(
    values: Float[Tensor, " n"], pairs: Pairs, W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "rows d_out"]:
    """`out[r]` = the sum of values[p] * W_dec[latent of p] over row r's pairs p; differentiable."""
    return _Decode.apply(values, pairs, W_dec)


def as_code(values: Float[Tensor, " n"], pairs: Pairs) -> Float[Tensor, "rows d_sae"] | SparseCode:
    """The code padded to its fullest row, or as a matrix where that is smaller; differentiable."""
    counts = pairs.first.diff()
    k = max(1, int(counts.max())) if len(counts) else 1
    if k > DENSE_FROM * pairs.d_sae:
        dense = values.new_zeros(pairs.n_rows, pairs.d_sae)
        return dense.index_put((pairs.rows, pairs.latents), values)
    place = torch.arange(len(values), device=values.device) - pairs.first[pairs.rows]
    where = pairs.rows * k + place
    padded = values.new_zeros(pairs.n_rows * k).index_put((where,), values)
    indices = pairs.latents.new_zeros(pairs.n_rows * k).index_put((where,), pairs.latents)
    shape = (pairs.n_rows, k)
    return SparseCode(padded.view(shape), indices.view(shape), pairs.d_sae)


# --- the two nodes, and their transposes ----------------------------------------------------------


class _PreActivations(torch.autograd.Function):
    """Passes the values on, and knows whose products they are."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, encoder_rows: Tensor, b_enc: Tensor, pairs: Pairs, values: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, encoder_rows)
        ctx.pairs = pairs
        return values.clone()  # a node may not return its input as it is

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, encoder_rows = ctx.saved_tensors
        pairs = ctx.pairs
        needs_x, needs_encoder, needs_bias, _, _ = ctx.needs_input_grad
        return (
            _sums_by_row(encoder_rows, pairs, grad) if needs_x else None,
            _sums_by_latent(x, pairs, grad) if needs_encoder else None,
            _totals_by_latent(pairs, grad) if needs_bias else None,
            None,
            None,
        )


class _Decode(torch.autograd.Function):
    """Weighted sums of decoder rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pairs: Pairs, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pairs = pairs
        return _sums_by_row(W_dec, pairs, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        values, W_dec = ctx.saved_tensors
        needs_values, _, needs_decoder = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _products(grad, W_dec, ctx.pairs) if needs_values else None,
            None,
            _sums_by_latent(grad, ctx.pairs, values) if needs_decoder else None,
        )


def _sums_by_row(table: Tensor, pairs: Pairs, weights: Tensor) -> Tensor:
    """[d_sae d], [n] -> [rows d]: for each row, the weighted sum of its latents' table rows."""
    return _bags(table, pairs.latents, pairs.first, weights)


def _sums_by_latent(x: Tensor, pairs: Pairs, weights: Tensor) -> Tensor:
    """[rows d], [n] -> [d_sae d]: for each latent, the weighted sum of its rows of x."""
    order, first = pairs.by_latent
    return _bags(x.contiguous(), pairs.rows[order], first, weights[order])


def _totals_by_latent(pairs: Pairs, values: Tensor) -> Tensor:
    """[n] -> [d_sae]: for each latent, the sum of its values, in the order of the rows."""
    order, first = pairs.by_latent
    column = values.reshape(-1, 1)
    return F.embedding_bag(order, column, first, mode="sum", include_last_offset=True)[:, 0]


def _bags(table: Tensor, listed: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        listed,
        table,
        first,
        per_sample_weights=weights.contiguous(),
        mode="sum",
        include_last_offset=True,
    )


def _products(x: Tensor, table: Tensor, pairs: Pairs) -> Tensor:
    """[rows d], [d_sae d] -> [n]: the product of each pair's row and table row.

    This is PyTorch's own derivative of embedding_bag in its weights; see ops.
    """
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.contiguous(), table, pairs.latents, pairs.first[:-1], pairs.rows, 0
    )


def _starts(numbers: Tensor, n: int) -> Tensor:
    return F.pad(torch.bincount(numbers, minlength=n).cumsum(0), (1, 0))
