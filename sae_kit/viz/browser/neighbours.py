"""Which latents of other sites go with a latent, as the pages list them."""

from collections.abc import Iterator
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.sorting import lexsort, offsets, rank_in_group
from sae_kit.viz.browser.atlas import Atlas, Pair
from sae_kit.viz.browser.shards import numbers

UP, DOWN = 0, 1
PER_PAIR = 24
"""Neighbours of a latent shown of each other site, at most."""


@final
class Neighbours:
    """The neighbours of one site's latents in the sites before it (UP) or after it (DOWN)."""

    def __init__(self, atlas: Atlas, site: int, direction: int, labels: "list[list[Any]]") -> None:
        """
        Args:
            atlas: everything.
            site: whose latents.
            direction: UP or DOWN.
            labels: of every site's latents.
        """
        self._labels = labels
        own, other = (1, 0) if direction == UP else (0, 1)
        self._parts = [
            (pair.up if direction == UP else pair.down, _Grouped(pair, own, other, n))
            for pair in atlas.pairs
            if (pair.down if direction == UP else pair.up) == site
            for n in [atlas.d_sae[site]]
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
    """A pair's rows by one of its columns: the strongest of each latent."""

    def __init__(self, pair: Pair, own: int, other: int, n_latents: int) -> None:
        latent = pair.index[:, own]
        rows = strongest(latent, pair.measures, PER_PAIR)
        self._offsets = offsets(latent[rows].contiguous(), n_latents)
        self._other = pair.index[rows, other].tolist()
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


def best_of_latents(pair: Pair, column: int, n_latents: int) -> Float[Tensor, "latents measures"]:
    """The largest value of each measure that each latent has in a pair; 0 where it has none."""
    best = torch.zeros(n_latents, pair.measures.shape[1])
    latent = pair.index[:, column, None].expand_as(pair.measures)
    return best.scatter_reduce(0, latent, pair.measures, "amax")
