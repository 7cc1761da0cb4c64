"""Firings: which latents are active where, as a list, and what is looked up in it.

A sparse code says which latents are active at a place; looking at one latent needs the opposite,
its places. A list sorted by latent, then place, answers both "where is it most active in each
context" and "how active is it around here", without a `[rows, d_sae]` matrix.

A place is the number of a token in the text: context times the length of a context, plus position.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.sae.code import SparseCode, firings
from sae_kit.sorting import lexsort, starts

STRIDE = 1 << 40  # more places than any text has


@final
@dataclass(frozen=True)
class Firings:
    """Active latents at some places of a text, sorted by latent, then place; on the CPU."""

    latent: Int[Tensor, " n"]
    place: Int[Tensor, " n"]
    value: Float[Tensor, " n"]
    """How active, above 0."""
    n_pos: int
    """Tokens in a context."""

    @staticmethod
    def of(
        code: Float[Tensor, "rows d_sae"] | SparseCode, places: Int[Tensor, " rows"], n_pos: int
    ) -> "Firings":
        """Those of a code, whose rows are at `places`."""
        row, latent, value = firings(code)
        place = places.to(row.device)[row]
        order = torch.argsort(latent * STRIDE + place)
        return Firings(
            latent[order].cpu(), place[order].cpu(), value[order].float().cpu(), n_pos=n_pos
        )

    @staticmethod
    def joined(parts: "list[Firings]") -> "Firings":
        """Those of several codes at different places, as one list."""
        latent, place, value = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("latent", "place", "value")
        )
        order = lexsort(latent, place)
        return Firings(latent[order], place[order], value[order], n_pos=parts[0].n_pos)

    def peaks(self) -> Int[Tensor, " n_peaks"]:
        """Where in the list each latent is most active in each context; of equals, the first."""
        if len(self.latent) == 0:
            return self.latent
        context = self.place // self.n_pos
        changes = (self.latent[1:] != self.latent[:-1]) | (context[1:] != context[:-1])
        group = torch.cat([torch.zeros(1, dtype=torch.int64), changes.cumsum(0)])
        order = lexsort(group, -self.value)
        return order[starts(group[order])]

    def around(
        self, entries: Int[Tensor, " n"], *, n_before: int, n_after: int
    ) -> Float[Tensor, "n window"]:
        """How active the latent of each of these entries is at the places around it.

        0 where it is not active, and beyond the ends of the context.
        """
        offsets = torch.arange(-n_before, n_after + 1)
        place = self.place[entries, None] + offsets
        same_context = place // self.n_pos == self.place[entries, None] // self.n_pos
        keys = self.latent * STRIDE + self.place
        wanted = self.latent[entries, None] * STRIDE + place
        found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        hit = same_context & (keys[found] == wanted)
        return self.value[found].where(hit, 0.0)
