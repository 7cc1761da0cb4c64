"""SparseCode: activations as values and latent numbers, never as a `[rows, d_sae]` matrix.

A TopK code of d_sae 24,576 and k 32 is 768 times smaller this way. Training and evaluation pass it
around as it is; `dense()` is there for the few places that want the matrix.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@final
@dataclass(frozen=True)
class SparseCode:
    """A code of which each row lists `k` latents and their activations, in no particular order.

    The active latents of a row are distinct. A value of exactly 0 marks a place that is not in use,
    so rows may have different numbers of active latents.
    """

    values: Float[Tensor, "*rows k"]
    """Activation of each listed latent; 0 = not active."""

    indices: Int[Tensor, "*rows k"]
    """Number of each listed latent, in [0, d_sae)."""

    d_sae: int
    """Number of latents in the dictionary."""

    @staticmethod
    def from_dense(code: Float[Tensor, "*rows d_sae"]) -> "SparseCode":
        """The same code, listing as many latents a row as its fullest row has active."""
        n_active = (code != 0).sum(-1)
        k = max(1, int(n_active.max())) if code.numel() else 1
        indices = code.abs().topk(k, dim=-1, sorted=False).indices
        return SparseCode(code.gather(-1, indices), indices, code.shape[-1])

    def dense(self) -> Float[Tensor, "*rows d_sae"]:
        """The code as a matrix, zero where no latent is active."""
        empty = self.values.new_zeros(*self.values.shape[:-1], self.d_sae)
        # Adding, since a place not in use may name a latent that another place has active.
        return empty.scatter_add(-1, self.indices, self.values)

    def l0(self) -> Int[Tensor, "*rows"]:
        """Number of active latents of each row."""
        return (self.values != 0).sum(-1)

    def fired(self) -> Bool[Tensor, " d_sae"]:
        """Which latents are active in at least one row."""
        fired = torch.zeros(self.d_sae, dtype=torch.bool, device=self.values.device)
        fired[self.indices[self.values != 0]] = True
        return fired

    def select(self, latents: Int[Tensor, " n"]) -> Float[Tensor, "*rows n"]:
        """The activations of the given (distinct) latents, as a matrix with one column each."""
        n = len(latents)
        # Column n collects the latents that nobody asked for.
        column = torch.full((self.d_sae,), n, device=latents.device)
        column[latents] = torch.arange(n, device=latents.device)
        table = self.values.new_zeros(*self.values.shape[:-1], n + 1)
        return table.scatter_add(-1, column[self.indices], self.values)[..., :n]


def firings(
    code: Float[Tensor, "rows d_sae"] | SparseCode,
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Row, latent and activation of everything above 0 in a code of either form, row after row."""
    if isinstance(code, SparseCode):
        row, column = (code.values > 0).nonzero(as_tuple=True)
        return row, code.indices[row, column], code.values[row, column]
    row, latent = (code > 0).nonzero(as_tuple=True)
    return row, latent, code[row, latent]
