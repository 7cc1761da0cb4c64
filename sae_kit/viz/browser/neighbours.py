"""Which latents of other sites go with a latent, as the pages list them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.sorting import lexsort, offsets, rank_in_group
from sae_kit.viz.browser.atlas import Atlas, Pair
from sae_kit.viz.browser.labels import Labels
from sae_kit.viz.browser.shards import numbers

PER_PAIR = 24
"""Neighbours of a latent shown of each other site, at most."""


@final
@dataclass(frozen=True)
class Side:
    """On which side of a latent its neighbours are."""

    name: str
    own: int
    """Where the latent itself stands in a pair: 0 before, 1 after."""

    @property
    def other(self) -> int:
        """Where its neighbour does."""
        return 1 - self.own

    def pairs(self, atlas: Atlas, site: int) -> list[Pair]:
        """The pairs that join a site to others on this side."""
        return [pair for pair in atlas.pairs if pair.sites[self.own] == site]


UP, DOWN = Side("up", own=1), Side("down", own=0)


@final
class Neighbours:
    """The neighbours of one site's latents on one side."""

    def __init__(self, atlas: Atlas, site: int, side: Side, labels: Labels) -> None:
        self._labels = labels
        self._parts = [
            (pair.sites[side.other], _Grouped(pair, side, atlas.d_sae[site]))
            for pair in side.pairs(atlas, site)
        ]

    def of(self, latent: int) -> list[list[Any]]:
        """`[site, latent, label, n_both, *measures]` for each neighbour."""
        return [
            [site, other, self._labels[site][other], n_both, *measures]
            for site, grouped in self._parts
            for other, n_both, measures in grouped.of(latent)
        ]


@final
class _Grouped:
    """A pair's rows by one of its two latents: the strongest of each."""

    def __init__(self, pair: Pair, side: Side, n_latents: int) -> None:
        latent = pair.index[:, side.own]
        rows = strongest(latent, pair.measures, PER_PAIR)
        self._offsets = offsets(latent[rows].contiguous(), n_latents)
        self._other = pair.index[rows, side.other].tolist()
        self._n_both = pair.n_both[rows].tolist()
        self._measures = numbers(pair.measures[rows])

    def of(self, latent: int) -> Iterator[tuple[int, int, list[float]]]:
        own = slice(self._offsets[latent], self._offsets[latent + 1])
        return zip(self._other[own], self._n_both[own], self._measures[own], strict=True)


def strongest(
    latent: Int[Tensor, " n"], measures: Float[Tensor, "n measures"], n_each: int
) -> Int[Tensor, " kept"]:
    """The rows to show of each latent, sorted by latent: every measure's first ones in turn."""
    best = torch.full_like(latent, len(latent))
    for values in measures.T:
        order = lexsort(latent, -values)
        best[order] = torch.minimum(best[order], rank_in_group(latent[order]))
    order = lexsort(latent, best)
    return order[rank_in_group(latent[order]) < n_each]


def best_of_latents(pair: Pair, own: int, n_latents: int) -> Float[Tensor, "latents measures"]:
    """The largest value of each measure that each latent has in a pair; 0 where it has none.

    Args:
        pair: the pair.
        own: 0 for the latents of its earlier site, 1 for those of the later one.
        n_latents: how many that site has.
    """
    best = torch.zeros(n_latents, pair.measures.shape[1])
    latent = pair.index[:, own, None].expand_as(pair.measures)
    return best.scatter_reduce(0, latent, pair.measures, "amax")
